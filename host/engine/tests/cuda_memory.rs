//! What a step on the GPU takes, counted without a GPU, against what was measured on an H100 (`host/docs/gpu.md`).
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used)]

use liftplan_engine::Batch;
use liftplan_engine::cuda::{
    AdapterSpec, Builder, Context, Decoder, Kind, Level, ModelShape, MomentFormat, Options, Role, Slot, StepPlan,
    Storage, TensorSpec, Treatment,
};

const GIB: f64 = (1_u64 << 30) as f64;

/// The shape of Qwen3-8B.
fn shape() -> ModelShape {
    ModelShape {
        vocab: 151_936,
        hidden: 4096,
        intermediate: 12_288,
        blocks: 36,
        heads: 32,
        kv_heads: 8,
        dim: 128,
        windows: vec![None; 36],
        rms_eps: 1e-6,
        tied: false,
        inverse_frequencies: vec![1.0; 64],
    }
}

/// That shape with adapters of rank 16 on all linear layers.
fn decoder(storage: Storage, options: Options) -> Decoder {
    laid_out(&adapted(&shape(), storage, false), options)
}

fn laid_out(specs: &[TensorSpec], options: Options) -> Decoder {
    let shape = shape();
    let mut decoder = Builder::new(&Context::dry((9, 0)), &shape, specs, options).unwrap().finish();
    decoder.prepare(&decoder.active()).unwrap();
    decoder
}

/// With DoRA's magnitudes if `dora`.
fn adapted(shape: &ModelShape, storage: Storage, dora: bool) -> Vec<TensorSpec> {
    use Role::{Down, Embedding, FinalNorm, Gate, Head, InputNorm, K, KNorm, O, PostNorm, Q, QNorm, Up, V};
    let mut slots: Vec<Slot> = vec![(None, Embedding), (None, FinalNorm), (None, Head)];
    for block in 0..shape.blocks {
        slots.extend([InputNorm, Q, K, V, QNorm, KNorm, O, PostNorm, Gate, Up, Down].map(|role| (Some(block), role)));
    }
    slots
        .into_iter()
        .map(|slot| {
            let linear = matches!(slot.1, Q | K | V | O | Gate | Up | Down);
            let name = format!("{slot:?}");
            let (a, b) = (format!("{name}.A"), format!("{name}.B"));
            let (dropout, dropout_stream) = (0.0, 0);
            let magnitude = dora.then(|| format!("{name}.M"));
            let adapter = || AdapterSpec { rank: 16, scale: 2.0, dropout, dropout_stream, a, b, magnitude };
            let treatment = if linear { Treatment::Adapt(adapter()) } else { Treatment::Frozen };
            TensorSpec { slot, treatment, storage: if linear { storage } else { Storage::Bf16 }, name }
        })
        .collect()
}

/// Four documents of 2048 tokens.
fn batch() -> Batch {
    let (ids, targets) = (vec![1; 2048], vec![true; 2048]);
    Batch::pack((0..4).map(|_| (ids.as_slice(), targets.as_slice())))
}

/// GiB of the model and of a step by this plan.
fn gib(decoder: &Decoder, plan: &StepPlan) -> f64 {
    (decoder.model_bytes() + decoder.needed(&batch(), plan).unwrap()) as f64 / GIB
}

fn close(found: f64, measured: f64) {
    assert!((found / measured - 1.0).abs() < 0.01, "{found:.2} GiB predicted, {measured:.2} measured");
}

#[test]
fn a_lora_step_takes_what_was_measured() {
    let decoder = decoder(Storage::Bf16, Options::default());
    // 49.07 GiB and 16.85 GiB on the card.
    close(gib(&decoder, &StepPlan::new(36, 36, 35, 8192, 4096)), 49.07);
    let lean = StepPlan { pieces: 2, offload: true, ..StepPlan::new(36, 0, 0, 2048, 512) };
    close(gib(&decoder, &lean), 16.85);
}

#[test]
fn a_qlora_step_takes_what_was_measured() {
    let options = Options { moments: MomentFormat::EightBit, rank_multiple: 16, ..Options::default() };
    let decoder = decoder(Storage::Nf4 { block: 64, double: true }, options);
    let lean = StepPlan { pieces: 2, offload: true, ..StepPlan::new(36, 0, 0, 4096, 1024) };
    // 7.34 GiB on the card, when there was one buffer of 64 MiB more for inputs on the host.
    close(gib(&decoder, &lean), 7.34 - 0.0625);
}

#[test]
fn four_bits_take_what_their_blocks_take() {
    // All linear weights of the shape.
    let numbers = 36 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 12_288);
    let bytes = |block, double| {
        let storage = Storage::Nf4 { block, double };
        decoder(storage, Options::default()).model_bytes() - if double { 1024 } else { 0 }
    };
    let plain = bytes(64, false);
    // An f32 a block; or a byte, four more for 256 of them, and 256 bytes for each weight's mean.
    assert_eq!(bytes(32, false) - plain, 4 * numbers / 64);
    assert_eq!(plain - bytes(256, false), 4 * numbers / 64 - 4 * numbers / 256);
    for block in [32, 64, 128] {
        let scales = numbers / block + 4 * numbers / block / 256 + 36 * 7 * 256;
        assert_eq!(bytes(block, true) - bytes(4096, false), scales - 4 * numbers / 4096);
    }
    let shape = shape();
    for (block, expected) in
        [(100, "block size of a 4-bit weight: expected one of [32, 64"), (0, "block size of a 4-bit")]
    {
        let specs = adapted(&shape, Storage::Nf4 { block, double: true }, false);
        let error = Builder::new(&Context::dry((9, 0)), &shape, &specs, Options::default()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn the_plan_fits_the_budget_and_grows_with_it() {
    let mut decoder = decoder(Storage::Bf16, Options::default());
    let mut before = (0, 0);
    for budget in [17.2, 19.0, 24.0, 40.0, 60.0] {
        decoder.set_budget(Some((budget * GIB) as usize));
        let plan = decoder.choose_plan(&batch()).unwrap();
        let taken = gib(&decoder, &plan);
        assert!(taken <= budget, "{taken:.2} of {budget} GiB");
        let all = plan.count(Level::All);
        let kept = (all + plan.count(Level::Products), all);
        assert!(kept >= before, "{kept:?} blocks kept in {budget} GiB, {before:?} in less");
        before = kept;
    }
    assert_eq!(before, (36, 36));
    decoder.set_budget(Some((16.0 * GIB) as usize));
    let error = decoder.choose_plan(&batch()).unwrap_err().to_string();
    assert!(error.starts_with("out of GPU memory: "), "{error}");
}

#[test]
fn gradients_of_updates_inside_the_pass_share_one_blocks_place() {
    let options = Options { update_in_backward: true, ..Options::default() };
    let (kept, used) = (decoder(Storage::Bf16, Options::default()), decoder(Storage::Bf16, options));
    // Rank 16 on q, k, v, o, gate, up and down, in f32.
    let block = 4 * 16 * (3 * 4096 + 4096 + 2 * 1024 + 2 * 4096 + 2 * (4096 + 12_288) + 12_288 + 4096);
    assert_eq!(kept.account(&[0]).gradients, 36 * block);
    assert_eq!(used.account(&[0]).gradients, 0);
    for plan in [StepPlan::new(36, 36, 36, 8192, 4096), StepPlan::new(36, 0, 0, 2048, 512)] {
        let more = used.needed(&batch(), &plan).unwrap() - kept.needed(&batch(), &plan).unwrap();
        // At most that of one block on top, and nothing where the peak is the loss's.
        assert!(more <= block + (1 << 16), "{more} bytes more in the pass, {block} of a block");
    }
    // What is there for them alone answers nothing else.
    let mut used = used;
    let scale = 1.0;
    for refused in [
        used.accumulate(&batch(), scale).map(|_| ()),
        used.grad_norm().map(|_| ()),
        used.adopt((Some(0), Role::InputNorm), "norm", Storage::F32).map(|_| ()),
        used.trainables()[0].grad(used.context()).map(|_| ()),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("expected memory of"), "{error}");
    }
}

#[test]
fn magnitudes_take_themselves_their_factors_and_two_kept_products() {
    let lora = decoder(Storage::Bf16, Options::default());
    let dora = laid_out(&adapted(&shape(), Storage::Bf16, true), Options::default());
    // Outputs of q, k, v, o, gate, up and down; factor, norm, square, value, gradient and two moments, in f32.
    let outputs = 4096 + 2 * 1024 + 4096 + 2 * 12_288 + 4096;
    assert_eq!(dora.model_bytes() - lora.model_bytes(), 36 * 7 * 4 * outputs);
    let kept = |products: usize| {
        let plan = StepPlan::new(36, products, 0, 2048, 512);
        dora.needed(&batch(), &plan).unwrap() - lora.needed(&batch(), &plan).unwrap()
    };
    // A block that keeps its products keeps those of the output and the last layer besides.
    let (product, none) = (8192 * 4096 * 2, kept(0));
    assert_eq!(kept(36) - kept(35), 2 * product);
    assert!(none <= 3 * product, "{none} bytes more where nothing is kept");
    assert_eq!(dora.trainables().iter().filter(|trainable| trainable.name.ends_with(".M")).count(), 36 * 7);
}

#[test]
fn an_embedding_on_the_host_takes_nothing_of_the_card() {
    let options = Options { embedding_on_host: true, ..Options::default() };
    let (here, there) = (decoder(Storage::Bf16, Options::default()), decoder(Storage::Bf16, options));
    let bytes = 151_936 * 4096 * 2;
    assert_eq!((here.host_bytes(), there.host_bytes()), (0, bytes));
    assert_eq!(here.model_bytes() - there.model_bytes(), bytes);
    assert_eq!(here.account(&[0]).total() - there.account(&[0]).total(), bytes);
    let plan = StepPlan::new(36, 36, 36, 8192, 4096);
    assert_eq!(here.needed(&batch(), &plan).unwrap(), there.needed(&batch(), &plan).unwrap());

    // Where the whole table is read or changed, it has to be on the card.
    let mut specs = adapted(&shape(), Storage::Bf16, false);
    let refused = |shape: &ModelShape, specs: &[TensorSpec]| {
        Builder::new(&Context::dry((9, 0)), shape, specs, options).map(|_| ()).unwrap_err().to_string()
    };
    let tied = refused(&ModelShape { tied: true, ..shape() }, &specs);
    assert!(tied.contains("Embedding") && tied.contains("since it is the head too"), "{tied}");
    specs[0].treatment = Treatment::Train;
    let trained = refused(&shape(), &specs);
    assert!(trained.contains("Embedding") && trained.contains("since it trains"), "{trained}");
}

#[test]
fn adapters_that_begin_late_take_what_they_take_from_the_start() {
    let shape = shape();
    let late = |all: &[TensorSpec], options: Options, first: &[Role], then: &[&[Role]]| {
        let mut specs = all.to_vec();
        let mut waiting = Vec::new();
        for spec in specs.iter_mut().filter(|spec| !first.contains(&spec.slot.1)) {
            if let Treatment::Adapt(adapter) = std::mem::replace(&mut spec.treatment, Treatment::Frozen) {
                waiting.push((spec.slot, adapter));
            }
        }
        let mut decoder = Builder::new(&Context::dry((9, 0)), &shape, &specs, options).unwrap().finish();
        for roles in then {
            let begins: Vec<_> = waiting.iter().filter(|(slot, _)| roles.contains(&slot.1)).cloned().collect();
            decoder.adapt(&begins).unwrap();
        }
        decoder.set_active(|_| true).unwrap();
        decoder.prepare(&decoder.active()).unwrap();
        decoder
    };
    use Role::{Down, Gate, K, O, Q, Up, V};
    let tight = Options { rank_multiple: 16, ..Options::default() };
    let packed = Storage::Nf4 { block: 64, double: true };
    for (storage, dora) in [(Storage::Bf16, false), (packed, false), (Storage::Bf16, true), (packed, true)] {
        for (options, first, then, kept) in [
            (Options::default(), &[O][..], &[&[Q, K, V, Gate, Up, Down][..]][..], 0),
            (Options::default(), &[Down], &[&[O], &[Gate, Up], &[Q, K, V]], 0),
            // The gradients of the first adapters, 256 KiB, share a buffer that stays when they move; so do A and B beside packed
            // weights.
            (tight, &[K], &[&[O, V, Down], &[Q, Gate, Up]], 4 << 20),
        ] {
            let specs = adapted(&shape, storage, dora);
            let (early, late) = (laid_out(&specs, options), late(&specs, options, first, then));
            let more = late.model_bytes() - early.model_bytes();
            assert!(more <= 36 * kept, "{storage:?} {first:?}: {more} bytes more");
            assert_eq!(late.account(&[0]).gradients, early.account(&[0]).gradients);
            assert_eq!(late.account(&[0]).states, early.account(&[0]).states);
            let plan = StepPlan::new(36, 1, 0, 2048, 512);
            assert_eq!(late.needed(&batch(), &plan).unwrap(), early.needed(&batch(), &plan).unwrap());
            let names = |decoder: &Decoder| {
                decoder.active().into_iter().map(|i| decoder.trainables()[i].name.clone()).collect::<Vec<_>>()
            };
            assert_eq!(names(&late), names(&early));
        }
    }
    // What has an adapter, trains itself or is no linear layer takes none.
    let (a, b, magnitude) = ("a".into(), "b".into(), Some("m".into()));
    let adapter = AdapterSpec { rank: 4, scale: 1.0, dropout: 0.0, dropout_stream: 0, a, b, magnitude };
    let mut specs = adapted(&shape, Storage::Bf16, false);
    specs[4].treatment = Treatment::Train;
    let mut decoder = Builder::new(&Context::dry((9, 0)), &shape, &specs, Options::default()).unwrap().finish();
    for (slot, expected) in [
        ((Some(0), K), "expected a frozen weight without an adapter"),
        ((Some(0), Q), "expected a frozen weight without an adapter"),
        ((Some(0), Role::InputNorm), "expected a linear layer"),
        ((None, Role::Head), "expected a linear layer"),
        ((Some(36), Q), "expected a weight of this model"),
    ] {
        let before = (decoder.model_bytes(), decoder.trainables().len());
        let error = decoder.adapt(&[(slot, adapter.clone())]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!((decoder.model_bytes(), decoder.trainables().len()), before);
    }
}

/// Bytes of activations of a step by this plan, and how many products and kernels it queues for adapters.
fn of_adapters(decoder: &Decoder, plan: &StepPlan) -> (usize, usize) {
    decoder.context().start_profile();
    let bytes = decoder.needed(&batch(), plan).unwrap();
    let queued = decoder.context().end_profile().unwrap().unwrap();
    (bytes, queued.by_kind.get(&Kind::Adapter).map_or(0, |&(_, pieces)| pieces))
}

/// Lets the adapters train whose block and weight are named so.
fn let_train(decoder: &mut Decoder, trains: impl Fn(usize, &str) -> bool) {
    let of = |matrix: &str| {
        // As in "(Some(3), Q).A".
        let (block, role) = matrix.strip_prefix("(Some(").unwrap().split_once("), ").unwrap();
        trains(block.parse().unwrap(), role.split_once(')').unwrap().0)
    };
    decoder.set_active(of).unwrap();
    decoder.prepare(&decoder.active()).unwrap();
}

#[test]
fn adapters_that_rest_have_no_gradients_made_and_nothing_kept_for_them() {
    let mut decoder = decoder(Storage::Bf16, Options::default());
    let rich = |blocks| StepPlan::new(blocks, blocks, blocks, 8192, 4096);
    // A block has four products with A and, for inputs' gradients, four with B; gradients of four A and seven B.
    let (all, queued) = of_adapters(&decoder, &rich(36));
    assert_eq!(queued, 36 * (4 + 4 + 4 + 7));

    // All of the first 20 blocks: the pass ends above them, as it does where they have no adapters.
    let_train(&mut decoder, |block, _| block >= 20);
    let (upper, queued) = of_adapters(&decoder, &rich(16));
    assert_eq!(queued, 36 * 4 + 16 * (4 + 4 + 7));
    assert_eq!(decoder.choose_plan(&batch()).unwrap().levels.len(), 16);
    let mut specs = adapted(&shape(), Storage::Bf16, false);
    for spec in specs.iter_mut().filter(|spec| spec.slot.0 < Some(20)) {
        spec.treatment = Treatment::Frozen;
    }
    assert_eq!(upper, laid_out(&specs, Options::default()).needed(&batch(), &rich(16)).unwrap());
    assert!(2 * upper < all + (2 << 30), "{upper} bytes for 16 blocks, {all} for 36");
    // Pieces and what waits on the host have as many blocks.
    let lean = |blocks| StepPlan { pieces: 2, offload: true, ..StepPlan::new(blocks, 0, 0, 2048, 512) };
    let (_, queued) = of_adapters(&decoder, &lean(16));
    let_train(&mut decoder, |_, _| true);
    assert!(queued < of_adapters(&decoder, &lean(36)).1);
    assert_eq!(of_adapters(&decoder, &rich(36)), (all, 36 * (4 + 4 + 4 + 7)));

    // Those of other layers: normed rows wait for no gradient. In the first block the pass ends behind the last layer.
    let_train(&mut decoder, |_, role| role == "Down");
    let (down, queued) = of_adapters(&decoder, &rich(36));
    assert_eq!(queued, 36 * 4 + 35 * (4 + 1 + 1) + (1 + 1 + 1));
    let normed = 8192 * (4096 + 64) * 2;
    assert_eq!(all - down, 36 * 2 * normed);
    // Nor does what the last layer's A gave, where that rests.
    let_train(&mut decoder, |_, role| role == "O");
    let (output, queued) = of_adapters(&decoder, &rich(36));
    assert_eq!(queued, 36 * 4 + 35 * (4 + 1 + 1) + (3 + 1 + 1));
    assert_eq!(down - output, 36 * 8192 * 64 * 2);
    // One of three with a common input: A's gradients are one product.
    let_train(&mut decoder, |_, role| role == "K");
    assert_eq!(of_adapters(&decoder, &rich(36)).1, 36 * (4 + 4 + 1 + 1));
}

#[test]
fn magnitudes_that_rest_have_no_gradients_made_and_no_products_kept() {
    let plan = |products: usize| StepPlan::new(36, products, products, 8192, 4096);
    let [mut lora, mut dora] =
        [false, true].map(|dora| laid_out(&adapted(&shape(), Storage::Bf16, dora), Options::default()));
    let kept = |lora: &Decoder, dora: &Decoder| {
        let of = |decoder, products| of_adapters(decoder, &plan(products)).0;
        (of(dora, 36) - of(lora, 36)) as i64 - (of(dora, 35) - of(lora, 35)) as i64
    };
    assert_eq!(kept(&lora, &dora), 2 * 8192 * 4096 * 2);
    let (_, all) = of_adapters(&dora, &plan(36));
    for decoder in [&mut lora, &mut dora] {
        let_train(decoder, |_, role| role == "K");
    }
    assert_eq!(kept(&lora, &dora), 0);
    // Sums and magnitudes' gradients are two kernels where products were kept, gate's and up's one each; and gradients of three A and
    // six B.
    assert_eq!(all - of_adapters(&dora, &plan(36)).1, 36 * (2 * 4 + 2 + 3 + 6));
}

#[test]
fn weights_kept_otherwise_take_what_they_take_from_the_start() {
    use Role::{Down, Gate, K, O, Q, Up, V};
    let shape = shape();
    let (nf4, finer) = (Storage::Nf4 { block: 64, double: true }, Storage::Nf4 { block: 32, double: false });
    // Queries and gates are adapted, keys of every second block train; the rest is kept in one way after the other.
    let specs = |storage: Storage| {
        let mut specs = adapted(&shape, storage, false);
        for spec in specs.iter_mut().filter(|spec| !matches!(spec.slot.1, Q | Gate)) {
            spec.treatment = Treatment::Frozen;
        }
        for spec in specs.iter_mut() {
            match spec.slot {
                (_, Q | Gate) => spec.storage = Storage::Bf16,
                (Some(block), K) if block % 2 == 0 => {
                    (spec.treatment, spec.storage) = (Treatment::Train, Storage::F32);
                }
                _ => {}
            }
        }
        specs
    };
    let plans = [StepPlan::new(36, 36, 0, 2048, 512), StepPlan::new(36, 1, 0, 2048, 512)];
    for start in [Storage::Bf16, nf4] {
        let mut late = laid_out(&specs(start), Options::default());
        // Small tensors share buffers that stay; what was kept anew has buffers of its own, so that nothing more stays later.
        let mut stays = Vec::new();
        for to in [nf4, finer, Storage::Int8, Storage::Bf16].repeat(3) {
            let wanted = specs(to);
            let kept: Vec<_> = (wanted.iter())
                .filter(|spec| matches!(spec.slot.1, K | V | O | Up | Down) && spec.treatment == Treatment::Frozen)
                .map(|spec| (spec.slot, spec.storage))
                .collect();
            late.store(&kept).unwrap();
            let early = laid_out(&wanted, Options::default());
            let more = late.model_bytes().checked_sub(early.model_bytes()).unwrap();
            assert!(more <= 36 * (5 << 20), "{start:?} to {to:?}: {more} bytes more");
            stays.push(more);
            assert_eq!(late.account(&[0]).gradients, early.account(&[0]).gradients);
            assert_eq!(late.account(&[0]).states, early.account(&[0]).states);
            for plan in &plans {
                assert_eq!(late.needed(&batch(), plan).unwrap(), early.needed(&batch(), plan).unwrap(), "{to:?}");
            }
        }
        assert_eq!(stays[4..8], stays[8..], "{start:?}: it grows from pick to pick");
    }

    // A weight in few bits that begins to train stands with its neighbours as soon as none of them is packed.
    let of_ups = |storage| {
        let mut specs = specs(Storage::Bf16);
        specs.iter_mut().filter(|spec| spec.slot.1 == Up).for_each(|spec| spec.storage = storage);
        laid_out(&specs, Options::default())
    };
    let (mut begins, stays) = (of_ups(nf4), of_ups(Storage::Bf16));
    // Of so short a batch the weights that are put together for a product are the most.
    let short = Batch::pack([([1; 64].as_slice(), [true; 64].as_slice())]);
    let needed = |decoder: &Decoder| decoder.needed(&short, &StepPlan::new(36, 0, 0, 64, 64)).unwrap();
    assert!(needed(&begins) > needed(&stays));
    for block in 0..36 {
        begins.adopt((Some(block), Up), "up", Storage::Bf16).unwrap();
    }
    assert_eq!(needed(&begins), needed(&stays));

    // What trains, has an adapter or cannot be packed so stays as it is, with all others.
    let mut decoder = laid_out(&specs(Storage::Bf16), Options::default());
    let before = decoder.model_bytes();
    for (slot, storage, expected) in [
        ((Some(0), K), nf4, "expected a weight that never trained"),
        ((Some(0), Q), nf4, "expected a weight that never trained"),
        ((Some(36), V), nf4, "expected a weight of this model"),
        ((Some(1), V), Storage::Nf4 { block: 48, double: true }, "block size of a 4-bit weight: expected one of"),
    ] {
        let error = decoder.store(&[((Some(0), O), nf4), (slot, storage)]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(decoder.model_bytes(), before);
    }
    // What is no linear layer's lies there as it did.
    decoder.store(&[((None, Role::Head), nf4), ((Some(0), Role::InputNorm), Storage::Bf16)]).unwrap();
    assert_eq!(decoder.model_bytes(), before);
}

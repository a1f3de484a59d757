//! Plans on a GPU that is not there: each method's model is laid out, what trains is what trains on the processor, and what a
//! GPU does not do is refused. With a GPU, tests/cuda/run.sh trains on it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use liftplan::checkpoint::TensorSource;
use liftplan::config::Config;
use liftplan::model::{self, BaseModel};
use liftplan::plan::{Entry, Plan, Storage, Treatment};
use liftplan::policy;
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan::train::build;
use liftplan::train::card::{Card, CardOptions, check};
use liftplan::train::forecast::{self, Place, Run, Ways, forecast, ways};
use liftplan::train::trainable::Trainable;
use liftplan_engine::Batch;
use liftplan_engine::cuda::Context;

const LORA: &str = "[policy]\nname = \"lora\"\nrank = 4\n";

fn planned(family: &str, more: &str) -> (BaseModel, Plan, Config) {
    let folder: PathBuf = match family {
        "tiny" => Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/tiny"),
        family => liftplan_tests::golden::folder().join("families").join(family).join("model"),
    };
    let text = format!("model = {folder:?}\n[data]\ntrain = \"none.jsonl\"\n{more}");
    let config = Config::parse(&text, &PathBuf::from("/nowhere/c.toml"), "c.toml", &[]).unwrap();
    let base = model::open(&config.model, &PathBuf::new(), &mut Silent).unwrap();
    let plan = policy::plan(&config, &base.inventory, &ModelStatistics::new(&base, &mut Silent)).unwrap();
    (base, plan, config)
}

#[test]
fn the_same_tensors_train_on_a_gpu_as_on_the_processor() {
    let full = "[policy]\nname = \"full\"\n";
    let bf16 = "[train]\nweights = \"bf16\"\n[policy]\nname = \"spectrum\"\npercent = 50\n";
    let qlora = "[policy]\nname = \"qlora\"\nrank = 4\n";
    let small = "[storage]\nblock_size = 32\n[policy]\nname = \"qlora\"\nrank = 4\n";
    let large = "[storage]\nblock_size = 4096\ndouble_quantization = false\n[policy]\nname = \"qlora\"\nrank = 4\n";
    let int8 = "[storage]\nfrozen = \"int8\"\n[policy]\nname = \"lora\"\nrank = 4\ndropout = 0.1\n";
    let dora = "[policy]\nname = \"lora\"\nrank = 4\ndora = true\ndropout = 0.1\n";
    let qdora = "[policy]\nname = \"qlora\"\nrank = 4\ndora = true\n";
    // The columns of the second model's down_proj are no whole number of blocks of 64.
    let others = [(small, "tiny"), (large, "tiny"), (qlora, "llama3")];
    for (more, family) in
        [LORA, full, bf16, qlora, int8, dora, qdora].map(|more| (more, "tiny")).into_iter().chain(others)
    {
        let (base, plan, config) = planned(family, more);
        let context = Context::dry((9, 0));
        let options = CardOptions::of(&config);
        let card = Card::build(&context, &base, &plan, 7, options, &mut Silent)
            .unwrap_or_else(|error| panic!("{family} {more}: {error}"));
        let host = build(&base, &plan, 7, &mut Silent).unwrap();
        let named = |specs: Vec<liftplan::checkpoint::tensors::TensorSpec>| {
            specs.into_iter().map(|spec| (spec.name, format!("{:?}", spec.dtype), spec.shape)).collect::<BTreeSet<_>>()
        };
        let host = Trainable::of(&host);
        assert_eq!(named(card.trainable().unwrap().specs()), named(host.specs()), "{family} {more}");
        assert_eq!(card.parameters(), host.parameters(), "{family} {more}");
    }
}

#[test]
fn what_a_gpu_does_not_do_is_refused_with_a_way_out() {
    let (base, plan, _) = planned("llama", LORA);
    let error = check(&base, &plan).unwrap_err();
    assert_eq!(error.message(), "head size: expected a multiple of 16 on a GPU, found 24");
    assert_eq!(error.help_text(), Some("set device to \"cpu\""));
}

const HOPPER: (u32, u32) = (9, 0);

/// Training `planned("tiny", more)` on four documents of 256 tokens.
fn run<'a>(base: &'a BaseModel, plan: &Plan, config: &Config) -> Run<'a> {
    let (ids, targets) = (vec![1; 256], vec![true; 256]);
    let batch = Batch::pack((0..4).map(|_| (ids.as_slice(), targets.as_slice())));
    Run { base, plan: plan.clone(), options: CardOptions::of(config), batch, offer_update: None, resting: None }
}

#[test]
fn a_forecast_counts_each_kind_and_keeps_less_where_there_is_less() {
    let (base, plan, config) = planned("tiny", "[policy]\nname = \"full\"\n");
    let run = run(&base, &plan, &config);
    let rich = forecast(&run, 8 << 30, HOPPER).unwrap().unwrap();
    let trained: u64 = base.inventory.tensors.iter().map(|tensor| tensor.len() as u64).sum();
    assert_eq!(rich.gradients_bytes, 4 * trained);
    // Two moments in f32, and an f32 value beside each number that products read in bf16; norms are f32 alone.
    assert!((11 * trained..=12 * trained).contains(&rich.optimizer_bytes), "{}", rich.optimizer_bytes);
    assert!(rich.activations_bytes > 0 && rich.adapters_bytes == 0);
    let lasting = rich.total() - rich.activations_bytes;
    let lean = forecast(&run, lasting + rich.activations_bytes / 2, HOPPER).unwrap().unwrap();
    assert!(lean.activations_bytes <= rich.activations_bytes / 2 && lean.activations_bytes > 0);
    assert_eq!(lean.total() - lean.activations_bytes, lasting);
    let least = forecast(&run, 1 << 20, HOPPER).unwrap().unwrap_err();
    assert!(least > lasting && least <= lean.total(), "{least}");
    assert!(forecast(&run, least, HOPPER).unwrap().is_ok() && forecast(&run, least - 1, HOPPER).unwrap().is_err());
}

#[test]
fn recomputing_keeps_every_blocks_input_alone() {
    let (base, plan, config) = planned("tiny", "[train]\nrecompute = true\n[policy]\nname = \"full\"\n");
    let again = forecast(&run(&base, &plan, &config), 8 << 30, HOPPER).unwrap().unwrap();
    let (base, plan, config) = planned("tiny", "[policy]\nname = \"full\"\n");
    let kept = forecast(&run(&base, &plan, &config), 8 << 30, HOPPER).unwrap().unwrap();
    assert!(again.activations_bytes < kept.activations_bytes, "{} {}", again.activations_bytes, kept.activations_bytes);
    assert_eq!(again.optimizer_bytes, kept.optimizer_bytes);
}

#[test]
fn what_does_not_fit_is_told_with_settings_that_do() {
    let (base, plan, config) = planned("tiny", "[policy]\nname = \"full\"\n");
    let run = run(&base, &plan, &config);
    let least = forecast(&run, 1 << 20, HOPPER).unwrap().unwrap_err();
    let Ways::Any(fitting) = ways(&run, least - 1, HOPPER).unwrap() else { panic!("nothing fits") };
    let names: Vec<_> = fitting.iter().map(|(setting, _)| setting.as_str()).collect();
    assert_eq!(
        names,
        [
            "train.micro_batch_examples = 1",
            "optimizer.name = \"adamw8bit\"",
            "train.weights = \"bf16\"",
            "data.max_length = 128 with train.micro_batch_examples = 1",
            "data.max_length = 64 with train.micro_batch_examples = 1"
        ]
    );
    assert!(fitting.iter().all(|(_, bytes)| *bytes < least), "{fitting:?}");
    // The last of these settings, made in the configuration, takes what was said.
    let (base, plan, config) = planned("tiny", "[optimizer]\nname = \"adamw8bit\"\n[policy]\nname = \"full\"\n");
    let leaner = Run { base: &base, plan, options: CardOptions::of(&config), ..run.clone() };
    assert_eq!(forecast(&leaner, least - 1, HOPPER).unwrap().unwrap().total(), fitting[1].1);

    let place = |free: u64| Place { device: "cuda:0".into(), capability: HOPPER, free, total: 1 << 30 };
    let room = least + (128 << 20);
    forecast::check(&place(room), &run).unwrap();
    let error = forecast::check(&place(room - 1), &run).unwrap_err().to_string();
    assert!(error.starts_with("training takes at least ") && error.contains(" on the GPU, and cuda:0 has "), "{error}");
    assert!(error.contains("\n  help: any of these fits: train.micro_batch_examples = 1 ("), "{error}");
    let error = forecast::check(&place(64 << 20), &run).unwrap_err().to_string();
    assert!(error.contains("help: even train.micro_batch_examples = 1, optimizer.name"), "{error}");
    assert!(error.ends_with("or set device to \"cpu\""), "{error}");
    let capped = Run { options: CardOptions { vram: Some(300 << 20), ..run.options }, ..run.clone() };
    let error = forecast::check(&place(900 << 20), &capped).unwrap_err().to_string();
    assert!(error.contains("and `vram` leaves it 176 MiB of 300 MiB on cuda:0"), "{error}");
}

#[test]
fn an_embedding_on_the_host_is_counted_offered_and_refused_where_it_cannot_be() {
    let offloaded = "[storage]\noffload_embedding = true\n";
    let (base, plan, config) = planned("llama3", LORA);
    let (_, _, with) = planned("llama3", &format!("{offloaded}{LORA}"));
    let (here, there) = (run(&base, &plan, &config), run(&base, &plan, &with));
    let [rich, lean] = [&here, &there].map(|run| forecast(run, 1 << 30, HOPPER).unwrap().unwrap());
    let bytes = 2 * base.inventory.tensors[0].len() as u64;
    assert!(base.inventory.tensors[0].name.contains("embed_tokens"));
    assert_eq!(rich.weights_bytes - lean.weights_bytes, bytes);
    // What helps a card that is too small, unless it is set already.
    let offered = |run: &Run<'_>| match ways(run, 1 << 20, HOPPER).unwrap() {
        Ways::None(settings, _) => settings,
        other => panic!("{other:?}"),
    };
    assert_eq!(offered(&here)[0], "storage.offload_embedding = true");
    assert!(!offered(&there).iter().any(|setting| setting.contains("embedding")));

    for (family, policy, why) in [
        ("tiny", LORA, "is the output head too, which every step multiplies by, and stays on the GPU"),
        ("llama3", "[policy]\nname = \"full\"\n", "trains, and stays on the GPU"),
    ] {
        let (base, plan, config) = planned(family, &format!("{offloaded}{policy}"));
        let error = forecast(&run(&base, &plan, &config), 1 << 30, HOPPER).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "`storage.offload_embedding`: `model.embed_tokens.weight` {why}\n  help: leave storage.offload_embedding out"
            )
        );
    }
}

#[test]
fn updates_inside_the_backward_pass_hold_one_blocks_gradients() {
    let (base, plan, config) = planned("tiny", "[policy]\nname = \"full\"\n");
    let inside = "[train]\nmax_grad_norm = 0\nupdate_in_backward = true\n[policy]\nname = \"full\"\n";
    let (_, _, with) = planned("tiny", inside);
    let (after, amid) = (run(&base, &plan, &config), run(&base, &plan, &with));
    let [rich, lean] = [&after, &amid].map(|run| forecast(run, 8 << 30, HOPPER).unwrap().unwrap());
    // What is in no block, and vectors, keep memory of their own.
    let own = base.inventory.tensors.iter().filter(|tensor| tensor.block.is_none() || tensor.shape.len() == 1);
    assert_eq!(lean.gradients_bytes, own.map(|tensor| 4 * tensor.len() as u64).sum::<u64>());
    assert!(lean.total() < rich.total(), "{lean:?} {rich:?}");

    // Offered where every step is one pass.
    let setting = "train.update_in_backward = true with train.max_grad_norm = 0";
    let least = forecast(&after, 1 << 20, HOPPER).unwrap().unwrap_err();
    let offered = Run { offer_update: Some(setting.into()), ..after.clone() };
    let Ways::Any(fitting) = ways(&offered, least - 1, HOPPER).unwrap() else { panic!("nothing fits") };
    assert_eq!(fitting[0].0, setting);
    // What cuts a step into several passes does not go with it.
    assert!(!format!("{:?}", ways(&amid, 64 << 20, HOPPER).unwrap()).contains("micro_batch_examples"));
    let Ways::None(together, _) = ways(&offered, 1 << 20, HOPPER).unwrap() else { panic!("something fits") };
    assert!(!together.contains(&setting.to_string()) && together[0].contains("micro_batch_examples"), "{together:?}");
}

#[test]
fn what_stops_training_keeps_its_place_in_checkpoints_and_no_memory() {
    let (base, full, config) = planned("tiny", "[policy]\nname = \"full\"\n");
    let only = |block: usize| {
        let mut plan = full.clone();
        for (entry, info) in plan.entries.iter_mut().zip(&base.inventory.tensors) {
            entry.treatment = if info.block == Some(block) { Treatment::Train } else { Treatment::Frozen };
        }
        plan
    };
    let run = run(&base, &full, &config);
    let (first, second) = (only(1), only(2));
    let context = Context::dry(HOPPER);
    let mut card = Card::to_revise(&context, &base, &first, 1, run.options, &mut Silent).unwrap();
    let names = |card: &Card| {
        card.decoder().active().iter().map(|&i| card.decoder().trainables()[i].name.clone()).collect::<Vec<_>>()
    };
    let of = |plan: &Plan| plan.trained().map(|entry| entry.tensor.clone()).collect::<BTreeSet<_>>();
    card.follow(&base, &first).unwrap();
    card.prepare(None).unwrap();
    assert_eq!(names(&card).into_iter().collect::<BTreeSet<_>>(), of(&first));
    let before = card.forecast(&run.batch).unwrap();

    card.adopt(&base, &second, &[], 1).unwrap();
    card.follow(&base, &second).unwrap();
    card.prepare(None).unwrap();
    assert_eq!(names(&card).into_iter().collect::<BTreeSet<_>>(), of(&second));
    let after = card.forecast(&run.batch).unwrap();
    assert_eq!(after.gradients_bytes, before.gradients_bytes);
    // The block that stopped keeps its f32 numbers and loses its two moments.
    let trained: u64 = base.inventory.tensors.iter().filter(|t| t.block == Some(2)).map(|t| t.len() as u64).sum();
    assert!(after.optimizer_bytes - before.optimizer_bytes <= 4 * trained, "{after:?} {before:?}");
    let kept: BTreeSet<_> = card.trainable().unwrap().specs().into_iter().map(|spec| spec.name).collect();
    assert_eq!(kept, of(&first).union(&of(&second)).cloned().collect());

    // Back to the first: the same order as if nothing had been between, so that sums are made in the same order.
    let order = |card: &mut Card, plan: &Plan| {
        card.follow(&base, plan).unwrap();
        names(card)
    };
    let again = order(&mut card, &first);
    let mut fresh = Card::to_revise(&context, &base, &first, 1, run.options, &mut Silent).unwrap();
    assert_eq!(again, order(&mut fresh, &first));
}

#[test]
fn adapters_that_begin_at_a_pick_are_those_of_a_plan_that_had_them() {
    let packed = "[policy]\nname = \"qlora\"\nrank = 4\n";
    let dora = "[policy]\nname = \"lora\"\nrank = 4\ndora = true\n";
    for (policy, family) in [(LORA, "tiny"), (packed, "tiny"), (LORA, "qwen2"), (dora, "tiny"), (dora, "qwen2")] {
        let (base, all, config) = planned(family, policy);
        let some = |begun: &dyn Fn(usize, &str) -> bool| {
            let mut plan = all.clone();
            for (entry, info) in plan.entries.iter_mut().zip(&base.inventory.tensors) {
                if !info.block.is_some_and(|block| begun(block, &info.role)) {
                    entry.treatment = Treatment::Frozen;
                }
            }
            plan
        };
        let first = some(&|block, role| block == 1 && role != "q_proj");
        let second = some(&|block, role| block == 0 || role == "q_proj");
        let context = Context::dry(HOPPER);
        let options = CardOptions::of(&config);
        let mut card = Card::to_revise(&context, &base, &first, 7, options, &mut Silent).unwrap();
        let active = |card: &Card| {
            let trainables = card.decoder().trainables();
            card.decoder().active().iter().map(|&i| trainables[i].name.clone()).collect::<Vec<_>>()
        };
        card.follow(&base, &first).unwrap();
        card.prepare(None).unwrap();
        let before = active(&card);
        for plan in [&second, &all] {
            card.adopt(&base, plan, &[], 7).unwrap();
            card.follow(&base, plan).unwrap();
            card.prepare(None).unwrap();
        }
        // In the order of a model that had all of them, and in the same form in checkpoints.
        let mut whole = Card::to_revise(&context, &base, &all, 7, options, &mut Silent).unwrap();
        whole.follow(&base, &all).unwrap();
        assert_eq!(active(&card), active(&whole), "{family} {policy}");
        let specs = |card: &Card| {
            let specs = card.trainable().unwrap().specs();
            specs.into_iter().map(|spec| format!("{} {:?} {:?}", spec.name, spec.dtype, spec.shape)).collect::<Vec<_>>()
        };
        assert_eq!(specs(&card), specs(&whole));
        // What ceases stays in them, and begins again without being laid out anew.
        card.adopt(&base, &first, &[], 7).unwrap();
        card.follow(&base, &first).unwrap();
        assert_eq!((active(&card), specs(&card)), (before, specs(&whole)));
    }
}

#[test]
fn a_resumed_run_is_predicted_with_what_rests() {
    for policy in [LORA, "[policy]\nname = \"lora\"\nrank = 4\ndora = true\n"] {
        let (base, ever, config) = planned("tiny", policy);
        let rests = |block: Option<usize>| block.is_some_and(|block| block < 2);
        let mut now = ever.clone();
        for (entry, info) in now.entries.iter_mut().zip(&base.inventory.tensors) {
            if rests(info.block) {
                entry.treatment = Treatment::Frozen;
            }
        }
        let adapted = ever.trained().map(|entry| entry.tensor.clone());
        let staying: BTreeSet<String> = now.trained().map(|entry| entry.tensor.clone()).collect();
        let resting: BTreeSet<String> = adapted.filter(|name| !staying.contains(name)).collect();
        assert!(!resting.is_empty() && !staying.is_empty());
        let all = Run { resting: Some(BTreeSet::new()), ..run(&base, &ever, &config) };
        let resumed = Run { resting: Some(resting), ..all.clone() };
        let [whole, predicted] = [&all, &resumed].map(|run| forecast(run, 8 << 30, HOPPER).unwrap().unwrap());
        // Blocks below keep nothing; gradients and states keep their place.
        assert!(predicted.activations_bytes < whole.activations_bytes, "{predicted:?} {whole:?}");
        assert_eq!(predicted.gradients_bytes, whole.gradients_bytes);
        assert_eq!(predicted.optimizer_bytes, whole.optimizer_bytes);

        // What the run goes on with, which has all states once each adapter was updated.
        let context = Context::dry(HOPPER);
        let mut card = Card::to_revise(&context, &base, &ever, 1, resumed.options, &mut Silent).unwrap();
        card.decoder_mut().set_budget(Some(8 << 30));
        let mut taken = Vec::new();
        for plan in [&now, &ever, &now] {
            card.follow(&base, plan).unwrap();
            card.prepare(None).unwrap();
            taken.push(card.forecast(&resumed.batch).unwrap().total());
        }
        let predicted = predicted.total();
        for taken in [taken[0], taken[2]] {
            assert!(predicted >= taken && 100 * predicted <= 105 * taken, "{taken} of {predicted}");
        }
        assert_eq!(taken[1], whole.total());
    }
}

#[test]
fn what_is_kept_in_another_storage_from_a_pick_on_is_laid_out_as_if_it_always_had_been() {
    let packed = |block_size, double_quantization| Storage::Nf4 { block_size, double_quantization };
    let dora = "[policy]\nname = \"lora\"\nrank = 4\ndora = true\n";
    for (policy, family) in [(LORA, "tiny"), (LORA, "qwen2"), (dora, "llama3")] {
        let (base, all, config) = planned(family, policy);
        // Adapters of the second block from the start, and those of the first with the last pick.
        let plan = |storages: [Storage; 2], begun: bool| {
            let mut plan = all.clone();
            for (entry, info) in plan.entries.iter_mut().zip(&base.inventory.tensors) {
                let adapted = info.block == Some(1) || begun && info.block == Some(0);
                if !adapted {
                    entry.treatment = Treatment::Frozen;
                }
                if info.block != Some(1) {
                    entry.storage = match info.role.as_str() {
                        "k_proj" | "up_proj" | "o_proj" => storages[0],
                        "v_proj" | "down_proj" | "embed_tokens" => storages[1],
                        _ => entry.storage,
                    };
                }
            }
            plan
        };
        let context = Context::dry(HOPPER);
        let run = run(&base, &all, &config);
        let begin = |plan: &Plan| {
            let mut card = Card::to_revise(&context, &base, plan, 7, run.options, &mut Silent).unwrap();
            card.follow(&base, plan).unwrap();
            card.prepare(None).unwrap();
            card
        };
        let mut before = plan([Storage::F32, packed(64, true)], false);
        let mut card = begin(&before);
        for (storages, begun) in [
            ([packed(64, true), Storage::Int8], false),
            ([packed(32, false), Storage::Bf16], false),
            ([Storage::Bf16, Storage::F32], false),
            ([Storage::Int8, packed(64, true)], true),
        ] {
            let after = plan(storages, begun);
            let other = |(i, (old, new)): (usize, (&Entry, &Entry))| (old.storage != new.storage).then_some(i);
            let anew: Vec<usize> = before.entries.iter().zip(&after.entries).enumerate().filter_map(other).collect();
            assert!(anew.len() > 4);
            card.adopt(&base, &after, &anew, 7).unwrap();
            card.follow(&base, &after).unwrap();
            card.prepare(None).unwrap();
            let (late, early) = (card.forecast(&run.batch).unwrap(), begin(&after).forecast(&run.batch).unwrap());
            assert_eq!(late.activations_bytes, early.activations_bytes, "{family} {storages:?}");
            assert_eq!((late.adapters_bytes, late.optimizer_bytes), (early.adapters_bytes, early.optimizer_bytes));
            before = after;
        }
    }
}

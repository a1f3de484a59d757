//! DoRA's factors are made again when something that they are made of has changed, and never else: a model that is trained, set and
//! asked in turn computes the bits of one that is built of the same numbers at that moment.

use liftplan_engine::Batch;
use liftplan_engine::cuda::{Context, Decoder, Kind, Options, Role, Slot, Storage, Treatment, Update};

use crate::Report;
use crate::picks::numbers;
use crate::script::{adapters, begin};
use crate::tiny::{
    Case, Dora, Method, OPTIONS, Values, batch, on_card, on_card_with, shape, storage, treatment, values,
};

/// A weight that begins to train under its adapter, and stops.
const WHOLE: Slot = (Some(1), Role::K);

pub fn check(context: &Context, report: &mut Report) {
    let case = |name, method| Case {
        name,
        method,
        shape: shape(128, 192, 2, 1, 64, 203, false),
        head_norms: true,
        biases: true,
        options: Options::default(),
        rank: 4,
        dropout: 0.0,
        nf4: (64, true),
        dora: Dora::All,
    };
    for case in [
        case("norms kept, dora", Method::Lora),
        Case { dropout: 0.2, ..case("norms kept, dora with dropout", Method::Lora) },
        Case { dora: Dora::Some, ..case("norms kept, dora beside lora", Method::Lora) },
        case("norms kept, dora beside whole weights", Method::Mixed),
        case("norms kept, dora over nf4", Method::Qlora),
        case("norms kept, dora over int8", Method::Ilora),
    ] {
        if report.wants(case.name) {
            Kept { context, case: &case, report, values: values(&case) }.check();
        }
    }
}

/// What a model says of two evaluated batches, a prompt behind them and its next token, and a prompt again.
#[derive(Debug, PartialEq)]
struct Said {
    losses: Vec<Vec<f32>>,
    logits: Vec<Vec<f32>>,
}

struct Kept<'a> {
    context: &'a Context,
    case: &'a Case,
    report: &'a mut Report,
    /// The numbers of all weights and adapters, but those that have trained since.
    values: Values,
}

impl Kept<'_> {
    fn check(mut self) {
        self.steps();
        self.inside();
        self.numbers_set();
        self.counted();
        self.begun();
        if !matches!(self.case.method, Method::Qlora | Method::Ilora) {
            self.whole();
        }
    }

    fn batch(&self, seed: u32) -> Batch {
        batch(self.case.shape.vocab, seed)
    }

    fn built(&self) -> Decoder {
        on_card(self.context, self.case, &self.values)
    }

    fn said(&self, decoder: &mut Decoder, prompt_first: bool) -> Said {
        let one = self.batch(5);
        let prompt = |decoder: &mut Decoder| {
            let mut cache = decoder.cache();
            let logits = decoder.extend(&mut cache, &one.ids[..7], false).unwrap();
            [logits, decoder.extend(&mut cache, &one.ids[7..8], true).unwrap()]
        };
        let mut logits = Vec::new();
        if prompt_first {
            logits.extend(prompt(decoder));
        }
        let losses = [5, 6].map(|seed| decoder.losses(&self.batch(seed)).unwrap()).into();
        logits.extend(prompt(decoder));
        if !prompt_first {
            logits.extend(prompt(decoder));
        }
        Said { losses, logits }
    }

    /// Whether `decoder` says what one says that is built of its numbers, and something else than `before`; gives what it says.
    fn is_as_built(&mut self, decoder: &mut Decoder, what: &str, before: Option<&Said>) -> Said {
        let mut values = self.values.clone();
        for (name, numbers) in numbers(self.context, decoder) {
            if let Some(place) = values.get_mut(&name) {
                place.2 = numbers;
            }
        }
        let prompt_first = what.len().is_multiple_of(2);
        let found = self.said(decoder, prompt_first);
        let mut built = on_card(self.context, self.case, &values);
        let expected = self.said(&mut built, prompt_first);
        self.report.holds(&format!("{}: {what}", self.case.name), found == expected && before != Some(&found));
        found
    }

    fn pass(&self, decoder: &mut Decoder, seed: u32) -> f64 {
        decoder.set_dropout(3, u64::from(seed));
        let batch = self.batch(seed);
        decoder.accumulate(&batch, 1.0 / batch.target_count() as f32).unwrap().sum
    }

    fn update(&self, decoder: &mut Decoder) {
        decoder.update(&OPTIONS, &updates(decoder), 1.0).unwrap();
    }

    fn step(&self, decoder: &mut Decoder, seed: u32) {
        decoder.clear_grads();
        self.pass(decoder, seed);
        self.update(decoder);
    }

    fn grads(&self, decoder: &Decoder) -> Vec<Vec<f32>> {
        decoder.trainables().iter().map(|trainable| trainable.grad(self.context).unwrap()).collect()
    }

    /// Steps with evaluations between and without; several passes of one step.
    fn steps(&mut self) {
        let mut decoder = self.built();
        let mut said = self.is_as_built(&mut decoder, "as it was built", None);
        for step in 0..3 {
            self.step(&mut decoder, step);
            said = self.is_as_built(&mut decoder, &format!("behind step {step}"), Some(&said));
        }
        let mut alone = self.built();
        (0..3).for_each(|step| self.step(&mut alone, step));
        let same = numbers(self.context, &alone) == numbers(self.context, &decoder);
        self.report.holds(&format!("{}: evaluations change no step", self.case.name), same);

        // Passes that are added up, the second one behind an evaluation.
        let mut of_passes = Vec::new();
        for between in [false, true] {
            let decoder = if between { &mut decoder } else { &mut alone };
            decoder.clear_grads();
            let mut losses = vec![self.pass(decoder, 7)];
            if between {
                self.said(decoder, true);
            }
            losses.push(self.pass(decoder, 8));
            of_passes.push((losses, self.grads(decoder)));
            self.update(decoder);
        }
        self.report.holds(&format!("{}: passes of one step", self.case.name), of_passes[0] == of_passes[1]);
        self.is_as_built(&mut decoder, "behind a step of two passes", Some(&said));
    }

    /// Updates inside the pass.
    fn inside(&mut self) {
        let options = Options { update_in_backward: true, ..self.case.options };
        let case = Case { options, shape: self.case.shape.clone(), ..*self.case };
        let mut decoder = on_card(self.context, &case, &self.values);
        let mut said = self.is_as_built(&mut decoder, "updates inside the pass, before any", None);
        for step in 0..2 {
            let (batch, updates) = (self.batch(step), updates(&decoder));
            let scale = 1.0 / batch.target_count() as f32;
            decoder.set_dropout(3, u64::from(step));
            decoder.accumulate_and_update(&batch, scale, &OPTIONS, &updates).unwrap();
            let what = format!("updates inside the pass, behind step {step}");
            said = self.is_as_built(&mut decoder, &what, Some(&said));
        }
    }

    /// A matrix of each kind that is set to other numbers; magnitudes that begin anew; states that come back.
    fn numbers_set(&mut self) {
        let mut decoder = self.built();
        let mut said = self.is_as_built(&mut decoder, "before numbers are set", None);
        for kind in ["A", "B", "M"] {
            let name = format!("1.{:?}.{kind}", WHOLE.1);
            let index = decoder.trainables().iter().position(|trainable| trainable.name == name).unwrap();
            let halved: Vec<f32> = self.values[&name].2.iter().map(|x| 0.5 * x).collect();
            decoder.set_value(index, &halved).unwrap();
            said = self.is_as_built(&mut decoder, &format!("behind another {kind}"), Some(&said));
        }
        decoder.begin_magnitudes(|_| true).unwrap();
        self.is_as_built(&mut decoder, "behind magnitudes that begin anew", Some(&said));
        let index = decoder.trainables().len();
        let refused = decoder.set_value(index, &[]).is_err();
        self.report.holds(&format!("{}: what is not there is not set", self.case.name), refused);
    }

    /// How many pieces of work norms take: none where nothing changed, the products and norms behind an update, squares too behind
    /// numbers that were set.
    fn counted(&mut self) {
        let mut decoder = self.built();
        let batch = self.batch(5);
        let pieces = |decoder: &mut Decoder| {
            self.context.start_profile();
            decoder.losses(&batch).unwrap();
            let times = self.context.end_profile().unwrap().unwrap();
            times.by_kind.get(&Kind::Adapter).map_or(0, |(_, pieces)| *pieces as isize)
        };
        let first = pieces(&mut decoder);
        let none = pieces(&mut decoder);
        let again = pieces(&mut decoder);
        decoder.clear_grads();
        self.pass(&mut decoder, 0);
        let behind_a_pass = pieces(&mut decoder);
        self.update(&mut decoder);
        let behind_an_update = pieces(&mut decoder);
        // Of the adapters only the last block's train.
        decoder.set_active(|name| name.starts_with("2.")).unwrap();
        let _ = pieces(&mut decoder);
        self.step(&mut decoder, 1);
        let behind_a_rest = pieces(&mut decoder);
        let mut all = [0, 0];
        for block in 0..self.case.shape.blocks {
            all = [0, 1].map(|i| all[i] + self.with_magnitudes(block)[i]);
        }
        let [groups, layers] = all;
        let of_last: isize = self.with_magnitudes(2).iter().sum();
        let expected = [groups + 2 * layers, 0, 0, groups + layers, of_last];
        let found = [first, again, behind_a_pass, behind_an_update, behind_a_rest].map(|pieces| pieces - none);
        println!("    {found:?} pieces of work for norms, {expected:?} expected");
        self.report.holds(&format!("{}: norms are made when they must be", self.case.name), found == expected);
    }

    /// Groups of a block that have magnitudes, for each of which norms take a product; and layers, for each of which they take a launch.
    fn with_magnitudes(&self, block: usize) -> [isize; 2] {
        let has = |role: &&Role| match treatment(self.case, (Some(block), **role), &format!("{block}.{role:?}")) {
            Treatment::Adapt(adapter) => adapter.magnitude.is_some(),
            _ => false,
        };
        let groups = [&[Role::Q, Role::K, Role::V][..], &[Role::O], &[Role::Gate, Role::Up], &[Role::Down]];
        let layers = groups.map(|roles| roles.iter().filter(has).count() as isize);
        [layers.iter().filter(|&&count| count > 0).count() as isize, layers.iter().sum()]
    }

    /// Adapters that begin behind passes without them, beside some that trained.
    fn begun(&mut self) {
        let early = |slot: Slot| slot.1 == Role::K && slot.0 > Some(0);
        let kept = |slot| storage(self.case, slot);
        let mut decoder = on_card_with(self.context, self.case, &self.values, early, kept);
        self.said(&mut decoder, false);
        self.step(&mut decoder, 0);
        let before = self.said(&mut decoder, false);
        begin(&mut decoder, &self.values, &adapters(self.case, |slot| !early(slot)));
        decoder.set_active(|_| true).unwrap();
        let said = self.is_as_built(&mut decoder, "behind adapters that begin", Some(&before));
        self.step(&mut decoder, 1);
        self.is_as_built(&mut decoder, "behind a step with them", Some(&said));
    }

    /// A weight that is set, trains under its adapter, and stops.
    fn whole(&mut self) {
        let mut decoder = self.built();
        let mut said = self.is_as_built(&mut decoder, "before a weight is set", None);
        let name = format!("1.{:?}", WHOLE.1);
        let (index, new) = decoder.adopt(WHOLE, &name, Storage::F32).unwrap();
        assert!(new, "it was frozen");
        let other = |numbers: &[f32], by: f32| numbers.iter().map(|x| by * x).collect::<Vec<_>>();
        decoder.set_value(index, &other(&self.values[&name].2, 1.5)).unwrap();
        said = self.is_as_built(&mut decoder, "behind a weight that was set", Some(&said));
        decoder.begin(WHOLE).unwrap();
        for step in 0..2 {
            self.step(&mut decoder, step);
            let what = format!("behind step {step} of a weight under its adapter");
            said = self.is_as_built(&mut decoder, &what, Some(&said));
        }
        decoder.cease(WHOLE).unwrap();
        self.step(&mut decoder, 2);
        said = self.is_as_built(&mut decoder, "behind a step after it stopped", Some(&said));
        let numbers = decoder.trainables()[index].value(self.context).unwrap();
        decoder.set_value(index, &other(&numbers, 0.5)).unwrap();
        said = self.is_as_built(&mut decoder, "behind one that stopped and is set", Some(&said));
        self.step(&mut decoder, 3);
        self.is_as_built(&mut decoder, "behind a step with it", Some(&said));
    }
}

/// Updates of all that trains now.
fn updates(decoder: &Decoder) -> Vec<Update> {
    decoder.active().into_iter().map(|index| Update { index, lr: 2e-3, weight_decay: 0.01 }).collect()
}

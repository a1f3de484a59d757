//! Opening real models: the golden families, and SmolLM2 from its GGUF file.

use std::path::Path;
use std::time::Instant;

use liftplan::config::Config;
use liftplan::data;
use liftplan::eval::likelihood;
use liftplan::model::open;
use liftplan::report::{Event, Observer, Silent};
use liftplan::train::open_model;
use liftplan_tests::{golden, smollm2};

/// Fails on a warning: these models give no reason for one.
struct NoWarnings;

impl Observer for NoWarnings {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Warning(text) = event {
            panic!("unexpected warning: {text}");
        }
    }
}

#[test]
fn every_golden_family_opens_and_its_tensors_are_those_of_the_file() {
    let families =
        [("llama", "llama"), ("llama3", "llama"), ("mistral", "mistral"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];
    for (name, family) in families {
        let directory = golden::folder().join("families").join(name).join("model");
        let model = open(directory.to_str().expect("a path"), Path::new("/"), &mut NoWarnings)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(model.spec.architecture, family);
        let stored = candle_core::safetensors::load(directory.join("model.safetensors"), &candle_core::Device::Cpu);
        let stored = stored.expect("the golden weights");
        for info in &model.inventory.tensors {
            let expected = golden::numbers(&stored[&info.name]);
            assert_eq!(model.read_f32(&info.name).expect("a tensor"), expected, "{name} {}", info.name);
        }
        assert!(model.chat_template.is_some() && model.tokenizer.eos().is_some());
    }
}

#[test]
fn smollm2_opens_quickly_and_tokenises_as_its_original() {
    let Some(path) = smollm2::model_or_skip() else { return };
    let started = Instant::now();
    let model = open(path.to_str().expect("a path"), Path::new("/"), &mut NoWarnings).unwrap_or_else(|e| panic!("{e}"));
    let opened = started.elapsed();
    for tensor in &model.inventory.tensors {
        model.read_f32(&tensor.name).unwrap_or_else(|e| panic!("{e}"));
    }
    println!("opened in {opened:?}, all tensors as f32 after {:?}", started.elapsed());

    assert_eq!(model.summary().parameters, 134_515_008);
    assert!(model.spec.tied && model.chat_template.is_some());
    let tokenizer = &model.tokenizer;
    assert_eq!(tokenizer.eos().map(|token| token.text.as_str()), Some("<|im_end|>"));
    let golden = smollm2::tokens();
    assert!(golden.len() > 150);
    for case in golden {
        let ids = tokenizer.encode(&case.text, true).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ids, case.ids, "{:?}", case.text);
        assert_eq!(tokenizer.decode(&ids, false).unwrap_or_else(|e| panic!("{e}")), case.text);
    }
}

/// A GPU judges labels packed, the processor from caches: it has to be the same question.
#[test]
fn labels_are_as_likely_packed_as_behind_a_cached_prompt() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let config = Config::load(&examples.join("quickstart.toml"), &[]).unwrap_or_else(|e| panic!("{e}"));
    let model = open_model(&config.model, Path::new("/"), Some(liftplan::config::Device::Cpu), &mut Silent);
    let model = model.unwrap_or_else(|e| panic!("{e}"));
    let file = examples.join("data/tickets/validation.jsonl");
    let data = data::load_files(&config.data, &[file], &[], &model.base, &mut Silent).unwrap_or_else(|e| panic!("{e}"));
    let (examples, labels) = (&data.examples[..12], &data.label_ids);
    let of = |found: liftplan::Result<Vec<Vec<f64>>>| found.unwrap_or_else(|e| panic!("{e}"));
    let cached = of(likelihood::from_caches(model.model(), examples, labels, |_| {}));
    let mut done = Vec::new();
    // Passes that hold a few documents each, so that an example's labels lie in several.
    let packed = of(likelihood::packed(model.model(), examples, labels, 150, |count| done.push(count)));
    assert_eq!((packed.len(), packed[0].len(), labels.len()), (12, labels.len(), 6));
    for (a, b) in cached.iter().flatten().zip(packed.iter().flatten()) {
        assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{a} and {b}");
    }
    assert!(cached.iter().all(|of_labels| of_labels.iter().all(|likelihood| *likelihood < 0.0)));
    assert!(done.len() > 12 && done.windows(2).all(|pair| pair[0] <= pair[1]) && done.last() == Some(&12), "{done:?}");
}

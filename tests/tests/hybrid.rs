//! Runs over quantised weights and runs of several policies, from training to every export: what is written is what was
//! trained, beside the base model as asked for.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use liftplan::checkpoint::{NamedTensor, Source, TensorFile};
use liftplan::config::Config;
use liftplan::eval::{Request, judge_with_bases};
use liftplan::export::{BaseWeights, Format, Options, export};
use liftplan::model::{self, BaseModel};
use liftplan::plan::{Storage, Treatment};
use liftplan::report::Silent;
use liftplan::train::{self, RunOptions, build::read, reopen};
use liftplan_engine::{Batch, Decoder, Weight};

struct Case {
    dir: tempfile::TempDir,
}

const QSPECTRUM: &str = "[policy]\nname = \"qspectrum\"\npercent = 50\n";
const MIXED: &str = "[policy]\nname = \"mixed\"\n[[policy.parts]]\nname = \"spectrum\"\npercent = 50\n\
                     [[policy.parts]]\nname = \"lora\"\nrank = 4\n";

impl Case {
    /// Trains a few steps of the tiny model of `family`.
    fn train(family: &str, policy: &str, more: &str) -> Self {
        Self::train_from(&golden_model(family), policy, more)
    }

    fn train_from(model: &Path, policy: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let row = |i: usize| format!("{{\"text\": \"{}{i}\"}}\n", "the weaver lifts thread ".repeat(1 + i % 5));
        fs::write(dir.path().join("train.jsonl"), (0..30).map(row).collect::<String>()).unwrap();
        fs::write(dir.path().join("test.jsonl"), (30..40).map(row).collect::<String>()).unwrap();
        let text = format!(
            "model = {model:?}\nout = \"run\"\nseed = 3\n\
             [data]\ntrain = \"train.jsonl\"\ntest = \"test.jsonl\"\nformat = \"text\"\n\
             [optimizer]\nlr = 0.01\n[train]\nsteps = 6\nbatch_size = 4\n{more}\n{policy}"
        );
        let config = Config::parse(&text, &dir.path().join("config.toml"), "config.toml", &[]).unwrap();
        train::run(&config, &RunOptions::default(), &mut Silent).unwrap();
        Self { dir }
    }

    fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn source(&self) -> Source {
        Source::open(&self.run(), None, &mut Silent).unwrap()
    }

    fn export(&self, name: &str, format: Format, base: Option<BaseWeights>) -> PathBuf {
        let out = self.dir.path().join(name);
        let options = Options { base, ..Options::default() };
        export(&self.run(), None, format, &out, &options, &mut Silent).unwrap();
        out
    }
}

fn golden_model(family: &str) -> PathBuf {
    liftplan_tests::golden::folder().join("families").join(family).join("model")
}

fn tensors(dir: &Path, file: &str) -> BTreeMap<String, NamedTensor> {
    let all = TensorFile::open(&dir.join(file)).unwrap().all().unwrap();
    all.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

/// The bytes of every tensor, whatever its type.
fn raw(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(dir.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect()
}

fn open(dir: &Path) -> BaseModel {
    model::open(dir.to_str().unwrap(), Path::new("/"), &mut Silent).unwrap()
}

fn losses(decoder: &Decoder) -> Vec<f32> {
    let ids: Vec<u32> = (4..40).collect();
    decoder.losses(&Batch::pack([(ids.as_slice(), vec![true; ids.len()].as_slice())])).unwrap()
}

#[test]
fn hf_of_qspectrum_is_the_original_checkpoint_with_only_the_trained_tensors_replaced() {
    let case = Case::train("qwen3", QSPECTRUM, "weights = \"f32\"");
    let source = case.source();
    let (before, after) = (
        tensors(&source.base.path, "model.safetensors"),
        tensors(&case.export("hf", Format::Hf, None), "model.safetensors"),
    );
    assert!(before.keys().eq(after.keys()));
    let mut trained = 0;
    for entry in &source.plan.entries {
        let changed = before[&entry.tensor].data.bytes() != after[&entry.tensor].data.bytes();
        assert_eq!(changed, entry.treatment == Treatment::Train, "{}", entry.tensor);
        trained += usize::from(changed);
    }
    assert_eq!(trained, 7, "half of two blocks' seven roles");
}

#[test]
fn hf_over_dequantised_weights_is_what_the_run_computed_with() {
    let case = Case::train("qwen3", QSPECTRUM, "weights = \"f32\"");
    let source = case.source();
    let after = open(&case.export("hf", Format::Hf, Some(BaseWeights::Dequantised)));
    for entry in source.plan.entries.iter().filter(|entry| entry.treatment == Treatment::Frozen) {
        let info = source.base.inventory.get(&entry.tensor).unwrap();
        let kept = read(&source.base, info, entry.storage).unwrap();
        assert_eq!(after.read_f32(&entry.tensor).unwrap(), *kept.as_f32(), "{}", entry.tensor);
    }
    let run = reopen(&case.run(), None, None, &mut Silent).unwrap();
    assert_eq!(run.kept_as, Some(Storage::Nf4 { block_size: 64, double_quantization: true }));
    let exported = train::open_model(after.path.to_str().unwrap(), Path::new("/"), None, &mut Silent).unwrap();
    assert_eq!(losses(&run.decoder), losses(&exported.decoder));
}

#[test]
fn packed_weights_are_written_as_bitsandbytes_has_them_and_read_as_they_are() {
    for (storage, more) in [("nf4", "double_quantization = true"), ("nf4", "double_quantization = false"), ("int8", "")]
    {
        let policy =
            format!("[policy]\nname = \"spectrum\"\npercent = 50\n[storage]\nfrozen = \"{storage}\"\n{more}\n");
        let case = Case::train("qwen3", &policy, "");
        let dir = case.export("packed", Format::Hf, Some(BaseWeights::Packed));
        let (source, packed) = (case.source(), open(&dir));
        assert_ne!(packed.hash, source.base.hash);
        for entry in &source.plan.entries {
            let info = source.base.inventory.get(&entry.tensor).unwrap();
            match (packed.packed(&entry.tensor).unwrap(), read(&source.base, info, entry.storage).unwrap()) {
                (Some(Weight::Nf4(found)), Weight::Nf4(made)) => assert_eq!(found, made, "{}", entry.tensor),
                (Some(Weight::Int8(found)), Weight::Int8(made)) => assert_eq!(found, made, "{}", entry.tensor),
                (None, Weight::F32(made)) if entry.treatment == Treatment::Frozen => {
                    assert_eq!(packed.read_f32(&entry.tensor).unwrap(), made, "{}", entry.tensor);
                }
                (None, Weight::F32(made)) => assert_ne!(packed.read_f32(&entry.tensor).unwrap(), made),
                (found, made) => panic!("{}: {found:?} where {} was made", entry.tensor, made.format()),
            }
        }
        let exported = train::open_model(dir.to_str().unwrap(), Path::new("/"), None, &mut Silent).unwrap();
        assert_eq!(losses(&reopen(&case.run(), None, None, &mut Silent).unwrap().decoder), losses(&exported.decoder));
        // Trained on: what was packed stays as it is.
        let policy =
            format!("[policy]\nname = \"full\"\ntargets = \"norm\"\n[storage]\nfrozen = \"{storage}\"\n{more}\n");
        let again = Case::train_from(&dir, &policy, "");
        let out = again.export("again", Format::Hf, Some(BaseWeights::Packed));
        let (before, after) = (raw(&dir), raw(&out));
        let is_packed = |name: &str| packed.packed(name).unwrap().is_some();
        let names = packed.inventory.tensors.iter().map(|info| info.name.as_str()).filter(|name| is_packed(name));
        let stems: Vec<&str> = names.filter_map(|name| name.strip_suffix("weight")).collect();
        assert_eq!(stems.len(), 7);
        for (name, tensor) in before.iter().filter(|(name, _)| stems.iter().any(|stem| name.starts_with(stem))) {
            assert!(*tensor == after[name], "{name}");
        }
        assert_ne!(before["model.norm.weight"], after["model.norm.weight"]);
    }
}

#[test]
fn a_checkpoint_that_transformers_saved_packed_is_read_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for (from, names) in [
        (liftplan_tests::golden::folder().join("quantised/checkpoint"), ["config.json", "model.safetensors"]),
        (golden_model("llama"), ["tokenizer.json", "tokenizer_config.json"]),
    ] {
        for name in names {
            fs::copy(from.join(name), dir.path().join(name)).unwrap();
        }
    }
    let (packed, original) = (open(dir.path()), open(&golden_model("llama")));
    let nf4 = Storage::Nf4 { block_size: 64, double_quantization: true };
    let mut found = 0;
    for info in &original.inventory.tensors {
        match (packed.packed(&info.name).unwrap(), read(&original, info, nf4).unwrap()) {
            (Some(Weight::Nf4(theirs)), Weight::Nf4(ours)) => {
                assert_eq!(theirs, ours, "{}", info.name);
                let Weight::Nf4(kept) = read(&packed, info, nf4).unwrap() else { panic!("{} was unpacked", info.name) };
                assert_eq!(kept, theirs);
                found += 1;
            }
            _ => assert_eq!(packed.read_f32(&info.name).unwrap(), original.read_f32(&info.name).unwrap()),
        }
    }
    assert_eq!(found, 14);
    // A run from it is the run from the original over the same storage.
    let policy = "[policy]\nname = \"qlora\"\nrank = 4\n";
    let runs = [dir.path().to_path_buf(), golden_model("llama")].map(|model| Case::train_from(&model, policy, ""));
    let [ours, theirs] =
        runs.map(|case| fs::read(case.run().join("checkpoints/step-6/trainable.safetensors")).unwrap());
    assert!(ours == theirs, "the adapters differ");
}

#[test]
fn a_delta_beside_its_base_makes_the_same_exports_as_its_run() {
    for policy in [QSPECTRUM, MIXED] {
        let case = Case::train("qwen3", policy, "");
        let delta = case.export("delta", Format::Delta, None);
        let size = fs::metadata(delta.join("delta.safetensors")).unwrap().len();
        assert!(size < fs::metadata(golden_model("qwen3").join("model.safetensors")).unwrap().len() / 2);
        let formats = match policy == MIXED {
            true => vec![Format::Hf, Format::Gguf, Format::Peft],
            false => vec![Format::Hf, Format::Gguf],
        };
        for format in formats {
            let from_run = case.export(&format!("run-{format}"), format, None);
            let out = case.dir.path().join(format!("delta-{format}"));
            let model = Some(golden_model("qwen3").display().to_string());
            export(&delta, None, format, &out, &Options { model, ..Options::default() }, &mut Silent).unwrap();
            for file in fs::read_dir(&from_run).unwrap() {
                let name = file.unwrap().file_name();
                assert!(fs::read(from_run.join(&name)).unwrap() == fs::read(out.join(&name)).unwrap(), "{name:?}");
            }
        }
    }
}

#[test]
fn a_delta_is_refused_beside_another_model_and_when_it_is_damaged() {
    let case = Case::train("qwen3", QSPECTRUM, "");
    let delta = case.export("delta", Format::Delta, None);
    let out = case.dir.path().join("out");
    let apply = |model: &str| {
        let options = Options { model: Some(golden_model(model).display().to_string()), ..Options::default() };
        export(&delta, None, Format::Hf, &out, &options, &mut Silent).unwrap_err()
    };
    assert!(apply("llama").message().contains("was not trained from"), "{}", apply("llama"));
    let file = delta.join("delta.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    assert!(apply("qwen3").message().ends_with("damaged: its content has changed"), "{}", apply("qwen3"));
    assert!(!out.exists());
}

#[test]
fn adapters_and_whole_weights_train_in_one_run_and_leave_in_every_form() {
    for policy in [
        MIXED,
        "[policy]\nname = \"mixed\"\n[[policy.parts]]\nname = \"lora\"\ntargets = [\"q_proj\", \"v_proj\"]\n\
         [[policy.parts]]\nname = \"full\"\ntargets = \"*.mlp.*\"\n[storage]\nfrozen = \"nf4\"\n",
    ] {
        let case = Case::train("qwen3", policy, "");
        let source = case.source();
        let count =
            |wanted: fn(&Treatment) -> bool| source.plan.entries.iter().filter(|e| wanted(&e.treatment)).count();
        let adapted = count(|treatment| matches!(treatment, Treatment::Adapt(_)));
        let trained = count(|treatment| *treatment == Treatment::Train);
        assert!(adapted > 0 && trained > 0, "{adapted} adapted, {trained} trained");
        for entry in &source.plan.entries {
            let moved = match &entry.treatment {
                Treatment::Frozen => continue,
                Treatment::Train => source.checkpoint.trainable.get(&entry.tensor).unwrap(),
                Treatment::Adapt(_) => {
                    let stem = entry.tensor.strip_suffix(".weight").unwrap();
                    source.checkpoint.trainable.get(&format!("{stem}.lora_B.weight")).unwrap()
                }
            };
            let start = match entry.treatment {
                Treatment::Train => source.base.read_f32(&entry.tensor).unwrap(),
                _ => vec![0.0; moved.data.len()],
            };
            assert_ne!(moved.data.to_f32().unwrap(), start, "{}", entry.tensor);
        }
        let adapter = tensors(&case.export("peft", Format::Peft, None), "adapter_model.safetensors");
        assert_eq!(adapter.len(), 2 * adapted + trained);
        let is_packed = source.plan.entries.iter().any(|entry| !entry.storage.can_train());
        let base = is_packed.then_some(BaseWeights::Dequantised);
        let merged = case.export("hf", Format::Hf, base);
        let exported = train::open_model(merged.to_str().unwrap(), Path::new("/"), None, &mut Silent).unwrap();
        let run = reopen(&case.run(), None, None, &mut Silent).unwrap();
        for (ours, theirs) in losses(&run.decoder).iter().zip(losses(&exported.decoder)) {
            assert!((ours - theirs).abs() < 1e-4, "{ours} against {theirs}");
        }
    }
}

#[test]
fn a_run_over_4_bits_is_also_judged_over_the_original_weights() {
    let case = Case::train("qwen3", QSPECTRUM, "");
    let request = Request { target: "run".into(), here: case.dir.path().to_path_buf(), ..Request::default() };
    let judgement = judge_with_bases(&request, &mut Silent).unwrap();
    let original = judgement.original_base.unwrap();
    assert_eq!(judgement.kept_as, "nf4");
    assert_ne!(judgement.record.eval_loss, original.eval_loss);
    assert_eq!(judgement.record.split, original.split);
    let plain = Case::train("qwen3", "[policy]\nname = \"lora\"\n", "");
    let request = Request { here: plain.dir.path().to_path_buf(), ..request };
    assert_eq!(judge_with_bases(&request, &mut Silent).unwrap().original_base, None);
}

//! Plans on a GPU that is not there: each method's model is laid out, what trains is what trains on the processor, and what a
//! GPU does not do is refused with a way out. With a GPU, tests/cuda/run.sh trains on it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use liftplan::checkpoint::TensorSource;
use liftplan::config::Config;
use liftplan::model::{self, BaseModel};
use liftplan::plan::Plan;
use liftplan::policy;
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan::train::build;
use liftplan::train::card::{Card, CardOptions, check};
use liftplan::train::trainable::Trainable;
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
    for more in [LORA, full, bf16, qlora] {
        let family = "tiny";
        let (base, plan, config) = planned(family, more);
        let context = Context::dry((9, 0));
        let options = CardOptions::of(&config).unwrap();
        let card = Card::on(&context, &base, &plan, 7, options, &mut Silent)
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
    for (more, message) in [
        (
            "[policy]\nname = \"lora\"\nrank = 4\ndora = true\n",
            "DoRA does not run on a GPU yet\n  help: set policy.dora to false, or set device to \"cpu\"",
        ),
        (
            "[policy]\nname = \"lora\"\nrank = 4\ndropout = 0.1\n",
            "dropout in adapters does not run on a GPU yet\n  help: set policy.dropout to 0, or set device to \"cpu\"",
        ),
        (
            "[storage]\nfrozen = \"int8\"\n[policy]\nname = \"lora\"\nrank = 4\n",
            "int8 storage does not run on a GPU yet\n  help: set storage.frozen to \"nf4\" or \"bf16\", or set device to \"cpu\"",
        ),
        (
            "[storage]\nfrozen = \"nf4\"\nblock_size = 128\n[policy]\nname = \"lora\"\nrank = 4\n",
            "a GPU keeps 4-bit weights in blocks of 64, not of 128\n  help: leave storage.block_size out, or set device to \"cpu\"",
        ),
        (
            "[storage]\nfrozen = \"nf4\"\n[policy]\nname = \"lora\"\nrank = 4\ntargets = [\"down_proj\"]\n",
            "a GPU keeps a weight in 4 bits if its columns are a multiple of 64\n  help: name it in storage.exclude, or set device \
             to \"cpu\"",
        ),
    ] {
        let (base, plan, _) = planned("llama", more);
        let error = check(&base, &plan).unwrap_err().to_string();
        assert!(error.starts_with("`model.layers.0.") && error.ends_with(message), "{error}");
    }
}

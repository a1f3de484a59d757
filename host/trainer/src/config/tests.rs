#![allow(clippy::unwrap_used)]

use super::*;

const MINIMAL: &str = "model = \"models/tiny\"\n[data]\ntrain = \"a.jsonl\"\n[policy]\nname = \"lora\"\nrank = 4\n";

fn parse(text: &str, overrides: &[&str]) -> Result<Config> {
    let overrides: Vec<_> = overrides.iter().map(|text| text.to_string()).collect();
    Config::parse(text, Path::new("/here/c.toml"), "c.toml", &overrides)
}

fn with(more: &str) -> String {
    format!("{MINIMAL}{more}")
}

#[track_caller]
fn refused(text: &str, overrides: &[&str], expected: &str) {
    let error = parse(text, overrides).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn defaults_are_filled_and_paths_are_seen_from_the_file() {
    let config = parse(MINIMAL, &[]).unwrap();
    assert_eq!(config.model, "models/tiny", "nothing lies there, and it reads as a hub id");
    assert_eq!(config.out, Path::new("/here/runs/c"));
    assert_eq!(config.train.length(), Length::Epochs(1.0));
    assert_eq!(config.policy.settings["rank"], 4);
    let moved = parse(MINIMAL, &["out=../x", "model=./models/tiny"]).unwrap();
    assert_eq!(moved.out, Path::new("/x"));
    assert_eq!(moved.model, "/here/models/tiny");
}

#[test]
fn sections_can_be_set_back_to_their_defaults() {
    let more = "[train]\nsteps = 20\n[optimizer]\nlr = 2e-4\n[storage]\nfrozen = \"nf4\"\n";
    let config = parse(&with(more), &[]).unwrap();
    let expected = parse(&with("[optimizer]\nlr = 2e-4\n"), &[]).unwrap();
    assert_eq!(config.with_defaults(&["train", "storage", "schedule"]).unwrap(), expected);
    assert_eq!(config.with_defaults(&[]).unwrap(), config);
}

#[test]
fn what_was_resolved_loads_again_as_the_same() {
    let more = "[policy.ranks]\n\"model.layers.[0-3].*\" = 2\n[train]\nsteps = 20\nweights = \"bf16\"\nbf16_update = \"master\"\n\
        eval_every = 3\nearly_stopping = { patience = 2 }\n[schedule]\nname = \"wsd\"\nwarmup_ratio = 0.1\n\
        [eval]\ntask = \"classification\"\nby = \"generation\"\n[optimizer]\nlr = 2e-4\n";
    let text = with(more).replace("[policy]", "validation_split = 0.1\n[policy]");
    for text in [MINIMAL, text.as_str()] {
        let config = parse(text, &[]).unwrap();
        let written = config.to_toml().unwrap();
        let again = Config::parse(&written, Path::new("/elsewhere/config.toml"), "config.toml", &[]).unwrap();
        assert_eq!(again, config, "{written}");
        assert_eq!(again.to_toml().unwrap(), written);
    }
}

#[test]
fn overrides_go_over_the_file() {
    let text = with("[train]\nepochs = 2\n");
    let config = parse(&text, &["train.steps=5", "optimizer.lr=1e-3", "policy.ranks.\"a.b\"=3", "seed=7"]).unwrap();
    assert_eq!(config.train.length(), Length::Steps(5), "an override drops what excludes it");
    assert_eq!(config.optimizer.lr, 1e-3);
    assert_eq!(config.policy.settings["ranks"]["a.b"], 3);
    assert_eq!(config.seed, 7);
    assert_eq!(parse(&text, &["model=org/name"]).unwrap().model, "org/name");
    refused(
        &text,
        &["train.steps"],
        "--set train.steps: there is no `=` in it\n  help: write it as path=value, for example --set train.steps=20",
    );
    refused(
        &text,
        &["train.steps=1O"],
        "--set train.steps=1O: `train.steps` must be a whole number of at least 0, not the string \"1O\"",
    );
    refused(
        &text,
        &["train.step=1"],
        "--set train.step=1: `train.step` is not a known setting\n  help: did you mean `train.steps`?",
    );
}

#[test]
fn unknown_keys_are_refused_with_line_and_suggestion() {
    refused(
        &with("[train]\nsetps = 3\n"),
        &[],
        "c.toml:8: `train.setps` is not a known setting\n  help: did you mean `train.steps`?",
    );
    refused(
        &with("[train]\nlr = 3e-4\n"),
        &[],
        "c.toml:8: `train.lr` is not a known setting\n  help: did you mean `optimizer.lr`?",
    );
    refused(
        &with("[optimizer]\nlearning_rate = 3e-4\n"),
        &[],
        "c.toml:8: `optimizer.learning_rate` is not a known setting\n  help: did you mean `optimizer.lr`?",
    );
    refused(
        &with("[trian]\nsteps = 3\n"),
        &[],
        "c.toml:7: `trian` is not a known setting\n  help: did you mean `train`?",
    );
    refused(
        &with("[train.early_stopping]\npatience = 3\nmindelta = 1\n"),
        &[],
        "c.toml:9: `train.early_stopping.mindelta` is not a known setting\n  \
         help: did you mean `train.early_stopping.min_delta`?",
    );
}

#[test]
fn wrong_types_and_values_name_the_place() {
    refused(
        &with("[train]\nsteps = \"ten\"\n"),
        &[],
        "c.toml:8: `train.steps` must be a whole number of at least 0, not the string \"ten\"",
    );
    refused(
        &with("[train]\nsteps = -1\n"),
        &[],
        "c.toml:8: `train.steps` must be a whole number of at least 0, not -1",
    );
    refused(&with("[train]\nsteps = 0\n"), &[], "c.toml:8: `train.steps` must be at least 1");
    refused(&with("[train]\nrecompute = 1\n"), &[], "c.toml:8: `train.recompute` must be true or false, not 1");
    refused(&with("[optimizer]\nlr = inf\n"), &[], "c.toml:8: `optimizer.lr` must be a finite number, not inf");
    refused(
        &with("[optimizer]\nbetas = [0.9]\n"),
        &[],
        "c.toml:8: `optimizer.betas`: it has 1 entries, expected an array of length 2",
    );
    refused(
        &with("[schedule]\nname = \"cosin\"\n"),
        &[],
        "c.toml:8: `schedule.name` cannot be \"cosin\"\n  \
         help: did you mean \"cosine\"? It can be \"constant\", \"linear\", \"cosine\" and \"wsd\"",
    );
    refused("train = 3\nmodel = \"x\"", &[], "c.toml:1: `train` must be a table, not 3");
    refused(
        "device = \"cuda:zero\"",
        &[],
        "c.toml:1: `device`: \"cuda:zero\" is not \"auto\", \"cpu\", \"cuda\" or \"cuda:\" and a GPU's number",
    );
    let syntax = parse("model = \"a\nseed = 1", &[]).unwrap_err().to_string();
    assert!(syntax.starts_with("c.toml:1:"), "{syntax}");
}

#[test]
fn contradictions_and_settings_without_effect_are_refused() {
    for (more, message) in [
        (
            "[train]\nsteps = 3\nepochs = 1\n",
            "c.toml:8: `train.steps` and `train.epochs` are both set, and each says how long to train",
        ),
        (
            "[train]\nbf16_update = \"master\"\n",
            "c.toml:8: `train.bf16_update` = \"master\" has no effect: the weights are kept in f32",
        ),
        ("[train]\neval_every = 2\n", "c.toml:8: `train.eval_every` has no effect: there is no validation data"),
        (
            "[train]\nearly_stopping = {patience = 2}\n",
            "c.toml:8: `train.early_stopping` has no effect: there are no evaluations for its patience of 2 to count",
        ),
        (
            "[train]\nbatch_size = 2\nmicro_batch_examples = 4\n",
            "c.toml:9: `train.micro_batch_examples` = 4 has no effect: a step has 2 examples in all",
        ),
        (
            "[schedule]\nwarmup_steps = 3\nwarmup_ratio = 0.1\n",
            "c.toml:8: `schedule.warmup_steps` = 3 and `schedule.warmup_ratio` = 0.1 are both set",
        ),
        (
            "[schedule]\nwarmup_steps = 3\n[train]\nsteps = 3\n",
            "c.toml:8: `schedule.warmup_steps` = 3 never ends: training has 3 steps",
        ),
        (
            "[schedule]\ndecay_ratio = 0.1\n",
            "c.toml:8: `schedule.decay_ratio` has no effect: only the schedule \"wsd\" has a decay phase",
        ),
        (
            "[schedule]\nname = \"constant\"\nmin_lr_ratio = 0.1\n",
            "c.toml:9: `schedule.min_lr_ratio` has no effect: a constant rate never falls",
        ),
        ("[eval]\nby = \"generation\"\n", "c.toml:8: `eval.by` has no effect: the task \"lm\" measures the loss only"),
        ("[eval]\nmax_new_tokens = 5\n", "c.toml:8: `eval.max_new_tokens` has no effect: nothing is generated"),
    ] {
        let error = parse(&with(more), &[]).unwrap_err();
        assert_eq!(error.message(), message);
        assert!(error.help_text().is_some(), "{message}: says no way out");
    }
}

#[test]
fn what_is_missing_is_named() {
    let first_line = |text: &str| parse(text, &[]).unwrap_err().message().to_string();
    assert_eq!(first_line(""), "`model` is missing");
    assert_eq!(first_line("model = \"x\""), "`data` is missing");
    assert_eq!(first_line("model = \"x\"\n[data]\ntrain = \"a\""), "`policy.name` is missing");
    let error = Config::load(Path::new("/nowhere/c.toml"), &[]).unwrap_err();
    assert!(error.message().starts_with("cannot read the configuration /nowhere/c.toml: "));
}

//! The memory that is predicted before a run is the memory that it takes.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::fmt::Write;
use std::fs;

use liftplan::report::Summary;
use liftplan_tests::command::liftplan;
use liftplan_tests::smollm2;

/// The five methods on SmolLM2-135M, two steps of a full micro-batch each, in processes of their own.
#[test]
fn the_peak_of_every_method_is_predicted() {
    let Some(model) = smollm2::model_or_skip() else { return };
    let model = model.canonicalize().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut rows = String::new();
    for i in 0..8 {
        let sentence = format!("Row {i}: the heddles rise as the plan says, and the shuttle goes through. ");
        writeln!(rows, "{}", serde_json::json!({ "text": sentence.repeat(12) })).unwrap();
    }
    fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
    let config = format!(
        "model = {:?}\n[data]\ntrain = \"rows.jsonl\"\nmax_length = 128\ntoo_long = \"truncate\"\n\
         [train]\nsteps = 2\nbatch_size = 4\nmicro_batch_tokens = 512\n[optimizer]\nlr = 1e-4\n",
        model.to_str().unwrap()
    );
    let methods = [
        ("lora", "[policy]\nname = \"lora\"\nrank = 8\n"),
        ("qlora", "[policy]\nname = \"qlora\"\nrank = 8\n"),
        ("spectrum", "[policy]\nname = \"spectrum\"\npercent = 25\n"),
        ("qspectrum", "[policy]\nname = \"qspectrum\"\npercent = 25\n"),
        ("full", "[policy]\nname = \"full\"\n"),
    ];
    let mut told = String::new();
    let mut wrong = Vec::new();
    for (name, policy) in methods {
        let file = dir.path().join(format!("{name}.toml"));
        fs::write(&file, format!("out = \"{name}\"\n{config}{policy}")).unwrap();
        let ran = liftplan(dir.path(), &["train", file.to_str().unwrap()]);
        assert_eq!(ran.code, Some(0), "{name}: {}", ran.stderr);
        let peak = Summary::read(&dir.path().join(name)).unwrap().peak_memory;
        let (predicted, measured) = (peak.predicted_bytes.unwrap() as f64, peak.measured_bytes.unwrap() as f64);
        let off = predicted / measured - 1.0;
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        writeln!(
            told,
            "{name:9} predicted {:6.0} MiB, measured {:6.0} MiB, {:+.1} %",
            mib(predicted),
            mib(measured),
            100.0 * off
        )
        .unwrap();
        if off.abs() > 0.15 {
            wrong.push(name);
        }
    }
    println!("{told}");
    assert!(wrong.is_empty(), "predictions that are more than 15 % off: {wrong:?}\n{told}");
}

//! Bad input of every kind, run through the binary: each gives the exit code and the message that its line in a table
//! says, word for word; nothing panics, and nothing that wasn't there before is left behind.
//!
//! The tables are in the modules, by theme. In messages, `{dir}` stands for the folder in which the command ran, and
//! `{pid}` for this test's process.

#![allow(clippy::unwrap_used)]

mod compare;
mod config;
mod data;
mod device;
mod fixture;
mod model;
mod output;
mod plan;
mod plugin;
mod quantised;

use fixture::Folder;
use liftplan_tests::command::{Ran, command, listing};

/// One bad input.
pub struct Case {
    /// What is bad.
    pub name: &'static str,
    /// Makes it so in a folder where everything is good.
    pub arrange: fn(&Folder),
    /// The command line.
    pub arguments: &'static [&'static str],
    /// The exit code.
    pub code: i32,
    /// Standard error from `error: ` on.
    pub message: &'static str,
}

/// Runs each case in a folder of its own and compares; tells all differences at once.
#[track_caller]
fn check(cases: &[Case]) {
    let mut differences = String::new();
    for case in cases {
        let folder = Folder::new();
        (case.arrange)(&folder);
        let before = listing(folder.path());
        let ran = run(&folder, case.arguments);
        let left: Vec<String> = differing(&before, &listing(folder.path()));
        let shown = folder.path().display().to_string();
        let process = format!("process {}", std::process::id());
        let all = ran.stderr.replace(&shown, "{dir}").replace(&process, "process {pid}");
        let message = all.find("error: ").map_or("", |at| &all[at..]).trim_end();
        let panicked = all.contains("panicked at") || ran.stderr.contains("RUST_BACKTRACE");
        if ran.code != Some(case.code) || message != case.message || panicked || !left.is_empty() {
            differences.push_str(&format!(
                "\n--- {}: exit code {:?}, expected {}\n--- said:\n{message}\n--- expected:\n{}\n",
                case.name, ran.code, case.code, case.message
            ));
            if panicked || message.is_empty() {
                differences.push_str(&format!("--- all of standard error:\n{all}\n"));
            }
            if !left.is_empty() {
                differences.push_str(&format!("--- left behind or changed: {left:?}\n"));
            }
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

fn run(folder: &Folder, arguments: &[&str]) -> Ran {
    let output = command(folder.path(), arguments).output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Paths that are new, gone, or of another length.
fn differing(
    before: &std::collections::BTreeMap<String, u64>,
    after: &std::collections::BTreeMap<String, u64>,
) -> Vec<String> {
    let paths: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    paths.into_iter().filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

#[test]
fn bad_configurations() {
    check(&config::CASES);
}

#[test]
fn bad_models() {
    check(&model::CASES);
}

#[test]
fn bad_data() {
    check(&data::CASES);
}

#[test]
fn plans_that_do_not_fit() {
    check(&plan::CASES);
}

#[test]
fn storage_that_does_not_fit() {
    check(&quantised::CASES);
}

#[test]
fn plugins_that_cannot_be() {
    check(&plugin::CASES);
}

#[test]
fn devices_that_cannot_be() {
    check(&device::CASES);
    // What is said without a GPU depends on what of its software is there.
    let survey = liftplan::device::survey();
    if survey.libraries.iter().any(|library| library.name == "libcuda" && !library.present) {
        check(&device::WITHOUT_DRIVER);
    }
}

#[test]
fn outputs_that_cannot_be() {
    check(&output::CASES);
}

#[test]
fn comparisons_that_cannot_be() {
    check(&compare::CASES);
}

#[test]
fn there_are_enough_of_them() {
    let cases = [
        &config::CASES[..],
        &model::CASES,
        &data::CASES,
        &plan::CASES,
        &plugin::CASES,
        &output::CASES,
        &compare::CASES,
    ];
    let names: std::collections::BTreeSet<&str> =
        cases.iter().flat_map(|cases| cases.iter().map(|case| case.name)).collect();
    assert_eq!(names.len(), cases.iter().map(|cases| cases.len()).sum::<usize>(), "two cases have the same name");
    assert!(names.len() >= 40, "{} cases", names.len());
}

#[test]
fn the_folder_in_which_nothing_is_bad_trains() {
    let folder = Folder::new();
    let ran = run(&folder, &["train", "c.toml"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn a_loss_that_is_no_number_stops_before_the_update_and_leaves_a_whole_record() {
    let folder = Folder::new();
    folder.change("model/model.safetensors", |bytes| {
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let ran = run(&folder, &["train", "c.toml"]);
    assert_eq!(ran.code, Some(6), "{}", ran.stderr);
    assert!(
        ran.stderr.contains(
            "error: step 1: the loss is not finite (NaN); nothing was updated\n  help: `model.norm.weight` has numbers \
             that are not finite: the base model is damaged; fetch or make it again; it was computed on train.jsonl:"
        ),
        "{}",
        ran.stderr
    );
    let summary = std::fs::read(folder.path().join("run/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    assert!(summary.to_string().contains("the loss is not finite"), "{summary}");
    assert!(!folder.path().join("run/checkpoints/step-1").exists());
}

/// A disk on which no file can grow beyond a size, which is as near to a full one as an ordinary user gets. Wherever the
/// run stops, what it leaves is whole.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full() {
    let mut messages = std::collections::BTreeSet::new();
    for half_kib in [0, 1, 3, 8, 20, 50, 70] {
        let folder = Folder::new();
        // A limit that is met sends SIGXFSZ, which is set aside so that writing fails as it does on a full disk.
        let script = format!("ulimit -f {half_kib}; trap '' XFSZ; exec \"$0\" \"$@\"");
        let mut limited = std::process::Command::new("sh");
        let plain = command(folder.path(), &["train", "c.toml"]);
        limited.arg("-c").arg(script).arg(plain.get_program()).args(plain.get_args()).current_dir(folder.path());
        let output = limited.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).replace(&folder.path().display().to_string(), "{dir}");
        assert_eq!(output.status.code(), Some(7), "{half_kib}: {said}");
        let message = &said[said.find("error: ").unwrap()..];
        assert!(message.contains("File too large (os error 27)"), "{half_kib}: {said}");
        assert!(!said.contains("panicked"), "{said}");
        messages.insert(message.lines().next().unwrap().to_string());
        for path in listing(folder.path()).keys() {
            assert!(!path.contains("tmp") && !path.contains("partial"), "{half_kib}: left {path}");
            if path.ends_with("plan.json") {
                liftplan::plan::file::read(&folder.path().join(path)).unwrap();
            } else if path.starts_with("run/") && path.ends_with(".json") {
                let text = std::fs::read(folder.path().join(path)).unwrap();
                serde_json::from_slice::<serde_json::Value>(&text).unwrap();
            }
        }
    }
    assert!(messages.len() >= 3, "the limits stop the run at different files: {messages:?}");
}

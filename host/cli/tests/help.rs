//! What the binary says about itself. That it has an integration test also makes `cargo test` build the binary, which
//! the end-to-end tests in `tests/` then run.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output, Stdio};

fn liftplan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_liftplan")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn help_lists_every_command_and_the_exit_codes() {
    let output = liftplan(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "inspect",
        "scan",
        "plan",
        "train",
        "data",
        "eval",
        "compare",
        "generate",
        "export",
        "doctor",
        "Exit codes:",
        "130",
    ] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let output = liftplan(&["--version"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("liftplan {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_exit_code_2_with_a_suggestion() {
    let output = liftplan(&["trian"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("'train'"));
}

#[test]
fn doctor_measures_this_machine() {
    let output = liftplan(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let machine: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(machine["threads"].as_u64().unwrap() >= 1);
    assert!(machine["matmul_gflops"].as_f64().unwrap() > 0.1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_liftplan")).arg("doctor").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: cannot write to standard output: No space left on device"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_liftplan"))
        .arg("doctor")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

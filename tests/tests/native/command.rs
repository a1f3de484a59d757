//! From `plugin install` to a trained run, through the binary.

use std::fs;
use std::path::Path;
use std::process::Command;

use liftplan_tests::command::{Ran, command};
use liftplan_tests::plugins::model;
use tempfile::TempDir;

use crate::build;

struct Project {
    dir: TempDir,
    /// Where this user keeps plugins.
    files: TempDir,
}

impl Project {
    fn new() -> Self {
        let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build::c("plugins/top-norm-c/top_norm.c", &[], &dir.path().join("top-norm.so"));
        fs::write(dir.path().join("train.jsonl"), "{\"text\": \"the weaver lifts a thread\"}\n".repeat(4)).unwrap();
        let project = Self { dir, files };
        project.configure("name = \"top-norm-c\"\npercent = 50");
        project
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn configure(&self, policy: &str) {
        let text = format!(
            "model = {:?}\nout = \"run\"\n[data]\ntrain = \"train.jsonl\"\nformat = \"text\"\n[policy]\n{policy}\n\
             [train]\nsteps = 2\nbatch_size = 2\n",
            model("qwen3")
        );
        fs::write(self.path().join("c.toml"), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command: Command = command(self.path(), arguments);
        let output = command.env("LIFTPLAN_PLUGINS", self.files.path()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], code: i32, message: &str) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(code), "{}", ran.stderr);
        assert!(ran.stderr.contains(message), "{message} is not in\n{}", ran.stderr);
        ran
    }

    #[track_caller]
    fn works(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        ran
    }

    fn sha256(&self) -> String {
        let info = self.works(&["plugin", "info", "top-norm.so", "--json"]);
        let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
        info["sha256"].as_str().unwrap().to_string()
    }
}

#[test]
fn a_library_is_installed_by_its_hash_trains_and_is_removed() {
    let project = Project::new();
    let sha256 = project.sha256();
    project.fails(&["plan", "c.toml"], 2, "there is no policy \"top-norm-c\"");
    project.fails(&["plugin", "install", "top-norm.so", "--yes"], 5, &format!("add --allow-native {sha256}"));
    project.fails(
        &["plugin", "install", "top-norm.so", "--yes", "--allow-native", "abc"],
        5,
        "--allow-native names abc",
    );
    let allow = ["plugin", "install", "top-norm.so", "--allow-native", &sha256];
    let unasked = project.fails(&allow, 2, "nothing was installed: there is nobody to ask");
    assert!(unasked.stderr.contains("WARNING    native code can do whatever you can"), "{}", unasked.stderr);
    assert!(!project.path().join("liftplan.lock").exists());

    project.works(&[&allow[..], &["--yes"]].concat());
    let listed = project.works(&["plugin", "list"]);
    assert!(listed.stdout.starts_with("top-norm-c 1.0.0         native "), "{}", listed.stdout);
    let info = project.works(&["plugin", "info", "top-norm-c"]);
    assert!(info.stdout.contains("native library, plugin API 0.1"), "{}", info.stdout);
    assert!(info.stdout.contains("percent          how many of the weights train"), "{}", info.stdout);
    project.works(&["train", "c.toml"]);
    let plan = liftplan::plan::file::read(&project.path().join("run/plan.json")).unwrap();
    assert_eq!(plan.origin.policy, "top-norm-c");

    project.works(&["plugin", "remove", "top-norm-c", "--purge"]);
    project.fails(&["plan", "c.toml"], 2, "there is no policy \"top-norm-c\"");
    assert_eq!(project.works(&["plugin", "list"]).stdout.trim(), "no plugin is installed here");
}

#[test]
fn a_lock_that_came_with_a_project_allows_nothing_on_another_machine() {
    let project = Project::new();
    let sha256 = project.sha256();
    project.works(&["plugin", "install", "top-norm.so", "--yes", "--allow-native", &sha256]);
    let elsewhere = Project { files: tempfile::tempdir().unwrap(), ..project };
    elsewhere.fails(&["plan", "c.toml"], 5, "its file is not on this machine");
    let restore = ["plugin", "install"];
    elsewhere.fails(&restore, 5, "top-norm-c 1.0.0 is native code, which can do whatever you can");
    elsewhere.configure("plugin = \"top-norm.so\"");
    elsewhere.fails(&["plan", "c.toml"], 2, "is native code, and was not allowed to run");
    elsewhere.works(&[&restore[..], &["--allow-native", &sha256]].concat());
    elsewhere.works(&["plan", "c.toml"]);
}

#[test]
fn a_library_that_changed_after_it_was_installed_does_not_run() {
    let project = Project::new();
    let sha256 = project.sha256();
    project.works(&["plugin", "install", "top-norm.so", "--yes", "--allow-native", &sha256]);
    let file = project.files.path().join(&sha256);
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    project.fails(&["train", "c.toml"], 5, "was changed: its sha256 is ");
    assert!(!project.path().join("run").exists());
}

//! `liftplan compare`, run as a user would, on a model of a few thousand weights: what it finds, what it runs again and
//! what not, what it does when a cell fails or somebody stops it, and that test data choose nothing.

#![allow(clippy::unwrap_used)]

mod planning;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use liftplan::report::Silent;
use liftplan_tests::command::{Ran, command, liftplan};
use liftplan_tests::golden;
use serde_json::Value;
use tempfile::TempDir;

const BASE: &str = r#"model = "model"
[data]
train = "train.jsonl"
[policy]
name = "lora"
rank = 2
[train]
batch_size = 2
[optimizer]
lr = 1e-3
[eval]
task = "classification"
"#;

const COMPARISON: &str = r#"base = "base.toml"
out = "out"
baseline = "LoRA"
latency = { prompt_tokens = 4, new_tokens = 2, repeats = 1 }
[run.data]
validation = "validation.jsonl"
test = "test.jsonl"
[budget]
steps = 3
[search]
seeds = [1, 2]
learning_rates = [1e-4, 1e-2]
[forgetting]
data = "general.jsonl"
[[method]]
name = "LoRA"
policy = { name = "lora", rank = 2 }
[[method]]
name = "LoRA again </script><script>window.hacked=1</script>"
policy = { name = "lora", rank = 2 }
[[method]]
name = "Spectrum"
policy = { name = "spectrum", percent = 50 }
"#;

/// A folder with a model, data and a comparison.
fn folder(comparison: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(golden::folder().join("families/llama/model")).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
    }
    let words = ["cat", "dog", "bird", "train", "rain", "phone", "door", "tree", "roof", "mat"];
    let rows = |from: usize, count: usize| -> String {
        (from..from + count)
            .map(|i| {
                let label = if i % 2 == 0 { "calm" } else { "busy" };
                let (a, b) = (words[i % words.len()], words[(i * 7 + 3) % words.len()]);
                format!("{{\"text\": \"the {a} and the {b} {i}\", \"label\": \"{label}\"}}\n")
            })
            .collect()
    };
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("train.jsonl", &rows(0, 16));
    write("validation.jsonl", &rows(100, 8));
    write("test.jsonl", &rows(200, 8));
    write("general.jsonl", "{\"text\": \"the cat sat on the mat\"}\n{\"text\": \"rain falls on the roof\"}\n");
    write("base.toml", BASE);
    write("c.toml", comparison);
    folder
}

fn compare(folder: &Path, more: &[&str]) -> Ran {
    liftplan(folder, &[&["compare", "c.toml"], more].concat())
}

fn report(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("out/report.json")).unwrap()).unwrap()
}

fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["methods"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap()
}

/// When each cell ended, by its path.
fn cells(folder: &Path) -> BTreeMap<String, SystemTime> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.join("out/cells")];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with("cell.json") {
                let name = next.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, entry.metadata().unwrap().modified().unwrap());
            }
        }
    }
    found
}

#[test]
fn what_a_comparison_finds_and_what_it_never_does_again() {
    let folder = folder(COMPARISON);
    // A relative directory: cells that read each other's files find them all the same.
    let ran = compare(folder.path(), &["--out", "out"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("LoRA (baseline)") && ran.stdout.contains("report.html"), "{}", ran.stdout);
    assert!(ran.stderr.contains("on the validation data") && ran.stderr.contains("best so far"), "{}", ran.stderr);

    let found = report(folder.path());
    assert_eq!((&found["schema"], &found["version"]), (&"liftplan-compare".into(), &1.into()));
    assert_eq!(found["setup"]["devices"], serde_json::json!(["cpu"]));
    let names: Vec<&str> =
        found["methods"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names[0], "LoRA");
    assert_eq!(names[2..], ["Spectrum", "Spectrum · random layers"]);
    // The same method under another name: no difference, in every run.
    let again = row(&found, names[1]);
    assert_eq!(again["vs_baseline"]["finding"], "identical");
    assert_eq!(again["vs_baseline"]["p_value"], 1.0);
    let said = found["summary"].to_string();
    assert!(said.contains("No difference from LoRA in any run: LoRA again"), "{said}");

    for row in found["methods"].as_array().unwrap() {
        assert_eq!(row["status"], "ok", "{row}");
        assert_eq!(row["seeds"].as_array().unwrap().len(), 2);
        assert_eq!(row["tried"].as_array().unwrap().len(), 2);
        for measure in ["score", "forgetting", "tokens_per_s", "train_s", "trainable_parameters", "deployed", "layers"]
        {
            assert!(!row[measure].is_null(), "{measure} of {row}");
        }
        for score in ["accuracy", "macro_f1", "ece", "loss"] {
            assert!(row["scores"][score]["mean"].is_number(), "{score} of {row}");
        }
        if cfg!(target_os = "linux") {
            assert!(row["memory"]["measured_bytes"].as_u64().unwrap() > 1 << 20);
        }
        assert_eq!(row["curve"].as_array().unwrap().len(), 3);
        // The learning rate that was chosen has the best score of those tried.
        let tried = row["tried"].as_array().unwrap();
        let best = tried.iter().map(|t| t["validation"].as_f64().unwrap()).fold(f64::MIN, f64::max);
        let chosen = tried.iter().find(|t| t["lr"] == row["lr"]).unwrap();
        assert_eq!(chosen["validation"].as_f64().unwrap(), best);
    }
    let forms = |name: &str| -> Vec<String> {
        row(&found, name)["latency"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| t["form"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(forms("LoRA"), ["adapter", "merged"]);
    assert_eq!(forms("Spectrum"), ["weights"]);
    // The control trains as many layers as the selection, parameter for parameter, and has its own row only.
    let (spectrum, control) = (row(&found, "Spectrum"), row(&found, "Spectrum · random layers"));
    assert_eq!(spectrum["trainable_parameters"], control["trainable_parameters"]);
    assert_eq!(control["control_of"], "Spectrum");
    assert_eq!(spectrum["vs_control"]["with"], "Spectrum · random layers");
    assert!(spectrum["selection"]["seconds"].as_f64().unwrap() > 0.0);

    // No process that trained or was judged for the choice had been told of the test data.
    for (cell, _) in cells(folder.path()) {
        let config = fs::read_to_string(folder.path().join(&cell).join("config.toml")).unwrap();
        let of_test = cell.contains("/test-") || cell.contains("untouched-model");
        assert_eq!(config.contains("test.jsonl"), of_test, "{cell}");
    }

    // The page holds the name as text.
    let page = fs::read_to_string(folder.path().join("out/report.html")).unwrap();
    assert!(!page.contains("<script>window.hacked") && page.contains("\\u003c/script>"));
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(!page.contains("https://") && !page.contains("src=") && !page.contains("{{data}}"));
    let markdown = fs::read_to_string(folder.path().join("out/report.md")).unwrap();
    // The configuration stands in a fence, where nothing means anything.
    let (told, _) = markdown.split_once("```").unwrap();
    assert!(told.contains("| LoRA (baseline) |") && !told.contains("<script>"), "{told}");

    // Again: nothing runs. With a changed test file: only the tests do.
    let before = cells(folder.path());
    assert_eq!(compare(folder.path(), &["--json"]).code, Some(0));
    assert_eq!(cells(folder.path()), before);
    let test = fs::read_to_string(folder.path().join("test.jsonl")).unwrap();
    fs::write(folder.path().join("test.jsonl"), test.replacen("the", "a", 1)).unwrap();
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let after = cells(folder.path());
    assert!(before.iter().all(|(cell, time)| after.get(cell) == Some(time)));
    let new: Vec<&String> = after.keys().filter(|cell| !before.contains_key(*cell)).collect();
    assert_eq!(new.len(), 2 * 4 + 1, "{new:?}");
    assert!(new.iter().all(|cell| cell.contains("/test-") || cell.contains("untouched-model")), "{new:?}");
}

const SMALL: &str = r#"base = "base.toml"
out = "out"
controls = false
latency = false
[run.data]
test = "test.jsonl"
[budget]
steps = 3
[[method]]
name = "LoRA"
policy = { name = "lora", rank = 2 }
"#;

#[test]
fn a_cell_that_fails_is_a_row_and_the_rest_goes_on() {
    let methods = "\n[[method]]\nname = \"wild\"\npolicy = { name = \"full\" }\nlearning_rates = [1e38]\n\
                   [[method]]\nname = \"none\"\npolicy = { name = \"spectrum\", percent = 1 }\n";
    let folder = folder(&format!("{SMALL}{methods}"));
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = report(folder.path());
    assert_eq!(row(&found, "LoRA")["status"], "ok");
    assert_eq!(row(&found, "wild")["status"], "failed");
    assert!(row(&found, "wild")["reason"].as_str().unwrap().contains("not finite"), "{}", row(&found, "wild"));
    assert!(row(&found, "none")["reason"].as_str().unwrap().contains("leaves nothing to train"));
    assert!(found["summary"].to_string().contains("wild failed: "), "{}", found["summary"]);
    // What failed stays so, unless asked otherwise.
    let before = cells(folder.path());
    compare(folder.path(), &[]);
    assert_eq!(cells(folder.path()), before);
    compare(folder.path(), &["--retry"]);
    assert_ne!(cells(folder.path()), before);
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_needs_more_memory_than_its_budget_is_a_row_too() {
    let folder = folder(SMALL);
    let ran = compare(folder.path(), &["--set", "budget.memory=\"1 MB\""]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = report(folder.path());
    assert_eq!(row(&found, "LoRA")["status"], "out_of_memory");
    assert!(row(&found, "LoRA")["reason"].as_str().unwrap().contains("the budget is"));
    assert!(ran.stdout.contains("LoRA ran out of memory"), "{}", ran.stdout);
}

#[test]
fn budgets_of_tokens_and_of_time_become_steps() {
    let folder = folder(&SMALL.replace("steps = 3", "tokens = 100"));
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let found = report(folder.path());
    let (steps, tokens) = (&row(&found, "LoRA")["steps"], row(&found, "LoRA")["tokens"].as_u64().unwrap());
    let before_the_last = tokens - tokens / steps.as_u64().unwrap();
    assert!(tokens >= 100 && before_the_last < 100, "{steps} steps, {tokens} tokens");

    let folder = self::folder(&SMALL.replace("steps = 3", "seconds = 0.05"));
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(row(&report(folder.path()), "LoRA")["steps"].as_u64().unwrap() >= 1);
    assert!(cells(folder.path()).keys().any(|cell| cell.contains("probe-lora")));
}

#[cfg(unix)]
#[test]
fn a_command_of_the_users_makes_the_score() {
    let score = "[score]\nname = \"answers\"\nbetter = \"higher\"\ncommand = [\"sh\", \"score.sh\"]\n[search]\nseeds = [3, 4]\n";
    let folder = folder(&SMALL.replace("[[method]]", &format!("{score}[[method]]")));
    fs::write(folder.path().join("score.sh"), "echo counting >&2; grep -c '\"answer\":\"[a-z]*\"'").unwrap();
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = report(folder.path());
    assert_eq!(row(&found, "LoRA")["score"]["mean"], 8.0);
    assert_eq!(found["base"]["scores"]["answers"], 8.0);

    fs::write(folder.path().join("score.sh"), "echo about half").unwrap();
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let reason = row(&report(folder.path()), "LoRA")["reason"].as_str().unwrap().to_string();
    assert_eq!(reason, "`score.command` (sh score.sh) printed \"about half\", which is no number");
}

/// Not only its weights: the same words become other tokens, or stand in another frame.
#[test]
fn a_model_that_reads_otherwise_is_another_model() {
    let folder = folder(SMALL);
    let template = folder.path().join("model/chat_template.jinja");
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let before = cells(folder.path());
    let text = fs::read_to_string(&template).unwrap();
    fs::write(&template, text.clone() + "{# more #}").unwrap();
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let after = cells(folder.path());
    assert_eq!(after.len(), 2 * before.len(), "{after:?}");
    fs::write(&template, text).unwrap();
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    assert_eq!(cells(folder.path()), after);
}

#[cfg(unix)]
#[test]
fn a_comparison_that_was_stopped_goes_on_where_it_was() {
    let folder = folder(
        &SMALL.replace("steps = 3", "steps = 400").replace("[[method]]", "[search]\nseeds = [1, 2, 3]\n[[method]]"),
    );
    let mut child = command(folder.path(), &["compare", "c.toml"]).spawn().unwrap();
    // Into the second run.
    let begun = Instant::now();
    let runs = || {
        fs::read_dir(folder.path().join("out/cells"))
            .map_or(0, |all| all.flatten().filter(|e| e.path().join("run/metrics.jsonl").is_file()).count())
    };
    while runs() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(120), "the second run never begins");
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!folder.path().join("out/report.json").exists());
    let before = cells(folder.path());

    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let after = cells(folder.path());
    assert!(before.iter().all(|(cell, time)| after.get(cell) == Some(time)), "{before:?}\n{after:?}");
    let found = report(folder.path());
    let seeds = row(&found, "LoRA")["seeds"].as_array().unwrap();
    assert_eq!(seeds.len(), 3);
    // The run that was stopped went on from its checkpoint, and its record reads as one that was not.
    for seed in seeds {
        let metrics =
            fs::read_to_string(folder.path().join("out").join(seed["run"].as_str().unwrap()).join("metrics.jsonl"));
        let steps = metrics.unwrap().lines().filter(|line| line.contains("\"grad_norm\"")).count();
        assert_eq!(steps, 400);
    }
}

/// Waits until a file of this name appears below the folder, and says where.
#[cfg(unix)]
fn appears(folder: &Path, name: &str) -> std::path::PathBuf {
    let begun = Instant::now();
    loop {
        let mut folders = vec![folder.to_path_buf()];
        while let Some(next) = folders.pop() {
            for path in fs::read_dir(&next).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.ends_with(name) {
                    return path;
                }
                folders.extend(path.is_dir().then_some(path));
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{name} never appears");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Killed with its child, in the middle of a run; and then what is left of the run is held by a process that still saves.
#[cfg(target_os = "linux")]
#[test]
fn a_comparison_that_was_killed_goes_on_and_waits_for_what_it_left_behind() {
    let folder = folder(&SMALL.replace("steps = 3", "steps = 400"));
    let mut killed = command(folder.path(), &["compare", "c.toml"]).spawn().unwrap();
    let metrics = appears(folder.path(), "metrics.jsonl");
    killed.kill().unwrap();
    killed.wait().unwrap();
    // What was killed had a child, which is asked to stop when its parent dies, and saves its checkpoint.
    let run = metrics.parent().unwrap();
    let lock = fs::File::open(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    let again = command(folder.path(), &["compare", "c.toml"]).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(cells(folder.path()).keys().all(|cell| !cell.contains("/lora")), "it did not wait");
    lock.unlock().unwrap();
    assert_eq!(again.wait_with_output().unwrap().status.code(), Some(0));
    let found = report(folder.path());
    assert_eq!(row(&found, "LoRA")["status"], "ok", "{}", row(&found, "LoRA"));
    assert_eq!(fs::read_to_string(metrics).unwrap().lines().filter(|line| line.contains("\"grad_norm\"")).count(), 400);
}

/// As a service manager does it: everybody is asked to stop, and the child is the first to.
#[cfg(target_os = "linux")]
#[test]
fn a_child_that_others_stop_has_not_failed() {
    let folder = folder(&SMALL.replace("steps = 3", "steps = 400"));
    let mut child = command(folder.path(), &["compare", "c.toml"]).spawn().unwrap();
    appears(folder.path(), "metrics.jsonl");
    let of_thread = |path: std::path::PathBuf| fs::read_to_string(path.join("children")).unwrap_or_default();
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten();
    let children: String = tasks.map(|task| of_thread(task.path())).collect();
    let stopped = std::process::Command::new("kill").args(["-TERM", children.trim()]).status().unwrap();
    assert!(stopped.success(), "{children}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let ran = compare(folder.path(), &[]);
    assert_eq!((ran.code, &row(&report(folder.path()), "LoRA")["status"]), (Some(0), &"ok".into()), "{}", ran.stderr);
}

/// A command that never ends is ended with the comparison.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_reaches_the_command_that_makes_the_score() {
    let score = "[score]\ncommand = [\"sh\", \"-c\", \"sleep 300 & echo $! > began; wait\"]\n";
    let folder = folder(&SMALL.replace("[[method]]", &format!("{score}[[method]]")));
    let mut child = command(folder.path(), &["compare", "c.toml"]).spawn().unwrap();
    let began = appears(folder.path(), "began");
    let begun = Instant::now();
    let mut pid = String::new();
    while pid.trim().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        pid = fs::read_to_string(&began).unwrap();
    }
    let interrupted = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    while state().is_ok_and(|state| !state.contains(") Z ")) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the command lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A rule that chooses anew while it trains has a counterpart that draws anew at the same steps.
#[test]
fn a_moving_choice_has_a_control_that_moves() {
    let plugin = golden::folder().join("../fixtures/plugins/badam.wasm");
    let method = format!("policy = {{ plugin = '{}', every = 2 }}\n", plugin.display());
    let moving = SMALL
        .replace("controls = false", "controls = true")
        .replace("steps = 3", "steps = 6")
        .replace("policy = { name = \"lora\", rank = 2 }\n", &method)
        .replace("LoRA", "moving");
    let folder = folder(&moving);
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = report(folder.path());
    let (method, control) = (row(&found, "moving"), row(&found, "moving · random layers"));
    assert_eq!((&control["status"], &control["control_of"]), (&"ok".into(), &"moving".into()), "{control}");
    assert_eq!((&method["picks"], &control["picks"]), (&2.into(), &2.into()));
    assert_eq!(method["vs_control"]["with"], "moving · random layers");
    // Of each role as many train at a time: what each pick's record counts.
    let trained = |row: &Value| -> Vec<Value> {
        let run = folder.path().join("out").join(row["seeds"][0]["run"].as_str().unwrap());
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let records = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| !record["pick"].is_null()).map(|record| record["trained_tensors"].clone()).collect()
    };
    assert_eq!(trained(method).len(), 2);
    assert_eq!(trained(method), trained(control));
}

/// Two methods that are the same, whose names no file system tells apart, at the same time.
#[test]
fn identical_methods_come_out_as_no_difference_also_side_by_side() {
    let twins = SMALL.replace("\"LoRA\"", "\"🐙\"").replace("[[method]]", "[search]\nseeds = [1, 2]\n[[method]]")
        + "[[method]]\nname = \"🙈\"\npolicy = { name = \"lora\", rank = 2 }\n";
    let folder = folder(&twins);
    let ran = compare(folder.path(), &["--set", "jobs=2"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = report(folder.path());
    assert_eq!((&row(&found, "🐙")["status"], &row(&found, "🙈")["status"]), (&"ok".into(), &"ok".into()));
    assert_eq!(row(&found, "🙈")["vs_baseline"]["finding"], "identical");
    assert_ne!(row(&found, "🐙")["seeds"][0]["run"], row(&found, "🙈")["seeds"][0]["run"]);
    // With one learning rate nothing is judged before the test, and what is best there is told then.
    assert!(ran.stderr.contains("on the test data") && ran.stderr.contains("best so far"), "{}", ran.stderr);
}

#[test]
fn several_at_a_time_find_the_same() {
    let two = SMALL.replace("[[method]]", "[search]\nseeds = [1, 2, 3, 4]\n[[method]]");
    let scores = |jobs: &str| {
        let folder = folder(&two);
        let ran = compare(folder.path(), &["--set", &format!("jobs={jobs}")]);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        row(&report(folder.path()), "LoRA")["seeds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|seed| seed["scores"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(scores("1"), scores("3"));
}

/// Every example loads, asks for the runs that its header promises, and makes a plan for each method: nothing trains.
#[test]
fn every_example_is_a_comparison_whose_methods_plan() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/compare");
    // Methods, learning rates of each, seeds.
    let expected: BTreeMap<&str, [usize; 3]> = BTreeMap::from([
        ("choosing", [4, 1, 1]),
        ("hybrid", [4, 3, 3]),
        ("memory-24gb", [6, 1, 1]),
        ("methods-notes", [6, 3, 3]),
        ("methods-smollm2", [6, 3, 3]),
        ("methods-tickets", [6, 3, 3]),
        ("notes", [2, 1, 3]),
        ("own-plugin", [3, 2, 3]),
        ("quick", [3, 2, 3]),
        ("tickets", [2, 1, 5]),
    ]);
    let mut loaded = BTreeMap::new();
    let paths: Vec<_> = fs::read_dir(examples).unwrap().flatten().map(|entry| entry.path()).collect();
    for path in paths {
        let (Some(name), Some("toml")) = (path.file_stem(), path.extension().and_then(|e| e.to_str())) else {
            continue;
        };
        let name = name.to_str().unwrap().to_string();
        let comparison = match liftplan::compare::Comparison::load(&path, &[]) {
            Ok(comparison) => comparison,
            // The plugin is built first, by the command that the example names; here its kept copy stands for it.
            Err(error) if error.message().contains("`policy.plugin`") => {
                let built = golden::folder().join("../fixtures/plugins/badam.wasm");
                let text = fs::read_to_string(&path).unwrap();
                let text = text.replace("../../plugins/target/plugins/badam.wasm", built.to_str().unwrap());
                let copy = path.with_file_name(format!(".{name}-{}.toml", std::process::id()));
                fs::write(&copy, text).unwrap();
                let comparison = liftplan::compare::Comparison::load(&copy, &[]);
                fs::remove_file(copy).unwrap();
                comparison.unwrap()
            }
            Err(error) => panic!("{}: {error}", path.display()),
        };
        let shared: Vec<_> = comparison.methods.iter().map(|m| (&m.config.data, &m.config.train.steps)).collect();
        assert!(shared.windows(2).all(|pair| pair[0] == pair[1]), "{name}: data and budget differ between methods");
        for method in &comparison.methods {
            let config = method.run(method.learning_rates[0], comparison.seeds[0]);
            // Those over SmolLM2 plan where somebody has fetched it.
            if !Path::new(&config.model).exists() {
                continue;
            }
            let base = liftplan::model::open(&config.model, Path::new(""), &mut Silent).unwrap();
            let plan = liftplan::train::plan(&config, &base, &mut Silent);
            let plan = plan.unwrap_or_else(|error| panic!("{name}, {}: {error}", method.name));
            assert!(plan.summary(&base.inventory).trainable_parameters > 0, "{name}, {}", method.name);
        }
        let rates = comparison.methods[0].learning_rates.len();
        loaded.insert(name, [comparison.methods.len(), rates, comparison.seeds.len()]);
    }
    assert_eq!(loaded, expected.into_iter().map(|(name, counts)| (name.to_string(), counts)).collect());
}

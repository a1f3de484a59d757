//! Planning is measured once for the methods whose planning is the same work, and for no others.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use liftplan_tests::golden;
use serde_json::Value;

use super::{SMALL, cells, compare, folder, report, row};

/// The comparison of these methods: the lines of each, below its name.
fn of(methods: &[(&str, &str)]) -> String {
    let (head, _) = SMALL.split_once("[[method]]").unwrap();
    let methods = methods.iter().map(|(name, lines)| format!("[[method]]\nname = \"{name}\"\n{lines}\n"));
    methods.fold(head.to_string(), |text, method| text + &method)
}

/// The cells in which planning was measured.
fn plannings(folder: &Path) -> Vec<String> {
    cells(folder).into_keys().filter(|cell| cell.contains("cells/plan-")).collect()
}

/// How many tensors of each role are treated and kept in each way, by the run's plan.
fn counts(folder: &Path, row: &Value) -> BTreeMap<String, usize> {
    let plan = folder.join("out").join(row["seeds"][0]["run"].as_str().unwrap()).join("plan.json");
    let plan: Value = serde_json::from_str(&fs::read_to_string(plan).unwrap()).unwrap();
    let mut counts = BTreeMap::new();
    for entry in plan["entries"].as_array().unwrap() {
        let role = entry["tensor"].as_str().unwrap().rsplit('.').nth(1).unwrap().to_string();
        *counts.entry(format!("{role} {} {}", entry["treatment"], entry["storage"])).or_default() += 1;
    }
    counts
}

const SPECTRUM: &str = "policy = { name = \"spectrum\", percent = 50 }";
const OVER_4_BITS: &str =
    "policy = { name = \"qspectrum\", percent = 50 }\noptimizer = { lr = 3e-4, name = \"adamw8bit\" }";

#[test]
fn one_rule_over_any_storage_is_measured_once_and_each_method_has_its_own_plan() {
    let bf16 = format!("{SPECTRUM}\ntrain = {{ weights = \"bf16\", recompute = true }}");
    let methods = [
        ("Spectrum", SPECTRUM),
        ("over 4 bits", OVER_4_BITS),
        ("bf16", &bf16),
        ("by norm", "policy = { name = \"spectrum\", percent = 50, statistic = \"spectral_norm\" }"),
    ];
    let text = of(&methods).replace("controls = false", "controls = true");
    let folder = folder(&text);
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("1 of 2: planning for Spectrum and 2 more: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("2 of 2: planning for by norm: "), "{}", ran.stderr);
    assert_eq!(plannings(folder.path()).len(), 2);

    let found = report(folder.path());
    let of_one = |name: &str| row(&found, name)["selection"].clone();
    let same = ["Spectrum", "over 4 bits", "bf16"];
    for name in same {
        let others: Vec<&str> = same.into_iter().filter(|other| *other != name).collect();
        assert_eq!(of_one(name)["shared_with"], serde_json::json!(others));
        for figure in ["seconds", "memory_bytes"] {
            assert_eq!(of_one(name)[figure], of_one("Spectrum")[figure], "{name}");
        }
    }
    assert!(of_one("by norm")["shared_with"].is_null());
    assert_ne!(of_one("by norm")["seconds"], of_one("Spectrum")["seconds"]);
    // Each method's plan is the one that its run begins with, and its counterpart is like it in everything but which layers.
    for (name, _) in methods {
        let (method, control) = (row(&found, name), row(&found, &format!("{name} · random layers")));
        assert_eq!((&method["status"], &control["status"]), (&"ok".into(), &"ok".into()), "{method}\n{control}");
        assert_eq!(method["selection"]["plan_hash"], method["seeds"][0]["plan_hash"], "{name}");
        assert_eq!(counts(folder.path(), method), counts(folder.path(), control), "{name}");
    }
    assert!(counts(folder.path(), row(&found, "over 4 bits")).keys().any(|kept| kept.contains("nf4")));
    assert_ne!(of_one("over 4 bits")["plan_hash"], of_one("Spectrum")["plan_hash"]);
    let told = "Spectrum, over 4 bits and bf16 take ";
    assert!(found["summary"].to_string().contains(told), "{}", found["summary"]);

    // Another order, other names and another method with the rule: nothing is measured again.
    let before = cells(folder.path());
    let again = [
        ("a name", OVER_4_BITS),
        methods[0],
        methods[3],
        ("late", "policy = { name = \"spectrum\", percent = 50 }\noptimizer = { lr = 1e-5 }"),
    ];
    fs::write(folder.path().join("c.toml"), of(&again)).unwrap();
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let after = cells(folder.path());
    assert!(before.iter().all(|(cell, time)| after.get(cell) == Some(time)), "{before:?}\n{after:?}");
    assert_eq!(plannings(folder.path()).len(), 2);
    assert!(
        after
            .keys()
            .filter(|cell| !before.contains_key(*cell))
            .all(|cell| cell.contains("a-name") || cell.contains("late"))
    );
}

#[test]
fn a_planning_that_fails_is_run_once_and_is_the_reason_of_each_method_that_shares_it() {
    let none = "policy = { name = \"spectrum\", percent = 1 }";
    let other = format!("{none}\nstorage = {{ frozen = \"int8\" }}");
    // Only its storage is wrong: the rule is not.
    let idle = "policy = { name = \"full\" }\nstorage = { frozen = \"int8\" }";
    let folder = folder(&of(&[
        ("none", none),
        ("none in int8", &other),
        ("full", "policy = { name = \"full\" }"),
        ("idle", idle),
    ]));
    let ran = compare(folder.path(), &["--retry"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("planning for none and none in int8: failed: ").count(), 1, "{}", ran.stderr);
    let found = report(folder.path());
    for (name, reason) in [
        ("none", "leaves nothing to train"),
        ("none in int8", "leaves nothing to train"),
        ("idle", "`storage.frozen` = \"int8\" has no effect"),
    ] {
        let row = row(&found, name);
        assert_eq!(row["status"], "failed");
        assert!(row["reason"].as_str().unwrap().contains(reason), "{row}");
    }
    assert_eq!(row(&found, "full")["status"], "ok");
    assert_eq!(plannings(folder.path()).len(), 2);
}

/// It could ask how weights are kept; what it cannot see is how it is trained.
#[test]
fn a_plugin_plans_for_itself_over_each_storage() {
    let file = golden::folder().join("../fixtures/plugins/badam.wasm");
    let plugin = format!("policy = {{ plugin = '{}', every = 2 }}", file.display());
    let slow = format!("{plugin}\noptimizer = {{ lr = 1e-5 }}");
    let packed = format!("{plugin}\nstorage = {{ frozen = \"int8\" }}");
    let folder = folder(&of(&[("fast", &plugin), ("slow", &slow), ("packed", &packed)]));
    let ran = compare(folder.path(), &[]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let found = report(folder.path());
    assert_eq!(row(&found, "fast")["selection"]["shared_with"], serde_json::json!(["slow"]));
    assert!(row(&found, "packed")["selection"]["shared_with"].is_null());
    assert_eq!(plannings(folder.path()).len(), 2);
    assert!(plannings(folder.path()).iter().all(|cell| cell.contains("plan-badam-")));
}

/// A file that a part of a mixed policy reads is an input as any other.
#[test]
fn what_a_part_reads_is_an_input_of_the_planning_and_of_the_run() {
    let folder = folder("");
    let list = folder.path().join("list.yaml");
    let write = |block: usize| {
        fs::write(&list, format!("unfrozen_parameters:\n- model.layers.{block}.mlp.up_proj\n")).unwrap();
    };
    let parts = format!(
        "{{ name = \"spectrum\", unfrozen = '{}' }}, {{ name = \"lora\", targets = \"q_proj\" }}",
        list.display()
    );
    let mixed = format!("policy = {{ name = \"mixed\", parts = [{parts}] }}");
    fs::write(folder.path().join("c.toml"), of(&[("mixed", &mixed)])).unwrap();
    write(0);
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let first = row(&report(folder.path()), "mixed").clone();
    assert_eq!(first["status"], "ok", "{first}");
    write(1);
    assert_eq!(compare(folder.path(), &[]).code, Some(0));
    let second = row(&report(folder.path()), "mixed").clone();
    assert_ne!(first["seeds"][0]["plan_hash"], second["seeds"][0]["plan_hash"]);
    assert_ne!(first["files"], second["files"]);
    assert_eq!(plannings(folder.path()).len(), 2);
}

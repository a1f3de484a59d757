//! The report of made-up results: what it says in words, and that no text in it is taken for anything else.

use serde_json::{Value, json};

use super::*;
use crate::compare::report::words::{number, signed};

/// Three runs, a tenth of a percent apart in speed.
fn seeds(score: f64) -> Value {
    let run = |seed: u64| {
        json!({ "seed": seed, "scores": { "accuracy": score }, "general_loss": null, "plan_hash": "h", "run": "r",
                "tokens_per_s": 100.0 + 0.1 * seed as f64, "train_s": 1.0, "memory_bytes": 5 })
    };
    json!([run(1), run(2), run(3)])
}

/// Changes each seed's number.
fn each_seed(row: &mut Value, key: &str, value: impl Fn(usize) -> f64) {
    for (i, seed) in row["seeds"].as_array_mut().unwrap().iter_mut().enumerate() {
        seed[key] = value(i).into();
    }
}

fn row(name: &str, score: f64, memory: u64, seconds: f64) -> Value {
    json!({
        "name": name, "policy": "lora", "settings": {}, "control_of": null, "status": "ok", "reason": null,
        "tried": [{ "lr": 0.001, "validation": 0.5 }, { "lr": 0.01, "validation": 0.6 }], "lr": 0.01,
        "seeds": seeds(score), "score": { "mean": score, "interval": { "low": score - 0.01, "high": score + 0.01 } }, "scores": {},
        "vs_baseline": null, "vs_base": null, "vs_control": null, "curve": [],
        "memory": { "predicted_bytes": null, "measured_bytes": memory, "kinds": {} },
        "tokens_per_s": 100.0, "train_s": seconds, "steps": 10, "tokens": 1000, "selection": null,
        "trainable_parameters": 5, "deployed": null, "latency": [], "forgetting": null, "layers": null,
        "on_memory_frontier": false, "on_time_frontier": false
    })
}

fn paired(difference: f64, finding: &str) -> Value {
    json!({
        "with": "A", "difference": difference, "interval": { "low": difference - 0.5, "high": difference + 0.5 },
        "p_value": 0.5, "p_corrected": 0.5, "example_interval": null, "finding": finding
    })
}

fn report(methods: Vec<Value>) -> Report {
    let report = json!({
        "schema": "liftplan-compare", "version": 1, "title": "T", "made": "2026-01-01T00:00:00Z",
        "setup": {
            "model": "m", "architecture": "llama", "blocks": 2, "parameters": 100, "task": "classification", "score": "accuracy",
            "better": "higher", "score_command": null, "baseline": "A", "budget": "10 steps", "memory_budget_bytes": null,
            "seeds": [1, 2, 3], "learning_rates": 2, "test_examples": 300, "data": {}, "jobs": 1, "model_hash": "h", "versions": {},
            "executable": "e", "machine": { "platform": "p", "cpu": null, "threads": 2, "memory_bytes": null }, "configuration": "c"
        },
        "summary": [], "base": { "scores": { "accuracy": 0.2 }, "general_loss": null, "latency": [], "failure": null },
        "methods": methods, "agreement": { "methods": [], "overlap": [] }
    });
    let mut report: Report = serde_json::from_value(report).unwrap();
    row::frontiers(&mut report.methods, Better::Higher);
    report.summary = words::summary(&report);
    report
}

/// The sentences of a kind.
fn said(report: &Report, kind: StatementKind) -> Vec<&str> {
    report.summary.iter().filter(|said| said.kind == kind).map(|said| said.text.as_str()).collect()
}

#[test]
fn what_is_supported_and_what_is_left_open_are_kept_apart() {
    let mut methods =
        vec![row("A", 0.80, 100 << 20, 10.0), row("B", 0.90, 300 << 20, 30.0), row("C", 0.81, 50 << 20, 40.0)];
    methods[1]["vs_baseline"] = paired(0.10, "better");
    methods[2]["vs_baseline"] = paired(0.01, "undecided");
    methods.push(row("D", 0.80, 100 << 20, 10.0));
    methods[3]["vs_baseline"] = paired(0.0, "identical");
    methods[1]["vs_control"] = paired(-0.02, "undecided");
    let report = report(methods);
    let supported = said(&report, StatementKind::Supported);
    assert_eq!(
        supported[..3],
        [
            "B has the best mean accuracy on the test data: 0.9000 (95 % interval 0.8900 to 0.9100) over 3 seeds; the untouched model has 0.2000.",
            "Better than A, by more than seeds and test examples explain: B (+0.1000; −0.4000 to +0.6000).",
            "No difference from A in any run: D."
        ]
    );
    assert!(supported.contains(&"C needs the least memory, 50.0 MiB; B the most, 300 MiB."), "{supported:?}");
    assert_eq!(
        said(&report, StatementKind::Open),
        [
            "Not told apart from A with 3 seeds and 300 test examples: C (+0.0100; −0.4900 to +0.5100). A difference inside these ranges can be there.",
            "Nothing shows that the layers B chooses are better than as many drawn at random (−0.0200; −0.5200 to +0.4800)."
        ]
    );
    let cautions = said(&report, StatementKind::Caution);
    assert!(
        cautions[0].starts_with("The highest learning rate that was tried came out best for A, B, C and D"),
        "{cautions:?}"
    );
    assert!(cautions.iter().any(|said| said.starts_with("3 seeds show large differences only")));
}

#[test]
fn the_best_of_equals_or_of_single_runs_is_not_claimed() {
    let tied = report(vec![row("A", 0.9, 1, 1.0), row("B", 0.9, 1, 1.0), row("C", 0.8, 1, 1.0)]);
    // An interval belongs to one of them.
    let shared =
        "A and B share the best mean accuracy on the test data: 0.9000 over 3 seeds; the untouched model has 0.2000.";
    assert_eq!(said(&tied, StatementKind::Supported)[0], shared);
    // Of learning rates that are as good the smaller one is chosen, which says nothing of still smaller ones.
    let mut rates = row("A", 0.9, 1, 1.0);
    rates["tried"] = json!([{ "lr": 0.001, "validation": 0.6 }, { "lr": 0.01, "validation": 0.6 }]);
    rates["lr"] = 0.001.into();
    let rates = report(vec![rates]);
    assert!(!said(&rates, StatementKind::Caution).iter().any(|said| said.contains("learning rate")), "{rates:?}");
    let mut single = report(vec![row("A", 0.9, 1, 1.0), row("B", 0.8, 1, 1.0)]);
    single.setup.seeds = vec![1];
    single.summary = words::summary(&single);
    assert!(said(&single, StatementKind::Open)[0].starts_with("A has the best mean accuracy"));
}

#[test]
fn a_difference_that_seeds_show_and_the_judgement_leaves_open_has_its_reason() {
    let open = |paired: Value| {
        let mut methods = vec![row("A", 0.80, 1, 1.0), row("B", 0.83, 1, 1.0)];
        methods[1]["vs_baseline"] = paired;
        said(&report(methods), StatementKind::Open)[0].to_string()
    };
    let mut by_seeds = paired(0.03, "undecided");
    by_seeds["interval"] = json!({ "low": 0.01, "high": 0.05 });
    let chance = open(by_seeds.clone());
    assert!(
        chance.contains(
            "B (+0.0300; +0.0100 to +0.0500 over seeds, but one of so many comparisons can be that far off by chance)"
        ),
        "{chance}"
    );
    by_seeds["example_interval"] = json!({ "low": -0.01, "high": 0.07 });
    let examples = open(by_seeds);
    assert!(examples.contains("+0.0500 over seeds, but other test examples could undo it)"), "{examples}");
}

#[test]
fn the_best_mean_says_when_it_is_not_told_apart() {
    let mut methods = vec![row("A", 0.80, 1000, 1.0), row("B", 0.81, 1005, 1.0), row("C", 0.70, 3000, 2.0)];
    methods[1]["vs_baseline"] = paired(0.01, "undecided");
    methods[2]["tokens_per_s"] = 50.0.into();
    each_seed(&mut methods[2], "tokens_per_s", |i| 50.0 + 0.3 * i as f64);
    let mut found = report(methods);
    let supported = said(&found, StatementKind::Supported);
    assert!(supported[0].ends_with("; the untouched model has 0.2000; it is not told apart from A."), "{supported:?}");
    assert!(supported.contains(&"B trained fastest, 100 tokens a second; C slowest, 50."), "{supported:?}");
    // Within a few percent of each other: neither is the one that needs the least.
    assert!(supported.contains(&"A and B need the least memory, 0.98 KiB; C the most, 2.93 KiB."), "{supported:?}");
    // The best one being the random counterpart of another, it was set against that one.
    let mut with_control = found.clone();
    let of = serde_json::from_value(paired(-0.02, "undecided")).unwrap();
    with_control.methods[1].control_of = Some("C".into());
    with_control.methods[1].vs_baseline = None;
    with_control.methods[2].vs_control = Some(of);
    with_control.summary = words::summary(&with_control);
    let best = said(&with_control, StatementKind::Supported)[0];
    assert!(best.starts_with("B has the best") && best.ends_with("; it is not told apart from C."), "{best}");
    found.setup.jobs = 4;
    found.summary = words::summary(&found);
    let open = said(&found, StatementKind::Open);
    assert!(open.iter().any(|said| said.ends_with("slowest, 50, while 4 runs shared the machine.")), "{open:?}");
}

/// Two methods that are the same but for what differs from run to run anyway.
#[test]
fn identical_methods_differ_in_nothing_that_is_called_supported() {
    let (mut a, mut b) = (row("A", 0.8, 56 << 20, 1.0), row("B", 0.8, 57 << 20, 1.2));
    b["vs_baseline"] = paired(0.0, "identical");
    (a["tokens_per_s"], b["tokens_per_s"]) = (3848.0.into(), 2900.0.into());
    each_seed(&mut a, "tokens_per_s", |i| [3848.0, 2700.0, 4100.0][i]);
    each_seed(&mut b, "tokens_per_s", |i| [2900.0, 2950.0, 2500.0][i]);
    let mut report = report(vec![a, b]);
    let supported = said(&report, StatementKind::Supported);
    assert!(supported[0].starts_with("A and B share the best"), "{supported:?}");
    assert_eq!(supported[1..], ["No difference from A in any run: B."]);
    let told =
        "A trained fastest, 3,848 tokens a second; B slowest, 2,900, by no more than runs of one method can differ.";
    assert!(said(&report, StatementKind::Open).contains(&told), "{report:?}");
    // One run each tells nothing of how runs differ; a card counts its bytes, and 2 % there are a difference.
    report.setup.seeds = vec![1];
    report.setup.devices = vec!["cuda:0, NVIDIA H100".into()];
    report.methods.iter_mut().for_each(|row| row.seeds.truncate(1));
    report.summary = words::summary(&report);
    let told = "A trained fastest, 3,848 tokens a second; B slowest, 2,900, in one run each.";
    assert!(said(&report, StatementKind::Open).contains(&told), "{report:?}");
    let told = "A needs the least memory, 56.0 MiB; B the most, 57.0 MiB.";
    assert!(said(&report, StatementKind::Supported).contains(&told), "{report:?}");
}

#[test]
fn a_score_that_is_the_same_does_not_make_methods_the_same() {
    let mut methods = vec![row("A", 0.8, 1, 1.0), row("B", 0.8, 1, 1.0)];
    methods[1]["vs_baseline"] = paired(0.0, "identical");
    methods[1]["vs_control"] = paired(0.0, "identical");
    for row in &mut methods {
        row["score"]["interval"] = json!({ "low": 0.8, "high": 0.8 });
    }
    methods[1]["seeds"][2]["scores"]["loss"] = 0.5.into();
    let report = report(methods);
    let open = said(&report, StatementKind::Open);
    let told = "The same accuracy as A in every run, of models that are not the same: B. More test examples, or another score, may \
                tell them apart.";
    assert_eq!(open[0], told);
    assert_eq!(open[1], "B has the same accuracy as with as many layers drawn at random, in every run.");
    let flat =
        "Every run of A and B has the same accuracy: intervals of no width, which say nothing of how much it varies.";
    assert!(said(&report, StatementKind::Caution).contains(&flat), "{:?}", said(&report, StatementKind::Caution));
}

#[test]
fn forgetting_is_told_apart_by_seeds() {
    let mut methods = vec![row("A", 0.8, 1, 1.0), row("B", 0.8, 1, 1.0)];
    for (row, rise) in methods.iter_mut().zip([0.1, 0.4]) {
        row["forgetting"] = json!({ "mean": rise, "interval": null });
        each_seed(row, "general_loss", |i| 3.0 + rise + 0.01 * rise * i as f64);
    }
    let told = "On general text, the loss rises least with A (+0.1000 nats a token) and most with B (+0.4000)";
    let clear = report(methods.clone());
    assert!(said(&clear, StatementKind::Supported).contains(&format!("{told}.").as_str()), "{clear:?}");
    each_seed(&mut methods[1], "general_loss", |i| [3.0, 3.1, 4.4][i]);
    let open = report(methods);
    let told = format!("{told}, by no more than runs of one method can differ.");
    assert!(said(&open, StatementKind::Open).contains(&told.as_str()), "{open:?}");
}

#[test]
fn what_choosing_costs_is_said_of_methods_that_choose() {
    let mut methods = vec![row("all", 0.8, 1, 1.0), row("some", 0.8, 1, 1.0)];
    for (method, layers) in methods.iter_mut().zip(["AAAA", "T..T"]) {
        method["selection"] = json!({ "seconds": 0.125, "memory_bytes": 3 << 20, "plan_hash": "h" });
        method["layers"] = json!({ "roles": ["q_proj"], "rows": [layers], "others": [] });
    }
    let alone = report(methods.clone());
    let supported = said(&alone, StatementKind::Supported);
    let told = "To choose the layers, once, some takes 125 ms and 3.00 MiB, beside the opened model.";
    assert!(supported.contains(&told), "{supported:?}");
    assert!(markdown(&alone).contains("| 125 ms, 3.00 MiB |"), "{}", markdown(&alone));
    // Who has a figure in common is told of together.
    for name in ["other", "another"] {
        let mut method = methods[1].clone();
        method["name"] = name.into();
        methods.push(method);
    }
    methods[1]["selection"]["shared_with"] = json!(["other"]);
    methods[2]["selection"]["shared_with"] = json!(["some"]);
    let shared = report(methods);
    let supported = said(&shared, StatementKind::Supported);
    let told = "To choose the layers, once, some and other take 125 ms and 3.00 MiB each (the same work, measured once) and \
                another takes 125 ms and 3.00 MiB, beside the opened model.";
    assert!(supported.contains(&told), "{supported:?}");
}

#[test]
fn scores_have_the_names_that_people_write_and_intervals_their_wider_half() {
    let mut clipped = row("A", 0.98, 1, 1.0);
    clipped["score"]["interval"] = json!({ "low": 0.90, "high": 1.0 });
    clipped["latency"] =
        json!([{ "form": "merged", "first_token_s": 0.02, "next_token_s": 0.004, "prompt_tokens": 8 }]);
    let mut report = report(vec![clipped]);
    report.setup.score = "rouge_l".into();
    report.summary = words::summary(&report);
    assert!(said(&report, StatementKind::Supported)[0].contains("the best mean ROUGE-L"));
    let markdown = markdown(&report);
    assert!(markdown.contains("| method | ROUGE-L |") && markdown.contains("0.9800 ± 0.0800"), "{markdown}");
    assert!(markdown.contains("| A | adapter merged | 20 ms | 4.0 ms |"), "{markdown}");
}

#[test]
fn methods_without_a_score_are_said_to_have_none() {
    let mut failed = row("B", 0.0, 0, 0.0);
    failed["score"] = Value::Null;
    failed["status"] = "out_of_memory".into();
    failed["reason"] = "needed too much".into();
    let report = report(vec![row("A", 0.5, 1, 1.0), failed]);
    assert!(said(&report, StatementKind::Caution).contains(&"B ran out of memory: needed too much."));
    let mut broken = report.clone();
    broken.methods[1].status = Status::Failed;
    broken.base.failure = Some("no such device.".into());
    broken.summary = words::summary(&broken);
    let cautions = said(&broken, StatementKind::Caution);
    assert_eq!(
        cautions[..2],
        [
            "The untouched model could not be judged: no such device.",
            "B failed: needed too much. `--retry` runs it again."
        ]
    );
    assert!(table(&report).contains("out of memory"));
    let none = self::report(Vec::new());
    assert_eq!(said(&none, StatementKind::Caution)[0], "No method has a score.");
}

#[test]
fn a_learning_rate_that_could_not_be_chosen_is_said() {
    let mut short = row("B", 0.9, 0, 0.0);
    short["tried"] =
        json!([{ "lr": 0.001, "validation": 0.5 }, { "lr": 0.01, "validation": null, "failed": "step 3: gone" }]);
    short["lr"] = 0.001.into();
    let report = report(vec![row("A", 0.5, 1, 1.0), short]);
    let cautions = said(&report, StatementKind::Caution);
    assert_eq!(
        cautions[0],
        "B could not be chosen with learning rate 1e-2, of which a run failed (step 3: gone): its search was shorter than the \
         others'. `--retry` runs it again."
    );
}

#[test]
fn what_computed_is_the_gpu_where_there_was_one() {
    let mut found = report(vec![row("A", 0.5, 1, 1.0)]);
    assert!(markdown(&found).contains("; p.\n"), "{}", markdown(&found));
    found.setup.devices = vec!["cpu".into(), "cuda:0, NVIDIA H200".into()];
    assert!(markdown(&found).contains("; cuda:0, NVIDIA H200.\n"), "{}", markdown(&found));
}

#[test]
fn the_frontier_is_what_no_other_beats() {
    let report = report(vec![
        row("small", 0.7, 10, 40.0),
        row("middle", 0.8, 20, 30.0),
        row("beaten", 0.75, 30, 35.0),
        row("best", 0.9, 40, 50.0),
        row("as good and larger", 0.8, 25, 30.0),
    ]);
    let on = |of: fn(&Row) -> bool| {
        report.methods.iter().filter(|row| of(row)).map(|row| row.name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(on(|row| row.on_memory_frontier), ["small", "middle", "best"]);
    assert_eq!(on(|row| row.on_time_frontier), ["middle", "best"]);
}

#[test]
fn text_is_text_everywhere() {
    let nasty = "</script><script>window.hacked=1</script>\u{2028}|`*[x](y)&amp;";
    let mut report = report(vec![row(nasty, 0.5, 1, 1.0)]);
    report.title = "</title><img src=x onerror=alert(1)>".into();
    report.setup.configuration = "a = \"```\"".into();
    let page = page(&report).unwrap();
    assert_eq!(page.matches("</script").count(), 2, "the page's own two scripts end once each");
    assert_eq!(page.matches("</title").count(), 1);
    assert!(!page.contains("<img") && !page.contains('\u{2028}'));
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let again: Report = serde_json::from_str(data).unwrap();
    assert_eq!(again, report);

    let markdown = markdown(&report);
    assert!(markdown.contains("&lt;/script\\>") && markdown.contains("\\|\\`\\*\\[x\\](y)&amp;amp;"), "{markdown}");
    // The fence is longer than any in the configuration.
    assert!(markdown.contains("````toml\n"), "{markdown}");
}

#[test]
fn numbers_have_the_digits_that_mean_something() {
    assert_eq!([0.86333, 12.3456, 345.678].map(number), ["0.8633", "12.35", "345.7"]);
    assert_eq!([0.01, -0.01, 0.000_001, -0.000_001].map(signed), ["+0.0100", "−0.0100", "±0.0000", "±0.0000"]);
}

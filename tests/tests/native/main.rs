//! Plugins that are native libraries. Those that mean harm or are broken end in an error that says what they did, and this
//! process goes on training; those in order plan as the built-in policies and the components do.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used)]

mod build;
mod command;

use std::thread;
use std::time::{Duration, Instant};

use liftplan::Result;
use liftplan::plan::{Origin, Plan, PlanBuilder, Storage};
use liftplan::plugin::native::NativePlugin;
use liftplan::plugin::{Limits, Loaded};
use liftplan::policy::{Level, ModelView, Policy};
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan_tests::command::binary;
use liftplan_tests::plugins::{compiled, model, trains};
use liftplan_tests::setup;
use serde_json::{Value, json};

use build::{allowed, hostile};

fn limits() -> Limits {
    Limits { seconds: 2.0, host_calls: 20_000, log_kib: 4, ..Limits::default() }
}

fn open(loaded: Loaded, limits: &Limits) -> Result<NativePlugin> {
    NativePlugin::in_program(loaded, limits, binary().to_path_buf())
}

/// The plan that the library makes, and what it said to its author.
fn plan_with(loaded: Loaded, settings: Value, limits: &Limits) -> (Result<Plan>, Vec<String>) {
    let base = setup::open(&model("qwen3")).unwrap();
    let plugin = match open(loaded, limits) {
        Ok(plugin) => plugin,
        Err(error) => return (Err(error), Vec::new()),
    };
    let mut silent = Silent;
    let statistics = ModelStatistics::with_cache(&base, None, &mut silent);
    let view = ModelView::new(&base.inventory, 3).with_statistics(&statistics);
    let mut builder = PlanBuilder::new(&base.inventory, Storage::F32);
    let made = plugin.resolve(&settings).and_then(|settings| {
        plugin.make_plan(&settings, &view, &mut builder)?;
        let info = plugin.describe();
        builder.build(Origin { policy: info.name, version: info.version, settings })
    });
    let notes = view.into_parts().1;
    (made, notes.into_iter().filter(|note| note.level == Level::Debug).map(|note| note.text).collect())
}

fn refused(bytes: Vec<u8>) -> String {
    let made = allowed(bytes).and_then(|loaded| plan_with(loaded, json!({}), &limits()).0);
    match made {
        Ok(plan) => panic!("it made a plan: {plan:?}"),
        Err(error) => {
            assert_eq!(error.exit_code(), 5, "{error}");
            error.to_string()
        }
    }
}

const MEND: &str = "\n  help: the plugin's author must mend it; nothing was planned";
const BUILD: &str = "\n  help: its author must build it for this version of Liftplan";

/// Each case: its name, the library, and the error's text.
fn cases() -> Vec<(&'static str, Vec<u8>, String)> {
    let good = hostile(&[]);
    let mut foreign = good.clone();
    foreign[18..20].copy_from_slice(&183u16.to_le_bytes());
    let fault = |what: &str| format!("plugin hostile 6.6.6: in make-plan: {what}");
    let loading = |what: &str| format!("plugin hostile 6.6.6: while it was loaded: {what}");
    vec![
        (
            "truncated",
            good[..good.len() / 2].to_vec(),
            "it is a damaged or unknown library: Invalid ELF section header offset/size/alignment\n  help: fetch or \
             build it again"
                .into(),
        ),
        (
            "another machine's",
            foreign,
            "plugin hostile 6.6.6: it was built for Aarch64, and this machine is x86_64\n  help: take the build for \
             this machine, or the WebAssembly component, which runs everywhere"
                .into(),
        ),
        (
            "no library",
            b"#!/bin/sh\nrm -rf ~\n".to_vec(),
            "it is neither a WebAssembly component nor a dynamic library\n  help: a plugin is one file, NAME.wasm, or \
             a native library such as NAME.so"
                .into(),
        ),
        (
            "a missing symbol",
            hostile(&["ENTRY=another_name"]),
            "plugin hostile 6.6.6: it does not export the function liftplan_plugin\n  help: its author must define it \
             as plugin-api/c/liftplan_plugin.h says, and not hide it"
                .into(),
        ),
        (
            "an API of the future",
            hostile(&["API=\"7.0\""]),
            "it was built for version 7.0 of the plugin API, and this Liftplan speaks 0.1\n  help: update Liftplan, or \
             take an older version of the plugin"
                .into(),
        ),
        (
            "an ABI too old",
            hostile(&["ABI=0"]),
            loading("its table has ABI version 0, which is older than this host's 1") + BUILD,
        ),
        (
            "an ABI too new",
            hostile(&["ABI=2"]),
            loading("its table has ABI version 2, which is newer than this host's 1") + BUILD,
        ),
        (
            "a short struct",
            hostile(&["SIZE=16"]),
            loading("its table has 16 bytes, where version 1 has 32") + BUILD,
        ),
        (
            "a null slot",
            hostile(&["MAKE_PLAN=NULL"]),
            loading("its table has a null pointer for make-plan") + BUILD,
        ),
        ("no table", hostile(&["NO_TABLE"]), loading("liftplan_plugin gave a null pointer") + BUILD),
        (
            "a symbol that the system lacks",
            hostile(&["AT_LOAD=extern void nowhere(void); nowhere()"]),
            loading("the system cannot load it: the library: undefined symbol: nowhere") + BUILD,
        ),
        (
            "a panic",
            build::panicking(),
            fault("it crashed (signal 6, abort); it printed: the rule fell over") + MEND,
        ),
        (
            "a segmentation fault",
            hostile(&["HARM=*(volatile int *)8 = 1"]),
            fault("it crashed (signal 11, segmentation fault)") + MEND,
        ),
        ("a crash while loading", hostile(&["AT_LOAD=*(volatile int *)8 = 1"]), {
            loading("it crashed (signal 11, segmentation fault)") + MEND
        }),
        (
            "deep recursion",
            hostile(&["HARM=sinks(0)"]),
            fault("it crashed (signal 11, segmentation fault)") + MEND,
        ),
        (
            "an abort",
            hostile(&["HARM=fputs(\"\\033[31mgoing down\\n\", stderr); abort()"]),
            fault("it crashed (signal 6, abort); it printed: \\u{1b}[31mgoing down") + MEND,
        ),
        (
            "a hang",
            hostile(&["HARM=for (;;) sleep(1)"]),
            fault("it ran for more than 2 seconds (`plugins.seconds`)\n  help: raise plugins.seconds if you trust the plugin"),
        ),
        (
            "a hang while loading",
            hostile(&["AT_LOAD=for (;;) sleep(1)"]),
            loading("it ran for more than 2 seconds (`plugins.seconds`)\n  help: raise plugins.seconds if you trust the plugin"),
        ),
        (
            "exit(0)",
            hostile(&["HARM=exit(0)"]),
            fault("it ended its process with exit code 0 in the middle") + MEND,
        ),
        (
            "a slow drip",
            hostile(&["HARM=for (;;) { usleep(1000); if (host->log(host, 0, LIFTPLAN_TEXT(\"\"))) return 4; }"]),
            fault("it ran for more than 2 seconds (`plugins.seconds`)\n  help: raise plugins.seconds if you trust the plugin"),
        ),
        (
            "a flood of questions",
            hostile(&["HARM=uint32_t n; for (;;) host->blocks(host, &n)"]),
            fault("it called the host more than 20000 times (`plugins.host_calls`)\n  help: raise plugins.host_calls if you trust the plugin"),
        ),
        (
            "a flood of output",
            hostile(&["HARM=for (;;) puts(\"and on, and on, and on\")"]),
            fault("it printed more than 4 KiB (`plugins.log_kib`)\n  help: raise plugins.log_kib if you trust the plugin"),
        ),
        (
            "more output than it may, all at once, and then a plan",
            hostile(&["HARM=for (int i = 0; i < 400; i++) fputs(\"and on, and on\\n\", stderr)"]),
            fault("it printed more than 4 KiB (`plugins.log_kib`)\n  help: raise plugins.log_kib if you trust the plugin"),
        ),
        (
            "garbage in the host's pipe",
            hostile(&["HARM=for (int fd = 3; fd < 64; fd++) if (write(fd, \"garbage and more of it\", 22)) {}"]),
            fault("it sent what makes no sense, or too much at once"),
        ),
        (
            "a memory bomb",
            hostile(&["HARM=for (;;) { volatile char *p = malloc(1 << 20); for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1; }"]),
            fault("it crashed (signal 11, segmentation fault)") + MEND,
        ),
        (
            "an unknown tensor",
            hostile(&["HARM=if (host->train(host, 4000000000u)) return 2"]),
            "plugin hostile 6.6.6: the model has no tensor 4000000000: its tensors are 0 to ".into(),
        ),
        (
            "no UTF-8",
            hostile(&["HARM=uint32_t n; if (host->find(host, LIFTPLAN_TEXT(\"\\xff\\xfe\"), &n)) return 2"]),
            "plugin hostile 6.6.6: a text that it passed is not UTF-8".into(),
        ),
        (
            "a failure without a reason",
            hostile(&["HARM=return 2"]),
            "plugin hostile 6.6.6: it failed and gave no reason".into(),
        ),
    ]
}

#[test]
fn hostile_libraries_end_in_an_error_and_this_process_goes_on_training() {
    let lora = compiled("lora");
    let mut wrong = String::new();
    for (name, bytes, expected) in cases() {
        let started = Instant::now();
        let error = refused(bytes);
        let fits = if expected.ends_with(" 0 to ") { error.starts_with(&expected) } else { error == expected };
        if !fits {
            wrong.push_str(&format!("--- {name}\n{error}\n--- expected\n{expected}\n"));
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{name} took {:?}", started.elapsed());
        assert_eq!(trains(&lora).unwrap(), 2, "{name}");
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(plan_with(allowed(hostile(&[])).unwrap(), json!({}), &limits()).0.unwrap().trained().count(), 1);
}

#[test]
fn nothing_of_a_library_runs_before_it_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    let bytes = hostile(&[&format!("AT_LOAD=fclose(fopen({:?}, \"w\"))", trace.display().to_string())]);
    let loaded = Loaded::from_bytes(bytes).unwrap();
    let expected = format!(
        "plugin hostile 6.6.6 is native code, and was not allowed to run\n  help: if you trust its author, allow this \
         very file with --allow-native {}",
        loaded.sha256
    );
    assert_eq!(open(loaded, &limits()).err().unwrap().to_string(), expected);
    assert!(!trace.exists());
}

#[test]
fn what_a_library_prints_is_for_its_author_and_it_cannot_read_what_the_user_types() {
    let harm = "HARM=printf(\"read %d\\n\", getchar()); fflush(stdout)";
    let (plan, notes) = plan_with(allowed(hostile(&[harm])).unwrap(), json!({}), &limits());
    plan.unwrap();
    assert_eq!(notes, ["read -1"]);
}

/// On a machine with more to do than it has cores, where threads and processes wait wherever they are.
#[test]
fn what_was_printed_is_there_when_the_call_is_over_however_busy_the_machine_is() {
    let talks = allowed(hostile(&["HARM=printf(\"one\\n\"); printf(\"two\\n\"); fflush(stdout)"])).unwrap();
    let falls = allowed(hostile(&["HARM=fputs(\"going down\\n\", stderr); abort()"])).unwrap();
    let limits = Limits { seconds: 60.0, ..limits() };
    let missed = || -> Vec<String> {
        let (plan, notes) = plan_with(talks.clone(), json!({}), &limits);
        let error = plan_with(falls.clone(), json!({}), &limits).0.unwrap_err().to_string();
        let said = plan.is_ok() && notes == ["one", "two"];
        let last_words = error.contains("it printed: going down");
        [(!said).then(|| format!("{notes:?}")), (!last_words).then_some(error)].into_iter().flatten().collect()
    };
    let missed: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..16).map(|_| scope.spawn(|| (0..10).flat_map(|_| missed()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(missed.is_empty(), "{} of 320 times: {missed:#?}", missed.len());
}

#[test]
fn a_library_in_c_plans_by_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("top-norm.so");
    build::c("plugins/top-norm-c/top_norm.c", &[], &out);
    let loaded = allowed(std::fs::read(&out).unwrap()).unwrap();
    let base = setup::open(&model("qwen3")).unwrap();
    let linear = base.inventory.tensors.iter().filter(|info| info.role.ends_with("_proj")).count();
    let plan = plan_with(loaded.clone(), json!({ "percent": 50 }), &Limits::default()).0.unwrap();
    assert_eq!(plan.trained().count(), linear / 2);
    assert_eq!(plan.scores.len(), linear);
    let lowest = plan.trained().map(|entry| plan.scores[&entry.tensor]).fold(f64::INFINITY, f64::min);
    let left = plan.scores.iter().filter(|(name, _)| {
        plan.get(name).unwrap().lr_scale == 1.0 && !plan.trained().any(|entry| &entry.tensor == *name)
    });
    assert!(left.map(|(_, score)| *score).all(|score| score <= lowest), "the largest norms train");
    let error = plan_with(loaded, json!({ "percent": 0 }), &Limits::default()).0.unwrap_err();
    assert_eq!(error.to_string(), "`policy.percent` must be above 0, not 0");
}

#[test]
fn built_in_component_and_library_make_the_same_plan() {
    let base = setup::open(&model("qwen3")).unwrap();
    for (name, tables, settings) in [
        (
            "lora",
            "rank = 4\nalpha = 3\ndropout = 0.25\nblocks = [1]",
            json!({ "rank": 4, "alpha": 3, "dropout": 0.25, "blocks": [1] }),
        ),
        (
            "lora",
            "rslora = true\ndora = true\nlora_plus_ratio = 16",
            json!({ "rslora": true, "dora": true, "lora_plus_ratio": 16 }),
        ),
        (
            "full",
            "targets = [\"v_proj\", \"norm\"]\nexclude = [\"model.norm\"]",
            json!({ "targets": ["v_proj", "norm"], "exclude": ["model.norm"] }),
        ),
        ("full", "", json!({})),
    ] {
        let by = |policy: String| {
            let mut config = setup::config(&base.path, &format!("[policy]\n{policy}\n{tables}\n")).unwrap();
            config.seed = 3;
            liftplan::policy::plan(&config, &base.inventory, &ModelStatistics::new(&base, &mut Silent)).unwrap().hash()
        };
        let built_in = by(format!("name = {name:?}"));
        let library = std::fs::read(build::published().join(format!("libliftplan_{name}.so"))).unwrap();
        let library = allowed(library).unwrap();
        for _ in 0..5 {
            let native = plan_with(library.clone(), settings.clone(), &Limits::default()).0.unwrap();
            assert_eq!(native.hash(), built_in, "{name} {tables}");
            assert_eq!(by(format!("plugin = {:?}", compiled(name))), built_in, "{name} {tables}");
        }
    }
}

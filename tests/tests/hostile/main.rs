//! Components that mean harm, or are broken: each ends in an error that says what it did, and this process goes on
//! training.
#![allow(clippy::unwrap_used)]

mod cases;
mod guests;

use std::time::Instant;

use liftplan::Result;
use liftplan::plan::{Origin, Plan, PlanBuilder, Storage};
use liftplan::plugin::Limits;
use liftplan::plugin::wasm::WasmPlugin;
use liftplan::policy::{Level, ModelView, Policy};
use liftplan::report::Silent;
use liftplan::stats::ModelStatistics;
use liftplan_tests::plugins::{compiled, model, trains};
use liftplan_tests::setup;
use serde_json::json;

use guests::{Guest, METADATA, component, with_metadata};

/// Limits small enough that the tests are quick.
fn limits() -> Limits {
    Limits {
        file_mib: 1,
        memory_mib: 16,
        fuel: 200_000_000,
        seconds: 20.0,
        host_calls: 30_000,
        passed_mib: 8,
        log_kib: 4,
        statistics: 3,
        state_kib: 16,
        ..Limits::default()
    }
}

fn plan_with(bytes: &[u8], limits: &Limits) -> (Result<Plan>, Vec<String>) {
    let base = setup::open(&model("qwen3")).unwrap();
    let plugin = match WasmPlugin::load_with_cache(bytes, limits, None) {
        Ok(plugin) => plugin,
        Err(error) => return (Err(error), Vec::new()),
    };
    let mut silent = Silent;
    let statistics = ModelStatistics::with_cache(&base, None, &mut silent);
    let view = ModelView::new(&base.inventory, 0).with_statistics(&statistics);
    let mut builder = PlanBuilder::new(&base.inventory, Storage::F32);
    let origin = || Origin { policy: "hostile".into(), version: "6.6.6".into(), settings: json!({}) };
    let made = Policy::make_plan(&plugin, &json!({}), &view, &mut builder).and_then(|()| builder.build(origin()));
    let notes = view.into_parts().1;
    (made, notes.into_iter().filter(|note| note.level == Level::Warn).map(|note| note.text).collect())
}

fn refused(bytes: &[u8], limits: &Limits) -> String {
    match plan_with(bytes, limits).0 {
        Ok(plan) => panic!("it made a plan: {plan:?}"),
        Err(error) => {
            assert_eq!(error.exit_code(), 5, "{error}");
            error.to_string()
        }
    }
}

/// Plans that are none, components that don't fit, and files that are no components.
fn others() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    vec![
        (
            "a plan in which nothing trains",
            Guest::doing("", 16).bytes(),
            "policy `hostile` made an empty plan: no tensor trains\n  help: choose at least one \
             tensor to train or adapt",
        ),
        (
            "a host that is not there",
            component(
                "(component (import \"liftplan:policy/weights@0.1.0\" (instance (export \"read\" \
             (func)))))",
            ),
            "plugin hostile 6.6.6 does not fit the plugin API 0.1: function implementation is \
             missing\n  help: build it again with the SDK of this version",
        ),
        (
            "another type of a function",
            component(
                "(component (import \"liftplan:policy/log@0.1.0\" (instance (export \"warn\" (func \
             (param \"message\" u64))))))",
            ),
            "plugin hostile 6.6.6 does not fit the plugin API 0.1: expected `string` found \
             `u64`\n  help: build it again with the SDK of this version",
        ),
        (
            "no exports",
            component("(component)"),
            "plugin hostile 6.6.6 does not fit the plugin API 0.1: no exported instance named \
             `liftplan:policy/policy@0.1.0`\n  help: build it again with the SDK of this version",
        ),
        (
            "too large a file",
            vec![0; (1 << 20) + 1],
            "the plugin's file has 2 MiB, more than 1 (`plugins.file_mib`)\n  help: raise the \
             limit if you trust the file",
        ),
        (
            "a truncated file",
            Guest::doing("", 16).bytes()[..900].to_vec(),
            "it ends in the middle: it is cut short or damaged\n  help: fetch or build it again",
        ),
        (
            "a corrupt file",
            {
                let mut bytes = Guest::doing("", 16).bytes();
                bytes[700..720].fill(0xee);
                bytes
            },
            "it is not a valid component: …",
        ),
        (
            "a core module",
            with_metadata(wat::parse_str("(module)").unwrap(), METADATA),
            "it is a WebAssembly module, and a plugin is a WebAssembly component\n  help: link it \
             with wasm-component-ld, or build it with `liftplan plugin build`",
        ),
        (
            "compiled code",
            b"\x7fELF not a component".to_vec(),
            "it is neither a WebAssembly component nor a dynamic library\n  help: a plugin is one \
             file, NAME.wasm, or a native library such as NAME.so",
        ),
        (
            "no metadata",
            wat::parse_str("(component)").unwrap(),
            "it is no Liftplan plugin: it has no section liftplan:plugin\n  help: a plugin has \
             its name, version and licence inside; `liftplan plugin new` makes one that does",
        ),
        (
            "an API of the future",
            with_metadata(wat::parse_str("(component)").unwrap(), &METADATA.replace("0.1\"", "7.0\"")),
            "it was built for version 7.0 of the plugin API, and this Liftplan speaks 0.1\n  help: \
             update Liftplan, or take an older version of the plugin",
        ),
    ]
}

#[test]
fn hostile_components_end_in_an_error_and_the_process_goes_on() {
    let named = |expected: &str| format!("plugin hostile 6.6.6: {expected}");
    let of_guests = cases::guests().into_iter().map(|(what, bytes, expected)| (what, bytes, named(expected)));
    let of_others = others().into_iter().map(|(what, bytes, expected)| (what, bytes, expected.to_string()));
    let cases: Vec<_> = of_guests.chain(of_others).collect();
    let good = compiled("lora");
    let mut failures = Vec::new();
    for (what, bytes, expected) in &cases {
        let started = Instant::now();
        let error = refused(bytes, &limits());
        // What comes after the dots depends on where the damage lies.
        let as_expected = match expected.strip_suffix("…") {
            Some(start) => error.starts_with(start),
            None => error == *expected,
        };
        if !as_expected {
            failures.push(format!("{what}:\n  expected {expected:?}\n  found    {error:?}"));
        }
        assert!(started.elapsed().as_secs() < 15, "{what} took {:?}", started.elapsed());
        assert_eq!(trains(&good).unwrap(), 2, "after {what}");
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn time_is_a_limit_behind_fuel() {
    let limits = Limits { fuel: u64::MAX / 2, seconds: 0.2, ..limits() };
    let error = refused(&Guest::doing("(loop $ever (br $ever))", 16).bytes(), &limits);
    let expected = "plugin hostile 6.6.6: in make-plan: it ran for more than 0.2 seconds (`plugins.seconds`)\n  \
                    help: raise plugins.seconds if you trust the plugin";
    assert_eq!(error, expected);
}

#[test]
fn messages_reach_the_user_without_what_a_terminal_would_obey() {
    let train = "(call $train (local.get $builder) (i32.const 1) (i32.const 64))";
    let body = format!("{train} (call $warn (i32.const 200) (i32.const 11))");
    let guest = Guest::doing(&body, 16).with("(data (i32.const 200) \"\\1b]0;pwned\\07\\0a\")");
    let (plan, notes) = plan_with(&guest.bytes(), &limits());
    assert_eq!(plan.unwrap().trained().count(), 1);
    assert_eq!(notes, ["\\u{1b}]0;pwned\\u{7}\\n"]);
}

#[test]
fn fuel_ends_a_plugin_at_the_same_place_every_time() {
    // It scores tensor after tensor; how far it comes depends on nothing but the fuel.
    let body =
        "(loop $more (call $score (local.get $builder) (i32.const 1) (f64.convert_i32_u (local.get $i)) (i32.const 64))
                (local.set $i (i32.add (local.get $i) (i32.const 1))) (br $more))";
    let bytes = Guest::doing(body, 16).bytes();
    let limits = Limits { fuel: 20_000, ..limits() };
    let base = setup::open(&model("qwen3")).unwrap();
    let plugin = WasmPlugin::load_with_cache(&bytes, &limits, None).unwrap();
    let mut ends = Vec::new();
    for _ in 0..5 {
        let view = ModelView::new(&base.inventory, 0);
        let mut builder = PlanBuilder::new(&base.inventory, Storage::F32);
        Policy::make_plan(&plugin, &json!({}), &view, &mut builder).unwrap_err();
        builder.train(&base.inventory.tensors[0].name).unwrap();
        let origin = Origin { policy: "hostile".into(), version: "6.6.6".into(), settings: json!({}) };
        ends.push(builder.build(origin).unwrap().scores);
    }
    assert!(ends.iter().all(|end| *end == ends[0] && !end.is_empty()), "{ends:?}");
}

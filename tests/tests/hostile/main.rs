//! Components that mean harm, or are broken: each ends in an error that says what it did, and this process goes on
//! training.
#![allow(clippy::unwrap_used)]

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

use guests::{DROPS, Guest, METADATA, component, with_instances, with_metadata};

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

/// `$i` counts up to `times` while `body` runs.
fn repeated(times: u32, body: &str) -> String {
    format!(
        "(loop $again {body} (local.set $i (i32.add (local.get $i) (i32.const 1)))
         (br_if $again (i32.lt_u (local.get $i) (i32.const {times}))))"
    )
}

/// The handle of tensor 0 in `$j`.
const TENSOR: &str =
    "(call $tensor (local.get $view) (i32.const 0) (i32.const 64)) (local.set $j (i32.load (i32.const 68)))";

/// A component that only counts on the host's patience: what it does, and the error.
fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let spin = "(loop $ever (br $ever))";
    let deep = "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))";
    let big_data = |offset: u32, text: &str| format!("(data (i32.const {offset}) \"{text}\")");
    vec![
        ("an endless loop", Guest::doing(spin, 16).bytes(), "plugin hostile 6.6.6: in make-plan: it did more than 200000000 units of work \
             (`plugins.fuel`)\n  help: raise plugins.fuel if you trust the plugin"),
        ("an endless start function", Guest::doing("", 16).with(&format!("(func $s {spin}) (start $s)")).bytes(), "plugin hostile 6.6.6: while it was loaded: it did more than 200000000 units of work \
             (`plugins.fuel`)\n  help: raise plugins.fuel if you trust the plugin"),
        ("a trap while it is loaded", Guest::doing("", 16).with("(func $s (unreachable)) (start $s)").bytes(), "plugin hostile 6.6.6: while it was loaded: it broke off\n  help: the plugin's author must \
             mend it"),
        (
            "asking the host while it is loaded",
            Guest::doing("", 16).with("(func $s (call $warn (i32.const 0) (i32.const 4))) (start $s)").bytes(),
            "plugin hostile 6.6.6: while it was loaded: it broke off: wasm trap: uninitialized element",
        ),
        ("deep recursion", Guest::doing("(drop (call $deep (i32.const 0)))", 16).with(deep).bytes(), "plugin hostile 6.6.6: in make-plan: it called itself too deep: its stack has 512 KiB"),
        ("a memory bomb", Guest::doing("(loop $more (drop (memory.grow (i32.const 16))) (br $more))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it wanted 17 MiB of memory, more than 16 \
             (`plugins.memory_mib`)\n  help: raise plugins.memory_mib if you trust the plugin"),
        (
            "a memory too large from the start",
            Guest { memory: "(memory (export \"memory\") 1000)", ..Guest::doing("", 16) }.bytes(),
            "plugin hostile 6.6.6: while it was loaded: it wanted 63 MiB of memory, more than 16 \
             (`plugins.memory_mib`)\n  help: raise plugins.memory_mib if you trust the plugin",
        ),
        (
            "a table bomb",
            Guest::doing("(loop $more (drop (table.grow $t (ref.null func) (i32.const 10000))) (br $more))", 16)
                .with("(table $t 1 funcref)")
                .bytes(),
            "plugin hostile 6.6.6: in make-plan: it wanted tables of 100001 elements, more than 100000",
        ),
        ("a table too large from the start", Guest::doing("", 16).with("(table 9000000 funcref)").bytes(), "plugin hostile 6.6.6: while it was loaded: it wanted tables of 9000000 elements, more than \
             100000"),
        (
            "an instance bomb",
            (0..3).fold(Guest::doing("", 16).bytes(), |bytes, _| with_instances(bytes, 40, "(module)")),
            "plugin hostile 6.6.6: while it was loaded: it broke a rule of components: resource limit \
             exceeded: instance count too high at 65",
        ),
        (
            "a bomb of memories in instances",
            with_instances(Guest::doing("", 16).bytes(), 20, "(module (memory 100))"),
            "plugin hostile 6.6.6: while it was loaded: it wanted 19 MiB of memory, more than 16 \
             (`plugins.memory_mib`)\n  help: raise plugins.memory_mib if you trust the plugin",
        ),
        ("a trap", Guest::doing("(unreachable)", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke off\n  help: the plugin's author must mend it"),
        ("a division by zero", Guest::doing("(drop (i32.div_u (i32.const 1) (local.get $i)))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke off: wasm trap: integer divide by zero"),
        ("memory out of bounds", Guest::doing("(i32.store (i32.const -4) (i32.const 1))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it reached outside its memory"),
        (
            "an indirect call into nothing",
            Guest::doing("(call_indirect $t (i32.const 0))", 16).with("(table $t 1 funcref)").bytes(),
            "plugin hostile 6.6.6: in make-plan: it broke off: wasm trap: uninitialized element",
        ),
        (
            "host-call spam",
            Guest::doing("(loop $more (drop (call $count (local.get $view))) (br $more))", 16).bytes(),
            "plugin hostile 6.6.6: in make-plan: it called the host more than 30000 times \
             (`plugins.host_calls`)\n  help: raise plugins.host_calls if you trust the plugin",
        ),
        (
            "a log flood",
            Guest::doing("(loop $more (call $warn (i32.const 0) (i32.const 100)) (br $more))", 16).bytes(),
            "plugin hostile 6.6.6: in make-plan: it wrote more than 4 KiB of messages \
             (`plugins.log_kib`)\n  help: raise plugins.log_kib if you trust the plugin",
        ),
        (
            "a statistics drain",
            Guest::doing(
                &format!(
                    "{TENSOR} (loop $more (call $quantiles (local.get $j) (i32.const 128) (i32.const 1) (i32.const 64))
                     (br $more))"
                ),
                16,
            )
            .bytes(),
            "plugin hostile 6.6.6: in make-plan: it asked for statistics of more than 3 times the \
             model's weights (`plugins.statistics`)\n  help: raise plugins.statistics if you trust the \
             plugin",
        ),
        ("a list of bytes of all its memory, again and again", {
            let body = repeated(100, "(call $set-state (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1000000) (i32.const 64))");
            Guest { memory: "(memory (export \"memory\") 20)", ..Guest::doing(&body, 16) }.bytes()
        }, "plugin hostile 6.6.6: in make-plan: it passed more than 8 MiB of text and numbers \
             (`plugins.passed_mib`)\n  help: raise plugins.passed_mib if you trust the plugin"),
        ("one huge string", {
            let body = "(drop (memory.grow (i32.const 200))) (call $warn (i32.const 0) (i32.const 12000000))";
            Guest::doing(body, 16).bytes()
        }, "plugin hostile 6.6.6: in make-plan: it passed more than 8 MiB in one call \
             (`plugins.passed_mib`)\n  help: raise plugins.passed_mib if you trust the plugin"),
        ("a string longer than its memory", Guest::doing("(call $warn (i32.const 0) (i32.const 0x7fffffff))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: string pointer/length \
             out of bounds of memory"),
        ("a pointer out of bounds", Guest::doing("(call $warn (i32.const 0x7ffffff0) (i32.const 4))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: string pointer/length \
             out of bounds of memory"),
        (
            "a huge list",
            Guest::doing(
                "(call $choose (local.get $view) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0x0fffffff)
                 (i32.const 0) (i32.const 0) (i32.const 64))",
                16,
            )
            .bytes(),
            "plugin hostile 6.6.6: in make-plan: it broke a rule of components: list pointer/length out \
             of bounds of memory",
        ),
        (
            "memory for the host that is not there",
            Guest { realloc: "(i32.const 0x7ffffff0)", ..Guest::doing("(call $architecture (local.get $view) (i32.const 64))", 16) }.bytes(),
            "plugin hostile 6.6.6: in make-plan: it broke a rule of components: realloc return: beyond \
             end of memory",
        ),
        (
            "memory for the host that is not aligned",
            Guest { realloc: "(i32.const 65537)", ..Guest::doing(&format!("{TENSOR} (call $quantiles (local.get $j) (i32.const 128) (i32.const 1) (i32.const 64))"), 16) }.bytes(),
            "plugin hostile 6.6.6: in make-plan: it broke a rule of components: realloc return: result \
             not aligned",
        ),
        ("bad UTF-8 in a message", Guest::doing("(call $warn (i32.const 200) (i32.const 2))", 16).with("(data (i32.const 200) \"\\c3\\28\")").bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: invalid utf-8 sequence \
             of 1 bytes from index 0"),
        (
            "bad UTF-8 in its answer",
            Guest::doing("", 40).with("(data (i32.const 40) \"\\01\\00\\00\\00\\02\\00\\00\\00\\c8\\00\\00\\00\\02\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\") (data (i32.const 200) \"\\c3\\28\")").bytes(),
            "plugin hostile 6.6.6: in make-plan: it broke a rule of components: invalid utf-8 sequence \
             of 1 bytes from index 0",
        ),
        (
            "terminal escapes in its error",
            Guest::doing("", 40).with("(data (i32.const 40) \"\\01\\00\\00\\00\\02\\00\\00\\00\\c8\\00\\00\\00\\08\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\") (data (i32.const 200) \"\\1b[2Jgone\")").bytes(),
            "plugin hostile 6.6.6: \\u{1b}[2Jgone",
        ),
        ("an answer that is none", Guest::doing("", 40).with("(data (i32.const 40) \"\\07\")").bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: invalid expected \
             discriminant"),
        ("an answer out of bounds", Guest::doing("", 0x7fff_fff0).bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: pointer out of bounds of \
             memory"),
        ("a score that is no number", Guest::answering("(call $score (local.get $builder) (i32.const 1) (f64.const nan) (i32.const 64))").bytes(), "plugin hostile 6.6.6: the score of `model.layers.0.input_layernorm.weight` must be a finite \
             number, not NaN"),
        ("an infinite score", Guest::answering("(call $score (local.get $builder) (i32.const 1) (f64.const inf) (i32.const 64))").bytes(), "plugin hostile 6.6.6: the score of `model.layers.0.input_layernorm.weight` must be a finite \
             number, not inf"),
        (
            "an infinite learning rate",
            Guest::answering("(call $train (local.get $builder) (i32.const 1) (i32.const 64)) (call $lr-scale (local.get $builder) (i32.const 1) (f64.const inf) (i32.const 64))").bytes(),
            "plugin hostile 6.6.6: the learning-rate factor of `model.layers.0.input_layernorm.weight` \
             must be a number above 0, not inf",
        ),
        ("an unknown tensor", Guest::answering("(call $train (local.get $builder) (i32.const -1) (i32.const 64))").bytes(), "plugin hostile 6.6.6: the model has no tensor 4294967295: its tensors are 0 to 23"),
        ("an unknown name", Guest::answering("(call $find (local.get $view) (i32.const 200) (i32.const 9) (i32.const 64))").with(&big_data(200, "\\1b[1mx.wei")).bytes(), "plugin hostile 6.6.6: the model has no tensor `\\u{1b}[1mx.wei`"),
        (
            "a tensor treated twice",
            Guest::answering("(call $train (local.get $builder) (i32.const 1) (i32.const 64)) (call $train (local.get $builder) (i32.const 1) (i32.const 64))").bytes(),
            "plugin hostile 6.6.6: `model.layers.0.input_layernorm.weight` is treated twice: first \
             trained, then trained",
        ),
        ("rank 0", Guest::answering("(call $adapt (local.get $builder) (i32.const 4) (call $adapter (i32.const 0)) (i32.const 64))").bytes(), "plugin hostile 6.6.6: rank 0 does not fit `model.layers.0.self_attn.q_proj.weight` of shape \
             [96, 64]: it must be between 1 and 64\n  help: lower the rank to at most 64, or leave this \
             tensor out"),
        ("a huge rank", Guest::answering("(call $adapt (local.get $builder) (i32.const 4) (call $adapter (i32.const -1)) (i32.const 64))").bytes(), "plugin hostile 6.6.6: rank 4294967295 does not fit `model.layers.0.self_attn.q_proj.weight` \
             of shape [96, 64]: it must be between 1 and 64\n  help: lower the rank to at most 64, or \
             leave this tensor out"),
        ("an adapter beside a norm", Guest::answering("(call $adapt (local.get $builder) (i32.const 1) (call $adapter (i32.const 4)) (i32.const 64))").bytes(), "plugin hostile 6.6.6: cannot adapt `model.layers.0.input_layernorm.weight`: it is a \
             normalisation's scale, and only linear layers' weights take an adapter\n  help: train it \
             whole, or leave it frozen"),
        ("picks every 0 steps", Guest::answering("(call $pick-every (local.get $builder) (i64.const 0) (i32.const 64))").bytes(), "plugin hostile 6.6.6: a policy cannot revise its plan every 0 steps\n  help: ask for 1 or \
             more"),
        ("a pick before the first step", Guest::answering("(call $pick-at (local.get $builder) (i64.const 1) (i32.const 64))").bytes(), "plugin hostile 6.6.6: a plan cannot be revised before step 1: the first plan is step 1's\n  \
             help: ask for 2 or more"),
        (
            "picks without saying so",
            Guest { metadata: METADATA.replace(",\"revise\"", ""), ..Guest::answering("(call $pick-every (local.get $builder) (i64.const 2) (i32.const 64))") }.bytes(),
            "plugin hostile 6.6.6: the plugin's metadata does not name the capability `revise`, and it \
             asked for picks\n  help: add it to `capabilities`",
        ),
        ("data without saying so", Guest::answering("(call $open (local.get $view) (i32.const 1) (i32.const 64))").bytes(), "plugin hostile 6.6.6: the plugin's metadata does not name the capability `calibration`\n  \
             help: add it to `capabilities`"),
        ("a storage that is none", Guest::answering("(call $storage (local.get $builder) (i32.const 1) (i32.const 200) (i32.const 4) (i32.const 64))").with(&big_data(200, "f\\1b64")).bytes(), "plugin hostile 6.6.6: `model.layers.0.input_layernorm.weight` cannot be kept as `f\\u{1b}64`\n  \
             help: it can be f32, bf16, nf4 or int8"),
        ("more state than may be kept", Guest::answering("(call $set-state (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 60000) (i32.const 64))").bytes(), "plugin hostile 6.6.6: a policy keeps at most 16 KiB between picks (`plugins.state_kib`)"),
        ("leaked handles", Guest { make_plan: "(i32.const 16)".into(), ..Guest::doing("", 16) }.bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: borrow handles still \
             remain at the end of the call"),
        ("a bomb of handles", Guest::doing(&repeated(21_000, "(call $tensor (local.get $view) (i32.const 0) (i32.const 64))"), 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: cannot allocate another \
             handle: store handle limit exceeded"),
        ("use after drop", Guest { make_plan: format!("{DROPS} (drop (call $count (local.get $view))) (i32.const 16)"), ..Guest::doing("", 16) }.bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: unknown handle index 1"),
        ("a handle made up", Guest::doing("(drop (call $count (i32.const 77)))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: unknown handle index 77"),
        ("a handle of another kind", Guest::doing("(drop (call $count (local.get $builder)))", 16).bytes(), "plugin hostile 6.6.6: in make-plan: it broke a rule of components: handle index 2 used with \
             the wrong type, expected guest-defined resource but found a different guest-defined resource"),
        ("a plan in which nothing trains", Guest::doing("", 16).bytes(), "policy `hostile` made an empty plan: no tensor trains\n  help: choose at least one tensor \
             to train or adapt"),
        (
            "the file system",
            component("(component (import \"wasi:filesystem/types@0.2.0\" (instance)) (import \"wasi:sockets/tcp@0.2.0\" (instance)))"),
            "plugin hostile 6.6.6: it imports `wasi:filesystem/types@0.2.0` and 1 more, and plugins get \
             nothing but the plugin API\n  help: its author can leave WASI out, as `liftplan plugin \
             build` does (--stub-wasi)",
        ),
        ("a host that is not there", component("(component (import \"liftplan:policy/weights@0.1.0\" (instance (export \"read\" (func)))))"), "plugin hostile 6.6.6 does not fit the plugin API 0.1: function implementation is missing\n  \
             help: build it again with the SDK of this version"),
        ("another type of a function", component("(component (import \"liftplan:policy/log@0.1.0\" (instance (export \"warn\" (func (param \"message\" u64))))))"), "plugin hostile 6.6.6 does not fit the plugin API 0.1: expected `string` found `u64`\n  \
             help: build it again with the SDK of this version"),
        ("no exports", component("(component)"), "plugin hostile 6.6.6 does not fit the plugin API 0.1: no exported instance named \
             `liftplan:policy/policy@0.1.0`\n  help: build it again with the SDK of this version"),
        ("too large a file", vec![0; (1 << 20) + 1], "the plugin's file has 2 MiB, more than 1 (`plugins.file_mib`)\n  help: raise the limit if \
             you trust the file"),
        ("a truncated file", Guest::doing("", 16).bytes()[..900].to_vec(), "it ends in the middle: it is cut short or damaged\n  help: fetch or build it again"),
        ("a corrupt file", {
            let mut bytes = Guest::doing("", 16).bytes();
            bytes[700..720].fill(0xee);
            bytes
        }, "it is not a valid component: …"),
        ("a core module", with_metadata(wat::parse_str("(module)").unwrap(), METADATA), "it is a WebAssembly module, and a plugin is a WebAssembly component\n  help: link it with \
             wasm-component-ld, or build it with `liftplan plugin build`"),
        ("compiled code", b"\x7fELF not a component".to_vec(), "it is neither a WebAssembly component nor a dynamic library\n  help: a plugin is one file, \
             NAME.wasm, or a native library such as NAME.so"),
        ("no metadata", wat::parse_str("(component)").unwrap(), "it is no Liftplan plugin: it has no section liftplan:plugin\n  help: a plugin has its name, \
             version and licence inside; `liftplan plugin new` makes one that does"),
        ("an API of the future", with_metadata(wat::parse_str("(component)").unwrap(), &METADATA.replace("0.1\"", "7.0\"")), "it was built for version 7.0 of the plugin API, and this Liftplan speaks 0.1\n  help: \
             update Liftplan, or take an older version of the plugin"),
    ]
}

#[test]
fn hostile_components_end_in_an_error_and_the_process_goes_on() {
    let cases = cases();
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

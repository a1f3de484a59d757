//! Hostile components and what stops each.

use super::guests::{DROPS, Guest, METADATA, component, with_instances};

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

/// What a component does, and the error, which names the component first.
pub fn guests() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let spin = "(loop $ever (br $ever))";
    let deep = "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get \
             0))))";
    let big_data = |offset: u32, text: &str| format!("(data (i32.const {offset}) \"{text}\")");
    vec![
        (
            "an endless loop",
            Guest::doing(spin, 16).bytes(),
            "in make-plan: it did more than 200000000 units of work (`plugins.fuel`)\n  help: \
             raise plugins.fuel if you trust the plugin",
        ),
        (
            "an endless start function",
            Guest::doing("", 16).with(&format!("(func $s {spin}) (start $s)")).bytes(),
            "while it was loaded: it did more than 200000000 units of work (`plugins.fuel`)\n  help: \
             raise plugins.fuel if you trust the plugin",
        ),
        (
            "a trap while it is loaded",
            Guest::doing("", 16).with("(func $s (unreachable)) (start $s)").bytes(),
            "while it was loaded: it broke off\n  help: the plugin's author must mend it",
        ),
        (
            "asking the host while it is loaded",
            Guest::doing("", 16).with("(func $s (call $warn (i32.const 0) (i32.const 4))) (start $s)").bytes(),
            "while it was loaded: it broke off: wasm trap: uninitialized element",
        ),
        (
            "deep recursion",
            Guest::doing("(drop (call $deep (i32.const 0)))", 16).with(deep).bytes(),
            "in make-plan: it called itself too deep: its stack has 512 KiB",
        ),
        (
            "a memory bomb",
            Guest::doing("(loop $more (drop (memory.grow (i32.const 16))) (br $more))", 16).bytes(),
            "in make-plan: it wanted 17 MiB of memory, more than 16 (`plugins.memory_mib`)\n  help: \
             raise plugins.memory_mib if you trust the plugin",
        ),
        (
            "a memory too large from the start",
            Guest { memory: "(memory (export \"memory\") 1000)", ..Guest::doing("", 16) }.bytes(),
            "while it was loaded: it wanted 63 MiB of memory, more than 16 \
             (`plugins.memory_mib`)\n  help: raise plugins.memory_mib if you trust the plugin",
        ),
        (
            "a table bomb",
            Guest::doing("(loop $more (drop (table.grow $t (ref.null func) (i32.const 10000))) (br $more))", 16)
                .with("(table $t 1 funcref)")
                .bytes(),
            "in make-plan: it wanted tables of 100001 elements, more than 100000",
        ),
        (
            "a table too large from the start",
            Guest::doing("", 16).with("(table 9000000 funcref)").bytes(),
            "while it was loaded: it wanted tables of 9000000 elements, more than 100000",
        ),
        (
            "an instance bomb",
            (0..3).fold(Guest::doing("", 16).bytes(), |bytes, _| with_instances(bytes, 40, "(module)")),
            "while it was loaded: it broke a rule of components: resource limit exceeded: \
             instance count too high at 65",
        ),
        (
            "a bomb of memories in instances",
            with_instances(Guest::doing("", 16).bytes(), 20, "(module (memory 100))"),
            "while it was loaded: it wanted 19 MiB of memory, more than 16 \
             (`plugins.memory_mib`)\n  help: raise plugins.memory_mib if you trust the plugin",
        ),
        (
            "a trap",
            Guest::doing("(unreachable)", 16).bytes(),
            "in make-plan: it broke off\n  help: the plugin's author must mend it",
        ),
        (
            "a division by zero",
            Guest::doing("(drop (i32.div_u (i32.const 1) (local.get $i)))", 16).bytes(),
            "in make-plan: it broke off: wasm trap: integer divide by zero",
        ),
        (
            "memory out of bounds",
            Guest::doing("(i32.store (i32.const -4) (i32.const 1))", 16).bytes(),
            "in make-plan: it reached outside its memory",
        ),
        (
            "an indirect call into nothing",
            Guest::doing("(call_indirect $t (i32.const 0))", 16).with("(table $t 1 funcref)").bytes(),
            "in make-plan: it broke off: wasm trap: uninitialized element",
        ),
        (
            "host-call spam",
            Guest::doing("(loop $more (drop (call $count (local.get $view))) (br $more))", 16).bytes(),
            "in make-plan: it called the host more than 30000 times (`plugins.host_calls`)\n  help: \
             raise plugins.host_calls if you trust the plugin",
        ),
        (
            "a log flood",
            Guest::doing("(loop $more (call $warn (i32.const 0) (i32.const 100)) (br $more))", 16).bytes(),
            "in make-plan: it wrote more than 4 KiB of messages (`plugins.log_kib`)\n  help: \
             raise plugins.log_kib if you trust the plugin",
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
            "in make-plan: it asked for statistics of more than 3 times the model's weights \
             (`plugins.statistics`)\n  help: raise plugins.statistics if you trust the plugin",
        ),
        (
            "a list of bytes of all its memory, again and again",
            {
                let body = repeated(
                    100,
                    "(call $set-state (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1000000) \
             (i32.const 64))",
                );
                Guest { memory: "(memory (export \"memory\") 20)", ..Guest::doing(&body, 16) }.bytes()
            },
            "in make-plan: it passed more than 8 MiB of text and numbers (`plugins.passed_mib`)\n  help: \
             raise plugins.passed_mib if you trust the plugin",
        ),
        (
            "one huge string",
            {
                let body = "(drop (memory.grow (i32.const 200))) (call $warn (i32.const 0) (i32.const 12000000))";
                Guest::doing(body, 16).bytes()
            },
            "in make-plan: it passed more than 8 MiB in one call (`plugins.passed_mib`)\n  help: \
             raise plugins.passed_mib if you trust the plugin",
        ),
        (
            "a string longer than its memory",
            Guest::doing("(call $warn (i32.const 0) (i32.const 0x7fffffff))", 16).bytes(),
            "in make-plan: it broke a rule of components: string pointer/length out of bounds of \
             memory",
        ),
        (
            "a pointer out of bounds",
            Guest::doing("(call $warn (i32.const 0x7ffffff0) (i32.const 4))", 16).bytes(),
            "in make-plan: it broke a rule of components: string pointer/length out of bounds of \
             memory",
        ),
        (
            "a huge list",
            Guest::doing(
                "(call $choose (local.get $view) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0x0fffffff)
                 (i32.const 0) (i32.const 0) (i32.const 64))",
                16,
            )
            .bytes(),
            "in make-plan: it broke a rule of components: list pointer/length out of bounds of \
             memory",
        ),
        (
            "memory for the host that is not there",
            Guest {
                realloc: "(i32.const 0x7ffffff0)",
                ..Guest::doing("(call $architecture (local.get $view) (i32.const 64))", 16)
            }
            .bytes(),
            "in make-plan: it broke a rule of components: realloc return: beyond end of memory",
        ),
        (
            "memory for the host that is not aligned",
            Guest {
                realloc: "(i32.const 65537)",
                ..Guest::doing(
                    &format!(
                        "{TENSOR} (call $quantiles (local.get $j) (i32.const 128) (i32.const 1) (i32.const \
             64))"
                    ),
                    16,
                )
            }
            .bytes(),
            "in make-plan: it broke a rule of components: realloc return: result not aligned",
        ),
        (
            "bad UTF-8 in a message",
            Guest::doing("(call $warn (i32.const 200) (i32.const 2))", 16)
                .with("(data (i32.const 200) \"\\c3\\28\")")
                .bytes(),
            "in make-plan: it broke a rule of components: invalid utf-8 sequence of 1 bytes from \
             index 0",
        ),
        (
            "bad UTF-8 in its answer",
            Guest::doing("", 40)
                .with(
                    "(data (i32.const 40) \
             \"\\01\\00\\00\\00\\02\\00\\00\\00\\c8\\00\\00\\00\\02\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\") \
             (data (i32.const 200) \"\\c3\\28\")",
                )
                .bytes(),
            "in make-plan: it broke a rule of components: invalid utf-8 sequence of 1 bytes from \
             index 0",
        ),
        (
            "terminal escapes in its error",
            Guest::doing("", 40)
                .with(
                    "(data (i32.const 40) \
             \"\\01\\00\\00\\00\\02\\00\\00\\00\\c8\\00\\00\\00\\08\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\\00\") \
             (data (i32.const 200) \"\\1b[2Jgone\")",
                )
                .bytes(),
            "\\u{1b}[2Jgone",
        ),
        (
            "an answer that is none",
            Guest::doing("", 40).with("(data (i32.const 40) \"\\07\")").bytes(),
            "in make-plan: it broke a rule of components: invalid expected discriminant",
        ),
        (
            "an answer out of bounds",
            Guest::doing("", 0x7fff_fff0).bytes(),
            "in make-plan: it broke a rule of components: pointer out of bounds of memory",
        ),
        (
            "a score that is no number",
            Guest::answering("(call $score (local.get $builder) (i32.const 1) (f64.const nan) (i32.const 64))").bytes(),
            "the score of `model.layers.0.input_layernorm.weight` must be a finite number, not \
             NaN",
        ),
        (
            "an infinite score",
            Guest::answering("(call $score (local.get $builder) (i32.const 1) (f64.const inf) (i32.const 64))").bytes(),
            "the score of `model.layers.0.input_layernorm.weight` must be a finite number, not \
             inf",
        ),
        (
            "an infinite learning rate",
            Guest::answering(
                "(call $train (local.get $builder) (i32.const 1) (i32.const 64)) (call $lr-scale \
             (local.get $builder) (i32.const 1) (f64.const inf) (i32.const 64))",
            )
            .bytes(),
            "the learning-rate factor of `model.layers.0.input_layernorm.weight` must be a number \
             above 0, not inf",
        ),
        (
            "an unknown tensor",
            Guest::answering("(call $train (local.get $builder) (i32.const -1) (i32.const 64))").bytes(),
            "the model has no tensor 4294967295: its tensors are 0 to 23",
        ),
        (
            "an unknown name",
            Guest::answering("(call $find (local.get $view) (i32.const 200) (i32.const 9) (i32.const 64))")
                .with(&big_data(200, "\\1b[1mx.wei"))
                .bytes(),
            "the model has no tensor `\\u{1b}[1mx.wei`",
        ),
        (
            "a tensor treated twice",
            Guest::answering(
                "(call $train (local.get $builder) (i32.const 1) (i32.const 64)) (call $train \
             (local.get $builder) (i32.const 1) (i32.const 64))",
            )
            .bytes(),
            "`model.layers.0.input_layernorm.weight` is treated twice: first trained, then \
             trained",
        ),
        (
            "rank 0",
            Guest::answering(
                "(call $adapt (local.get $builder) (i32.const 4) (call $adapter (i32.const 0)) \
             (i32.const 64))",
            )
            .bytes(),
            "rank 0 does not fit `model.layers.0.self_attn.q_proj.weight` of shape [96, 64]: it \
             must be between 1 and 64\n  help: lower the rank to at most 64, or leave this tensor \
             out",
        ),
        (
            "a huge rank",
            Guest::answering(
                "(call $adapt (local.get $builder) (i32.const 4) (call $adapter (i32.const -1)) \
             (i32.const 64))",
            )
            .bytes(),
            "rank 4294967295 does not fit `model.layers.0.self_attn.q_proj.weight` of shape [96, \
             64]: it must be between 1 and 64\n  help: lower the rank to at most 64, or leave \
             this tensor out",
        ),
        (
            "an adapter beside a norm",
            Guest::answering(
                "(call $adapt (local.get $builder) (i32.const 1) (call $adapter (i32.const 4)) \
             (i32.const 64))",
            )
            .bytes(),
            "cannot adapt `model.layers.0.input_layernorm.weight`: it is a normalisation's scale, \
             and only linear layers' weights take an adapter\n  help: train it whole, or leave it \
             frozen",
        ),
        (
            "picks every 0 steps",
            Guest::answering("(call $pick-every (local.get $builder) (i64.const 0) (i32.const 64))").bytes(),
            "a policy cannot revise its plan every 0 steps\n  help: ask for 1 or more",
        ),
        (
            "a pick before the first step",
            Guest::answering("(call $pick-at (local.get $builder) (i64.const 1) (i32.const 64))").bytes(),
            "a plan cannot be revised before step 1: the first plan is step 1's\n  help: ask for \
             2 or more",
        ),
        (
            "picks without saying so",
            Guest {
                metadata: METADATA.replace(",\"revise\"", ""),
                ..Guest::answering("(call $pick-every (local.get $builder) (i64.const 2) (i32.const 64))")
            }
            .bytes(),
            "the plugin's metadata does not name the capability `revise`, and it asked for \
             picks\n  help: add it to `capabilities`",
        ),
        (
            "data without saying so",
            Guest::answering("(call $open (local.get $view) (i32.const 1) (i32.const 64))").bytes(),
            "the plugin's metadata does not name the capability `calibration`\n  help: add it to \
             `capabilities`",
        ),
        (
            "a storage that is none",
            Guest::answering(
                "(call $storage (local.get $builder) (i32.const 1) (i32.const 200) (i32.const 4) \
             (i32.const 64))",
            )
            .with(&big_data(200, "f\\1b64"))
            .bytes(),
            "`model.layers.0.input_layernorm.weight` cannot be kept as `f\\u{1b}64`\n  help: it \
             can be f32, bf16, nf4 or int8",
        ),
        (
            "more state than may be kept",
            Guest::answering(
                "(call $set-state (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 60000) \
             (i32.const 64))",
            )
            .bytes(),
            "a policy keeps at most 16 KiB between picks (`plugins.state_kib`)",
        ),
        (
            "leaked handles",
            Guest { make_plan: "(i32.const 16)".into(), ..Guest::doing("", 16) }.bytes(),
            "in make-plan: it broke a rule of components: borrow handles still remain at the end \
             of the call",
        ),
        (
            "a bomb of handles",
            Guest::doing(&repeated(21_000, "(call $tensor (local.get $view) (i32.const 0) (i32.const 64))"), 16)
                .bytes(),
            "in make-plan: it broke a rule of components: cannot allocate another handle: store \
             handle limit exceeded",
        ),
        (
            "use after drop",
            Guest {
                make_plan: format!("{DROPS} (drop (call $count (local.get $view))) (i32.const 16)"),
                ..Guest::doing("", 16)
            }
            .bytes(),
            "in make-plan: it broke a rule of components: unknown handle index 1",
        ),
        (
            "a handle made up",
            Guest::doing("(drop (call $count (i32.const 77)))", 16).bytes(),
            "in make-plan: it broke a rule of components: unknown handle index 77",
        ),
        (
            "a handle of another kind",
            Guest::doing("(drop (call $count (local.get $builder)))", 16).bytes(),
            "in make-plan: it broke a rule of components: handle index 2 used with the wrong \
             type, expected guest-defined resource but found a different guest-defined resource",
        ),
        (
            "the file system",
            component(
                "(component (import \"wasi:filesystem/types@0.2.0\" (instance)) (import \
             \"wasi:sockets/tcp@0.2.0\" (instance)))",
            ),
            "it imports `wasi:filesystem/types@0.2.0` and 1 more, and plugins get nothing but the \
             plugin API\n  help: its author can leave WASI out, as `liftplan plugin build` does \
             (--stub-wasi)",
        ),
    ]
}

//! The C header is made from the ABI's one source, `plugin-api/rust/src/abi.rs`, and checked in. This compares the two;
//! `LIFTPLAN_BLESS=1 cargo test --release --test plugin_header` writes the header anew. It also compares the ABI with the
//! plugin API in WIT: every function there must have its place here.

#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn abi() -> String {
    std::fs::read_to_string(root().join("plugin-api/rust/src/abi.rs")).unwrap()
}

const BEFORE: &str = "\
/* The C ABI of Liftplan's native plugins. Made from plugin-api/rust/src/abi.rs; do not edit.
 *
 * A plugin is a dynamic library that exports liftplan_plugin() and has its metadata, one JSON object, in the section
 * \".liftplan\" (macOS: \"__DATA,__liftplan\"); LIFTPLAN_METADATA puts it there.
 *
 * Every function of the host gives 0 when it did what it was asked, and writes its answer to `out`. Any other number is an
 * error's code, and last_failure says more; returning it from make_plan or revise hands the error on to the user. Texts
 * are UTF-8 without a zero at the end. What the host hands out stays where it is until the plugin's function returns. All
 * calls must come from the thread that the host called on. */
#ifndef LIFTPLAN_PLUGIN_H
#define LIFTPLAN_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern \"C\" {
#endif

";

const AFTER: &str = "\
/* Asks the host, and hands its error on if it refuses. */
#define LIFTPLAN_TRY(call)           \\
    do {                             \\
        int32_t liftplan_code = (call); \\
        if (liftplan_code != 0)      \\
            return liftplan_code;    \\
    } while (0)

/* A text from a string literal. */
#define LIFTPLAN_TEXT(literal) ((liftplan_text){ (const uint8_t *)(literal), sizeof(literal) - 1 })

/* The plugin's metadata: JSON as a string literal, once in a library. */
#ifdef __APPLE__
#define LIFTPLAN_SECTION \"__DATA,__liftplan\"
#else
#define LIFTPLAN_SECTION \".liftplan\"
#endif
#define LIFTPLAN_METADATA(json) \\
    __attribute__((used, section(LIFTPLAN_SECTION))) static const char liftplan_metadata[] = json;

/* What a plugin exports. */
__attribute__((visibility(\"default\"))) const liftplan_policy *liftplan_plugin(void);

#ifdef __cplusplus
}
#endif

#endif
";

/// A Rust type as C has it.
fn c_type(rust: &str) -> String {
    if let Some(inner) = rust.strip_prefix("*mut ") {
        return format!("{} *", c_type(inner));
    }
    if let Some(inner) = rust.strip_prefix("*const ") {
        return format!("const {} *", c_type(inner));
    }
    match rust {
        "u8" | "u32" | "u64" => format!("uint{}_t", &rust[1..]),
        "i32" | "i64" => format!("int{}_t", &rust[1..]),
        "usize" => "size_t".into(),
        "f64" => "double".into(),
        "bool" => "bool".into(),
        "c_void" => "void".into(),
        other => {
            let mut name = "liftplan".to_string();
            for letter in other.chars() {
                if letter.is_uppercase() {
                    name.push('_');
                }
                name.push(letter.to_ascii_lowercase());
            }
            name
        }
    }
}

/// A declaration: a type and a name.
fn declared(rust: &str, name: &str) -> String {
    let c = c_type(rust);
    if c.ends_with('*') { format!("{c}{name}") } else { format!("{c} {name}") }
}

/// `name: Type, name: Type` as C has it.
fn arguments(rust: &str) -> Vec<String> {
    rust.split(", ")
        .filter(|argument| !argument.is_empty())
        .map(|argument| {
            let (name, kind) = argument.split_once(": ").unwrap();
            declared(kind, name)
        })
        .collect()
}

/// A function pointer of the host or the plugin.
fn pointer(name: &str, arguments: &[String]) -> String {
    format!("    int32_t (*{name})({});\n", arguments.join(", "))
}

fn comment(text: &mut String, docs: &mut Vec<String>, indent: &str) {
    if !docs.is_empty() {
        writeln!(text, "{indent}/* {} */", docs.join(&format!("\n{indent} * "))).unwrap();
    }
    docs.clear();
}

fn header() -> String {
    let source = abi();
    let functions = host_functions(&source);
    let mut text = BEFORE.to_string();
    let mut docs = Vec::new();
    let mut structs = String::new();
    let mut inside: Option<String> = None;
    // The host comes last, because it names all others.
    let start = source.find("use core::ffi::c_void;").unwrap();
    for line in source[start..].lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("/// ") {
            docs.push(doc.replace("[`Host`]", "the host's table"));
        } else if let Some(version) = line.strip_prefix("pub const ABI_VERSION: u32 = ") {
            comment(&mut text, &mut docs, "");
            writeln!(text, "#define LIFTPLAN_ABI_VERSION {}\n", version.trim_end_matches(';')).unwrap();
            writeln!(text, "typedef struct liftplan_host liftplan_host;\n").unwrap();
        } else if let Some(name) = line.strip_prefix("pub struct ") {
            let name = c_type(name.trim_end_matches(" {"));
            comment(&mut structs, &mut docs, "");
            let opening = if name == "liftplan_host" { "struct" } else { "typedef struct" };
            writeln!(structs, "{opening} {name} {{").unwrap();
            inside = Some(name);
        } else if let (Some(field), Some(_)) = (line.strip_prefix("pub "), &inside) {
            let (name, kind) = field.trim_end_matches(',').split_once(": ").unwrap();
            if name == "$name" {
                continue;
            }
            comment(&mut structs, &mut docs, "    ");
            match kind.split_once("extern \"C\" fn(") {
                Some((_, rest)) => structs.push_str(&pointer(name, &arguments(rest.split(')').next().unwrap()))),
                None => writeln!(structs, "    {};", declared(kind, name)).unwrap(),
            }
        } else if line == "}" && inside.as_deref().is_some_and(|name| name != "liftplan_host") {
            writeln!(structs, "}} {};\n", inside.take().unwrap()).unwrap();
        } else if line == "$(" && inside.is_some() {
            for function in &functions {
                comment(&mut structs, &mut function.docs.clone(), "    ");
                structs.push_str(&pointer(&function.name, &function.arguments));
            }
            structs.push_str("};\n\n");
            inside = None;
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    text.push_str(&structs);
    text.push_str(AFTER);
    text
}

struct Function {
    name: String,
    docs: Vec<String>,
    arguments: Vec<String>,
}

/// The lines of the macro `host_functions`.
fn host_functions(source: &str) -> Vec<Function> {
    let start = source.find("$with! {").unwrap();
    let end = start + source[start..].find("\n        }\n").unwrap();
    let mut docs = Vec::new();
    let mut functions = Vec::new();
    for line in source[start..end].lines().skip(1).map(str::trim) {
        if let Some(doc) = line.strip_prefix("/// ") {
            docs.push(doc.to_string());
        } else if let Some((name, rest)) = line.split_once('(') {
            let (given, out) = rest.split_once(')').unwrap();
            let mut all = vec!["const liftplan_host *host".to_string()];
            all.extend(arguments(given));
            if let Some(out) = out.trim_end_matches(';').strip_prefix(" -> ") {
                all.push(declared(&format!("*mut {out}"), "out"));
            }
            functions.push(Function { name: name.to_string(), docs: std::mem::take(&mut docs), arguments: all });
        }
    }
    assert!(functions.len() > 50, "{} functions", functions.len());
    functions
}

#[test]
fn the_header_is_that_of_the_abi() {
    let path = root().join("plugin-api/c/liftplan_plugin.h");
    let made = header();
    if std::env::var_os("LIFTPLAN_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(made, kept, "run this test with LIFTPLAN_BLESS=1 and look at what changed");
}

/// What the first release of the ABI has, in its order. Functions are only ever added at the end.
#[test]
fn released_functions_keep_their_places() {
    let names: Vec<String> = host_functions(&abi()).into_iter().map(|function| function.name).collect();
    let released = include_str!("../golden/plugins/abi-1.txt");
    let released: Vec<&str> = released.lines().collect();
    assert!(names.len() >= released.len());
    assert_eq!(names[..released.len()], released[..]);
}

/// Functions of the plugin API that have another name here, or none of their own.
const OTHERWISE: [(&str, &str); 34] = [
    ("tensor.id", ""),
    ("tensor.name", "tensor_name"),
    ("tensor.role", "tensor_role"),
    ("tensor.kind", "tensor_kind"),
    ("tensor.block", "tensor_block"),
    ("tensor.shape", "tensor_shape"),
    ("tensor.elements", "tensor_elements"),
    ("tensor.dtype", "tensor_dtype"),
    ("tensor.storage", "tensor_storage"),
    ("tensor.tied", "tensor_tied"),
    ("view.tensor", ""),
    ("session.tokens", "calibration_tokens"),
    ("session.loss", "calibration_loss"),
    ("open", "calibrate"),
    ("adapter.constructor", ""),
    ("adapter.alpha", ""),
    ("adapter.dropout", ""),
    ("adapter.rank-stabilised", ""),
    ("adapter.dora", ""),
    ("moment.gradient-norm", "run_gradient_norm"),
    ("moment.update-norm", "run_update_norm"),
    ("moment.random", "pick_random"),
    ("debug", "log"),
    ("info", "log"),
    ("warn", "log"),
    ("describe", ""),
    ("make-plan", ""),
    ("revise", ""),
    ("view.seed", "seed"),
    ("view.tied", "tied"),
    ("builder.storage", "storage"),
    ("session.gradient-norm", "gradient_norm"),
    ("get-state", "get_state"),
    ("set-state", "set_state"),
];

#[test]
fn every_function_of_the_plugin_api_has_its_place() {
    let mut resolve = wit_parser::Resolve::default();
    resolve.push_dir(root().join("plugin-api/wit/policy-0.1.0")).unwrap();
    let names: Vec<String> = host_functions(&abi()).into_iter().map(|function| function.name).collect();
    let mut seen = 0;
    for (_, interface) in resolve.interfaces.iter() {
        for name in interface.functions.keys() {
            seen += 1;
            let plain = name.split(']').next_back().unwrap();
            let plain = if name.starts_with("[constructor]") { format!("{plain}.constructor") } else { plain.into() };
            let here = match OTHERWISE.iter().find(|(api, _)| *api == plain) {
                Some((_, "")) => continue,
                Some((_, here)) => here.to_string(),
                None => plain.rsplit('.').next().unwrap().replace('-', "_"),
            };
            assert!(names.contains(&here), "{name} of the plugin API has no function {here} in the ABI");
        }
    }
    assert!(seen > 60, "{seen} functions of the plugin API");
}

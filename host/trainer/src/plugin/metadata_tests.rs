use serde_json::json;

use super::super::custom_section::tests::{component, custom};
use super::*;

fn good() -> Value {
    json!({
        "name": "top-norm", "version": "1.0.0", "author": "A. Weaver", "license": "MIT", "api": "0.1",
        "about": "Trains the weights with the largest norm.",
        "settings": { "type": "object", "properties": { "percent": { "type": "number", "default": 25 } } },
        "capabilities": ["statistics"]
    })
}

fn file(metadata: &Value) -> Vec<u8> {
    component(&[custom(WASM_SECTION, metadata.to_string().as_bytes())])
}

#[track_caller]
fn refused(key: &str, value: Value) -> String {
    let mut metadata = good();
    metadata[key] = value;
    Metadata::read(&file(&metadata)).unwrap_err().to_string()
}

#[test]
fn a_component_says_who_it_is() {
    let (kind, metadata) = Metadata::read(&file(&good())).unwrap();
    assert_eq!(kind, Kind::Wasm);
    assert_eq!(metadata.shown(), "top-norm 1.0.0");
    assert_eq!(metadata.capabilities, [Capability::Statistics]);
    assert_eq!(serde_json::to_value(&metadata).unwrap(), good());
}

#[test]
fn what_may_be_left_out_has_a_default() {
    let mut metadata = good();
    for key in ["about", "settings", "capabilities"] {
        metadata.as_object_mut().unwrap().remove(key);
    }
    let (_, metadata) = Metadata::read(&file(&metadata)).unwrap();
    assert_eq!(settings::resolve(&metadata.settings, &Value::Null).unwrap(), json!({}));
    assert!(metadata.capabilities.is_empty());
}

#[test]
fn each_key_is_checked() {
    for (key, value, message) in [
        (
            "name",
            json!("Top Norm"),
            "its metadata: the name \"Top Norm\" is no name for a plugin\n  help: use 1 to 64 lower-case letters, \
             digits and single hyphens, beginning with a letter",
        ),
        (
            "version",
            json!("1.0"),
            "its metadata: the version \"1.0\" is not major.minor.patch\n  help: write it as semver has it, such as \
             1.0.0 or 0.2.1-beta.3",
        ),
        ("author", json!("a\u{1b}[2Jb"), "its metadata: `author` has control characters or line breaks: a\\u{1b}[2Jb"),
        ("license", json!(" "), "its metadata: `license` is empty"),
        ("about", json!("x".repeat(401)), "its metadata: `about` has more than 400 characters"),
        ("settings", json!(3), "its metadata: settings: a JSON Schema is an object, not 3"),
        ("capabilities", json!(["revise", "revise"]), "its metadata: `capabilities` names one twice"),
        (
            "capabilities",
            json!(["network"]),
            "its metadata: unknown variant `network`, expected one of `statistics`, `calibration`, `revise`",
        ),
        (
            "homepage",
            json!("x"),
            "its metadata: unknown field `homepage`, expected one of `name`, `version`, `author`, `license`, `about`, \
             `api`, `settings`, `capabilities`",
        ),
        ("api", json!(1), "its metadata: `api` must be a string such as \"0.1\""),
        (
            "api",
            json!("0.0"),
            "it was built for version 0.0 of the plugin API, and this Liftplan speaks 0.1\n  help: ask its author for \
             a newer version of the plugin",
        ),
        (
            "api",
            json!("1.0"),
            "it was built for version 1.0 of the plugin API, and this Liftplan speaks 0.1\n  help: update Liftplan, \
             or take an older version of the plugin",
        ),
    ] {
        assert_eq!(refused(key, value), message);
    }
}

#[test]
fn files_that_are_no_plugins_say_so() {
    let none = "it is neither a WebAssembly component nor a dynamic library\n  help: a plugin is one file, NAME.wasm, \
                or a native library such as NAME.so";
    for bytes in [&b""[..], b"x", b"#!/bin/sh\necho hello\n", &[0; 4096]] {
        assert_eq!(Metadata::read(bytes).unwrap_err().to_string(), none);
    }
    let empty = Metadata::read(&component(&[])).unwrap_err();
    assert!(empty.message().contains("it has no section liftplan:plugin"), "{empty}");
    let json = custom(WASM_SECTION, good().to_string().as_bytes());
    let twice = Metadata::read(&component(&[json.clone(), json])).unwrap_err();
    assert_eq!(twice.message(), "it has 2 sections liftplan:plugin, and a plugin has one");
    let long = component(&[custom(WASM_SECTION, &vec![b' '; MAX_BYTES + 1])]);
    assert!(Metadata::read(&long).unwrap_err().message().contains("at most 65536 are read"));
    let text = component(&[custom(WASM_SECTION, b"{")]);
    assert!(Metadata::read(&text).unwrap_err().message().starts_with("its metadata: it is no JSON: "));
}

#[test]
fn this_very_program_is_a_library_without_metadata() {
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let error = Metadata::read(&bytes).unwrap_err();
    assert!(error.message().starts_with("it is no Liftplan plugin: it has no section "), "{error}");
    let error = Metadata::read(&bytes[..bytes.len() / 2]).unwrap_err();
    assert!(error.message().starts_with("it is "), "{error}");
}

#[test]
fn names_and_versions() {
    for name in ["a", "lisa", "top-norm", "x2-3"] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", "2x", "-a", "a-", "a--b", "A", "a_b", "a.b", "ä", &"a".repeat(65)] {
        assert!(!is_name(name), "{name}");
    }
    for version in ["0.1.0", "1.0.0-rc.1", "1.2.3+build.5", "1.2.3-0.a+7"] {
        assert!(is_version(version), "{version}");
    }
    for version in ["", "1", "1.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "v1.0.0", "1.0.x", "1.0.0+", "1. 0.0"] {
        assert!(!is_version(version), "{version}");
    }
}

//! Plugins that can't be installed, loaded or made: exit codes 2, 5 and 7.

use crate::Case;

pub const CASES: [Case; 14] = [
    Case {
        name: "a plugin's file that isn't there",
        arrange: |_| {},
        arguments: &["plugin", "install", "none.wasm"],
        code: 5,
        message: "error: cannot read the plugin {dir}/none.wasm: No such file or directory (os error 2)\n  \
                  help: name a plugin's file, https://… or oci://…",
    },
    Case {
        name: "a file that is no plugin",
        arrange: |_| {},
        arguments: &["plugin", "install", "train.jsonl", "--yes"],
        code: 5,
        message: "error: {dir}/train.jsonl: it is neither a WebAssembly component nor a dynamic library\n  \
                  help: a plugin is one file, NAME.wasm, or a native library such as NAME.so",
    },
    Case {
        name: "a core module",
        arrange: |f| f.write("x.wasm", b"\0asm\x01\0\0\0"),
        arguments: &["plugin", "install", "x.wasm", "--yes"],
        code: 5,
        message: "error: {dir}/x.wasm: it is a WebAssembly module, and a plugin is a WebAssembly component\n  \
                  help: link it with wasm-component-ld, or build it with `liftplan plugin build`",
    },
    Case {
        name: "an address without encryption",
        arrange: |_| {},
        arguments: &["plugin", "install", "http://example.com/x.wasm"],
        code: 2,
        message: "error: http://example.com/x.wasm is not encrypted: anybody on the way could change the file\n  \
                  help: use https://",
    },
    Case {
        name: "an address of another kind",
        arrange: |_| {},
        arguments: &["plugin", "install", "ftp://example.com/x.wasm"],
        code: 2,
        message: "error: plugins cannot be fetched from ftp://example.com/x.wasm\n  \
                  help: name a file, https://… or oci://…",
    },
    Case {
        name: "a public key that is none",
        arrange: |_| {},
        arguments: &["plugin", "install", "x.wasm", "--public-key", "RWx"],
        code: 2,
        message: "error: RWx is no minisign public key\n  \
                  help: it is one line of base64 that begins with RW; minisign writes it to minisign.pub",
    },
    Case {
        name: "removing what isn't installed",
        arrange: |_| {},
        arguments: &["plugin", "remove", "nobody"],
        code: 2,
        message: "error: the plugin nobody is not installed: {dir}/liftplan.lock has no such line\n  \
                  help: install one with `liftplan plugin install FILE|URL|oci://…`",
    },
    Case {
        name: "a lock from the future",
        arrange: |f| f.write("liftplan.lock", "version = 2\n"),
        arguments: &["plugin", "list"],
        code: 2,
        message: "error: {dir}/liftplan.lock: it has version 2, and this Liftplan reads version 1\n  \
                  help: update Liftplan",
    },
    Case {
        name: "a lock that is no TOML",
        arrange: |f| {
            f.write("liftplan.lock", "version = 1\nplugin = 3\n");
            f.replace("c.toml", "\"lora\"", "\"lisa\"");
        },
        arguments: &["train", "c.toml"],
        code: 2,
        message: "error: {dir}/liftplan.lock: TOML parse error at line 2, column 10\n  |\n2 | plugin = 3\n  |          \
                  ^\ninvalid type: integer `3`, expected a sequence\n  \
                  help: correct it, or bring it back from version control",
    },
    Case {
        name: "a plugin's file in the configuration that is none",
        arrange: |f| f.replace("c.toml", "name = \"lora\"", "plugin = \"train.jsonl\""),
        arguments: &["train", "c.toml"],
        code: 2,
        message: "error: c.toml:8: `policy.plugin`: {dir}/train.jsonl: it is neither a WebAssembly component nor a \
                  dynamic library\n  help: a plugin is one file, NAME.wasm, or a native library such as NAME.so",
    },
    Case {
        name: "a project with a bad name",
        arrange: |_| {},
        arguments: &["plugin", "new", "My_Rule"],
        code: 2,
        message: "error: \"My_Rule\" is no name for a plugin\n  \
                  help: use lower-case letters, digits and single hyphens, beginning with a letter",
    },
    Case {
        name: "a project that is there already",
        arrange: |f| f.write("rule/x", "x"),
        arguments: &["plugin", "new", "rule"],
        code: 7,
        message: "error: {dir}/rule is there already\n  help: choose another name",
    },
    Case {
        name: "building what is no project",
        arrange: |_| {},
        arguments: &["plugin", "build", "model"],
        code: 2,
        message: "error: {dir}/model is no plugin's project\n  \
                  help: it has none of Cargo.toml, plugin.c, plugin.js and plugin.py; `liftplan plugin new NAME` makes one",
    },
    Case {
        name: "testing what isn't built",
        arrange: |f| f.write("rule/cases.json", "[]"),
        arguments: &["plugin", "test", "rule"],
        code: 5,
        message: "error: nothing is built in {dir}/rule\n  help: run `liftplan plugin build` first",
    },
];

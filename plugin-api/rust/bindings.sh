#!/usr/bin/env bash
# Makes src/bindings.rs anew from the WIT. Committed, because the macro that could do it costs every plugin 50 s of
# compiling. Needs: cargo install wit-bindgen-cli --version 0.57.1 --no-default-features --features rust
set -euo pipefail
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
wit-bindgen rust ../wit/policy-0.1.0 --out-dir "$out" --pub-export-macro --default-bindings-module '$crate::bindings'
{
    head -3 "$out/plugin.rs"
    echo "// Made by plugin-api/rust/bindings.sh from plugin-api/wit."
    tail -n +4 "$out/plugin.rs"
} > src/bindings.rs

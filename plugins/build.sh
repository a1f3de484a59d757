#!/usr/bin/env bash
# Builds the plugins as WebAssembly components into OUT (default: target/plugins).
#   plugins/build.sh [OUT]
# Needs the target wasm32-unknown-unknown (rustup target add wasm32-unknown-unknown); where it can't be had by rustup,
# plugin-api/wasm-std.sh builds its standard library from Debian's packages.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-target/plugins}
mkdir -p "$out"
RUSTC=$(../plugin-api/wasm-std.sh) cargo build --quiet --release --target wasm32-unknown-unknown
for plugin in lora full lisa badam ladder salience; do
    cp "target/wasm32-unknown-unknown/release/liftplan_$plugin.wasm" "$out/$plugin.wasm"
done

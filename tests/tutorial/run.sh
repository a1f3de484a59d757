#!/usr/bin/env bash
# Does what host/docs/plugin-tutorial.md says, word for word, in a folder of its own, and tells how long it took.
#
#   tests/tutorial/run.sh
#
# Where rustup can't add the target for WebAssembly, plugin-api/wasm-std.sh makes it from Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -n "${LIFTPLAN:-}" ] || cargo build --release --workspace --bins
rustup target add wasm32-unknown-unknown > /dev/null 2>&1 || plugin-api/wasm-std.sh > /dev/null
binary=${LIFTPLAN:-${CARGO_TARGET_DIR:-target}/release/liftplan}
unset CARGO_TARGET_DIR
exec python3 tests/tutorial/follow.py "$binary"

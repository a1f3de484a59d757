#!/usr/bin/env bash
# Makes, builds, checks and tests a plugin in each language of `liftplan plugin new`: the same rule in Rust, C, JavaScript and
# Python must make the same plans. What the engines of JavaScript and Python could reach of the world, they don't.
#
#   tests/authors/run.sh [LANGUAGE...]        default: rust c js python
#
# Needs Node.js 20 with npm, and Python 3.10 with venv; the pinned toolchains come from npm and PyPI. About two minutes of
# processor time, most of it for compiling the two engines. Cases: check.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v npm > /dev/null; then
    command -v apt-get > /dev/null || { echo "Node.js is not installed, and there is no apt-get" >&2; exit 1; }
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends nodejs npm
fi
[ -n "${LIFTPLAN:-}" ] || cargo build --release --workspace --bins
rustup target add wasm32-unknown-unknown > /dev/null 2>&1 || plugin-api/wasm-std.sh > /dev/null
binary=${LIFTPLAN:-${CARGO_TARGET_DIR:-target}/release/liftplan}
unset CARGO_TARGET_DIR
exec python3 tests/authors/check.py "$binary" "$@"

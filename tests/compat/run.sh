#!/bin/sh
# Checks that what Liftplan exports loads in PEFT, transformers and transformers' GGUF reader with the same results.
#
#   tests/compat/run.sh [--only NAME]
#
# Python comes from tests/compat/python.sh ($LIFTPLAN_PYTHON, or one made in target/python). SmolLM2 is fetched when it is
# absent, and left out with LIFTPLAN_OFFLINE=1. The cases and limits are in check_export.py.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
python=$(tests/compat/python.sh)
cargo build --release --workspace --bins --examples
model=examples/models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -f "$model" ] && [ "${LIFTPLAN_OFFLINE:-0}" != 1 ]; then examples/get-smollm2.sh; fi
if [ -f "$model" ]; then set -- --smollm2 "$root/$model" "$@"; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin="${CARGO_TARGET_DIR:-$root/target}/release"
HF_HUB_OFFLINE=1 "$python" tests/compat/check_export.py --liftplan "$bin/liftplan" --logits "$bin/examples/logits" --work "$work" "$@"

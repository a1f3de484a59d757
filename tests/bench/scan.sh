#!/bin/sh
# Measures `liftplan scan` against NumPy on this machine: the singular values of all 210 linear weights of SmolLM2-135M.
#
#   tests/bench/scan.sh [ROUNDS [THREADS]]        default: 5 rounds on 2 threads
#
# The two take turns. Liftplan's time is that of the whole process, opening and reading the model included and without its
# cache; NumPy's is that of `svdvals` alone, the matrices in memory, in f32 (what the weights are read as) and in f64. Prints
# medians and ratios, and fails if the two disagree on a signal-to-noise ratio.
# The peer's Python comes from tests/compat/python.sh; LIFTPLAN_PYTHON names another.
set -eu
rounds=${1:-5} threads=${2:-2}
cd "$(dirname "$0")/../.."
model=examples/models/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$model" ] || examples/get-smollm2.sh
python=$(tests/compat/python.sh)
cargo build --release --workspace >&2
ours=${CARGO_TARGET_DIR:-target}/release/liftplan
export RAYON_NUM_THREADS="$threads" OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
exec "$python" tests/bench/peer_scan.py "$ours" "$model" --rounds "$rounds" --threads "$threads"

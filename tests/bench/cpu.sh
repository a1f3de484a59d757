#!/bin/sh
# Measures Liftplan against PyTorch + PEFT on this machine's CPU: one LoRA step of SmolLM2-135M, 2 x 256 tokens, f32.
#
#   tests/bench/cpu.sh [ROUNDS [STEPS [THREADS]]]        default: 3 rounds of 6 steps after the first, on 2 threads
#
# The two take turns (each a process of its own), so that a change of the machine's mood meets both. Prints a table of
# medians and ratios, and fails if the losses of the first step differ: both sides must have computed the same.
# The peer's Python comes from tests/compat/python.sh; LIFTPLAN_PYTHON names another.
set -eu
rounds=${1:-3} steps=${2:-6} threads=${3:-2}
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
model=examples/models/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f "$model" ] || examples/get-smollm2.sh
python=$(tests/compat/python.sh)
built=$(cargo bench -p liftplan-tests --bench lora_step --no-run 2>&1) || { echo "$built" >&2; exit 1; }
ours=$(echo "$built" | sed -n 's/.*(\(.*lora_step-[0-9a-f]*\))$/\1/p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -c 'import json, random
random.seed(0)
print(json.dumps([[random.randrange(17, 49152) for _ in range(256)] for _ in range(2)]))' >"$work/tokens.json"
round=1
while [ "$round" -le "$rounds" ]; do
    echo "round $round of $rounds" >&2
    RAYON_NUM_THREADS=$threads "$ours" --model "$model" --tokens "$work/tokens.json" --steps "$steps" >>"$work/lines"
    OMP_NUM_THREADS=$threads "$python" tests/bench/peer_cpu.py "$model" --tokens "$work/tokens.json" --steps "$steps" \
        --threads "$threads" 2>/dev/null >>"$work/lines"
    round=$((round + 1))
done
OMP_NUM_THREADS=$threads "$python" tests/bench/table.py "$work/lines" --threads "$threads"

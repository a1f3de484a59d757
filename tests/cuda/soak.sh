#!/bin/sh
# Many steps by several processes on one GPU, because a rare failure of a kernel shows in no short test: none may fail.
#
#     tests/cuda/soak.sh [PROCESSES, 4] [STEPS, 500]
#
# Each process trains the tiny model, or with SMOLLM2=<folder, GGUF file or hub id> SmolLM2-135M, from a seed of its own. LIFTPLAN
# names the binary, CHECKER a program to run it under (compute-sanitizer names the kernel, and takes a hundred times as long).
set -u
cd "$(dirname "$0")/../.." || exit 2
processes=${1:-4}
steps=${2:-500}
liftplan=${LIFTPLAN:-target/release/liftplan}
runs=$(mktemp -d)
if [ -n "${SMOLLM2:-}" ]; then
    set -- examples/smollm2.toml --set "model=\"$SMOLLM2\""
else
    set -- examples/quickstart.toml
fi
seed=1
while [ "$seed" -le "$processes" ]; do
    {
        # shellcheck disable=SC2086
        ${CHECKER:-} "$liftplan" train "$@" --out "$runs/$seed" --set "device=\"${DEVICE:-cuda}\"" --set "seed=$seed" \
            --set "train.steps=$steps" --set eval.limit=1 >"$runs/$seed.log" 2>&1
        echo $? >"$runs/$seed.status"
    } &
    seed=$((seed + 1))
done
wait
failed=0
for status in "$runs"/*.status; do
    [ "$(cat "$status")" = 0 ] && continue
    failed=$((failed + 1))
    echo "FAIL $(basename "$status" .status):"
    tail -n 20 "${status%.status}.log" | sed 's/^/    /'
done
echo "$failed of $processes runs of $steps steps failed"
rm -rf "$runs"
[ "$failed" = 0 ]

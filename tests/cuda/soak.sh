#!/bin/sh
# Many steps by several processes on one GPU, because a rare failure of a kernel shows in no short test: none may fail.
#
#     tests/cuda/soak.sh [PROCESSES, 4] [STEPS, 500]
#
# Each process trains the tiny model, or with SMOLLM2=<folder, GGUF file or hub id> SmolLM2-135M, by a method and from a seed of its
# own: lora, spectrum, qlora, qspectrum, full in turn, or those that METHODS names. With ROUNDS=n each is n runs one after another, so
# that some start and end beside others' steps, as in a comparison. LIFTPLAN names the binary, CHECKER a program to run it under
# (compute-sanitizer names the kernel, and takes a hundred times as long).
#
# With KEEP=<folder> the driver is asked for a dump where a kernel fails, and what cuda-gdb says of it is printed, if it is there: the kernel,
# and where in it. The one dump that was ever made was not finished within minutes and could not be read, so each process has LIMIT
# seconds (600) in all.
set -u
cd "$(dirname "$0")/../.." || exit 2
processes=${1:-4}
steps=${2:-500}
liftplan=${LIFTPLAN:-target/release/liftplan}
methods=${METHODS:-lora spectrum qlora qspectrum full}
runs=$(mktemp -d)
if [ -n "${KEEP:-}" ]; then
    mkdir -p "$KEEP"
    # The kernels alone, no memory: by either of the driver's ways to say so.
    export CUDA_ENABLE_COREDUMP_ON_EXCEPTION=1 CUDA_ENABLE_LIGHTWEIGHT_COREDUMP=1 CUDA_COREDUMP_FILE="$KEEP/%p.cudacore"
    skip=skip_nonrelocated_elf_images,skip_global_memory,skip_shared_memory,skip_local_memory,skip_constbank_memory
    export CUDA_COREDUMP_GENERATION_FLAGS=$skip
fi
if [ -n "${SMOLLM2:-}" ]; then
    from=examples/smollm2.toml
    model=$SMOLLM2
else
    from=examples/quickstart.toml
    model=
fi
at=$PWD/examples
seed=1
while [ "$seed" -le "$processes" ]; do
    # shellcheck disable=SC2086
    set -- $methods
    shift $(((seed - 1) % $#))
    method=$1
    case $method in
    *lora) size="rank = 8" rate=1e-3 ;;
    full) size= rate=1e-4 ;;
    *) size="percent = 25" rate=1e-4 ;;
    esac
    # The same data and model, another policy at a rate that it can bear.
    sed "s#= \"models/#= \"$at/models/#; s#= \"data/#= \"$at/data/#; /^rank = /d; /^alpha = /d; s/^lr = .*/lr = $rate/
        s/^name = \"lora\".*/name = \"$method\"\n$size/" "$from" >"$runs/$seed.toml"
    (
        round=1
        while [ "$round" -le "${ROUNDS:-1}" ]; do
            run=$runs/$seed-$round
            # shellcheck disable=SC2086
            timeout "${LIMIT:-600}" ${CHECKER:-} "$liftplan" train "$runs/$seed.toml" --out "$run" --set "device=\"${DEVICE:-cuda}\"" --set "seed=$seed" \
                ${model:+--set "model=\"$model\""} --set "train.steps=$steps" --set eval.limit=1 >"$run.log" 2>&1
            echo "$? $method" >"$run.status"
            rm -rf "$run"
            round=$((round + 1))
        done
    ) &
    seed=$((seed + 1))
done
wait
failed=0
for status in "$runs"/*.status; do
    read -r code method <"$status"
    [ "$code" = 0 ] && continue
    failed=$((failed + 1))
    echo "FAIL $(basename "$status" .status), $method:"
    tail -n 20 "${status%.status}.log" | sed 's/^/    /'
done
for dump in ${KEEP:+"$KEEP"/*.cudacore}; do
    [ -e "$dump" ] || continue
    command -v cuda-gdb >/dev/null && cuda-gdb -batch -ex "target cudacore $dump" -ex "info cuda kernels" -ex "bt" 2>&1 | tail -n 20
done
echo "$failed of $((processes * ${ROUNDS:-1})) runs of $steps steps failed"
rm -rf "$runs"
[ "$failed" = 0 ]

#!/bin/sh
# What a machine with an NVIDIA GPU must show: training on it follows training on the processor, and repeats and resumes exactly.
#
#     tests/cuda/run.sh [FOLDER FOR RUNS]
#
# 20 steps of each method on the tiny model on both; the same run again; a run stopped after 10 steps and resumed. With
# SMOLLM2=<folder or hub id of SmolLM2-135M> also 200 steps of it on the notes, on both (a quarter of an hour on the processor).
# LIFTPLAN names the binary. Tolerances: bf16 products (8 bits) move the loss of a step by up to 1 % and 0.02 nats early on; the
# mean of the last quarter of the steps must agree within 2 %.
set -eu
cd "$(dirname "$0")/../.."
runs=${1:-$(mktemp -d)}
liftplan=${LIFTPLAN:-target/release/liftplan}
mkdir -p "$runs"
"$liftplan" doctor
failed=0

# losses RUN: the loss of each step, one a line.
losses() { sed -n 's/.*"step": *\([0-9]*\), *"loss": *\([-0-9.e+]*\).*/\1 \2/p' "$1/metrics.jsonl"; }

# train NAME CONFIG DEVICE [ARGUMENTS]
train() {
    run=$1 of=$2 on=$3
    shift 3
    "$liftplan" train "$of" --out "$runs/$run" --set "device=$on" "$@" >"$runs/$run.log" 2>&1 || {
        echo "FAIL $run: $(tail -n 3 "$runs/$run.log")"
        return 1
    }
}

# follows NAME: the losses of NAME.cuda follow those of NAME.cpu.
follows() {
    losses "$runs/$1.cpu" >"$runs/a" && losses "$runs/$1.cuda" >"$runs/b"
    paste "$runs/a" "$runs/b" | awk -v name="$1" '
        function abs(x) { return x < 0 ? -x : x }
        { n++; d = abs($2 - $4); if (d > most) most = d; cpu[n] = $2; cuda[n] = $4
          if (n <= 5 && (d > 0.02 + 0.01 * $2 || $4 != $4)) bad = 1 }
        END {
            for (i = int(n * 3 / 4) + 1; i <= n; i++) { a += cpu[i]; b += cuda[i] }
            if (n == 0 || abs(a - b) > 0.02 * a) bad = 1
            printf "%s %s: %d steps, first %.4f / %.4f, last quarter %.4f / %.4f, largest difference %.4f\n", \
                bad ? "FAIL" : "ok  ", name, n, cpu[1], cuda[1], a / (n - int(n * 3 / 4)), b / (n - int(n * 3 / 4)), most
            exit bad
        }' || failed=1
}

# same A B: both runs ended with the same bytes and the same losses.
same() {
    if cmp -s "$runs/$1/checkpoints/step-20/trainable.safetensors" "$runs/$2/checkpoints/step-20/trainable.safetensors" &&
        cmp -s "$runs/$1/checkpoints/step-20/optimizer.safetensors" "$runs/$2/checkpoints/step-20/optimizer.safetensors" &&
        [ "$(losses "$runs/$1")" = "$(losses "$runs/$2")" ]; then
        echo "ok   $2 is $1 to the bit"
    else
        echo "FAIL $2 is not $1 to the bit"
        failed=1
    fi
}

method() {
    name=$1 config=$2
    shift 2
    ok=1
    for device in cpu cuda; do
        train "$name.$device" "$config" "$device" "$@" --set train.steps=20 --set train.checkpoint_every=10 --set eval.limit=20 || ok=0
    done
    [ $ok = 1 ] && follows "$name" || failed=1
}

# The tickets on the tiny model, by three policies.
at=$PWD/examples
sed "s#= \"models/#= \"$at/models/#; s#= \"data/#= \"$at/data/#" examples/quickstart.toml >"$runs/lora.toml"
sed '/^rank = /d; /^alpha = /d; s/^name = "lora"/name = "full"/; s/^lr = .*/lr = 1e-3/' "$runs/lora.toml" >"$runs/full.toml"
sed 's/^name = "full"/name = "spectrum"\npercent = 50/' "$runs/full.toml" >"$runs/spectrum.toml"

method lora "$runs/lora.toml"
method lora-bf16 "$runs/lora.toml" --set train.weights=bf16
method full "$runs/full.toml"
method full-bf16 "$runs/full.toml" --set train.weights=bf16
method full-master "$runs/full.toml" --set train.weights=bf16 --set train.bf16_update=master
method spectrum "$runs/spectrum.toml"
method qlora examples/qlora.toml
method qspectrum examples/qspectrum.toml

for name in lora full-bf16 full-master qlora qspectrum; do
    [ -d "$runs/$name.cuda/checkpoints/step-20" ] || continue
    # The very same run again, and the run as it was after 10 steps, resumed.
    case $name in
        lora) set -- "$runs/lora.toml" ;;
        full-bf16) set -- "$runs/full.toml" --set train.weights=bf16 ;;
        full-master) set -- "$runs/full.toml" --set train.weights=bf16 --set train.bf16_update=master ;;
        *) set -- "examples/$name.toml" ;;
    esac
    config=$1
    shift
    settings="--set train.steps=20 --set train.checkpoint_every=10 --set eval.limit=20"
    # shellcheck disable=SC2086
    train "$name.again" "$config" cuda "$@" $settings && same "$name.cuda" "$name.again" || failed=1
    cp -r "$runs/$name.cuda" "$runs/$name.resumed"
    rm -r "$runs/$name.resumed/checkpoints/step-20"
    # shellcheck disable=SC2086
    train "$name.resumed" "$config" cuda "$@" $settings --resume && same "$name.cuda" "$name.resumed" || failed=1
done

if "$liftplan" eval "$runs/lora.cuda" --data examples/data/tickets/test.jsonl >"$runs/eval.log" 2>&1 &&
    "$liftplan" generate "$runs/lora.cuda" --prompt "The parcel never came." --max-tokens 8 >"$runs/generate.log" 2>&1; then
    echo "ok   a run on the GPU is evaluated and generates: $(head -n 1 "$runs/eval.log")"
else
    echo "FAIL evaluation or generation: $(tail -n 2 "$runs/eval.log" "$runs/generate.log")"
    failed=1
fi

if [ -n "${SMOLLM2:-}" ]; then
    for device in cpu cuda; do
        train "smollm2.$device" examples/smollm2.toml "$device" --set "model=$SMOLLM2" --set train.steps=200 || failed=1
    done
    follows smollm2
fi
[ "$failed" = 0 ] && echo "all passed"
exit "$failed"

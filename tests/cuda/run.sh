#!/bin/sh
# What a machine with an NVIDIA GPU must show: training on it follows training on the processor, and repeats and resumes exactly.
#
#     tests/cuda/run.sh [FOLDER FOR RUNS]
#
# 20 steps of each method on the tiny model on both; the same run again; a run stopped after 10 steps and resumed; evaluation
# and generation. With SMOLLM2=<folder, GGUF file or hub id of SmolLM2-135M> also 200 steps of it on the notes, on both (half an
# hour on two cores of a processor). LIFTPLAN names the binary, ONLY a part of the names to run. Runs on the processor that the
# folder holds already are not made again, so that they can be brought along; a failure does not keep the rest from running.
#
# Tolerances: bf16 products (8 bits) move the loss of a step by up to 1 % and 0.02 nats early on; the mean of the last quarter of
# the steps must agree within 2 % and 0.01 nats.
set -u
cd "$(dirname "$0")/../.." || exit 2
runs=${1:-$(mktemp -d)}
liftplan=${LIFTPLAN:-target/release/liftplan}
# The device that is compared with the processor; "cpu" tries this script out.
gpu=${DEVICE:-cuda}
only=${ONLY:-}
mkdir -p "$runs"
"$liftplan" doctor
failed=0
settings="--set train.steps=20 --set train.checkpoint_every=10 --set eval.limit=20"

fail() {
    echo "FAIL $*"
    failed=1
}

# losses RUN: the loss of each step, one a line.
losses() { sed -n 's/.*"step": *\([0-9]*\), *"loss": *\([-0-9.e+]*\).*/\1 \2/p' "$runs/$1/metrics.jsonl"; }

# train NAME CONFIG DEVICE [ARGUMENTS]
train() {
    run=$1 of=$2 on=$3
    shift 3
    "$liftplan" train "$of" --out "$runs/$run" --set "device=\"$on\"" "$@" >"$runs/$run.log" 2>&1 || {
        fail "$run:"
        sed 's/^/    /' "$runs/$run.log"
        return 1
    }
}

# follows NAME: the losses of NAME.gpu follow those of NAME.cpu.
follows() {
    losses "$1.cpu" >"$runs/a" && losses "$1.gpu" >"$runs/b"
    paste "$runs/a" "$runs/b" | awk -v name="$1" '
        function abs(x) { return x < 0 ? -x : x }
        { n++; d = abs($2 - $4); if (d > most) most = d; cpu[n] = $2; gpu[n] = $4
          if (NF != 4 || $1 != $3) bad = 1
          if (n <= 5 && (d > 0.02 + 0.01 * $2 || $4 != $4)) bad = 1 }
        END {
            for (i = int(n * 3 / 4) + 1; i <= n; i++) { a += cpu[i]; b += gpu[i] }
            last = n - int(n * 3 / 4)
            if (n == 0 || abs(a - b) > 0.02 * a + 0.01 * last) bad = 1
            printf "%s %s: %d steps, first %.4f / %.4f, last quarter %.4f / %.4f, largest difference %.4f\n", \
                bad ? "FAIL" : "ok  ", name, n, cpu[1], gpu[1], a / last, b / last, most
            exit bad
        }' || failed=1
}

# norms RUN: the same with the norms of the gradients.
norms() { sed -n 's/.*"step": *\([0-9]*\),.*"grad_norm": *\([-0-9.e+]*\).*/\1 \2/p' "$runs/$1/metrics.jsonl"; }

# same A B: both runs ended with the same bytes, the same losses and the same norms of gradients.
same() {
    what=
    for file in trainable optimizer; do
        cmp -s "$runs/$1/checkpoints/step-20/$file.safetensors" "$runs/$2/checkpoints/step-20/$file.safetensors" ||
            what="$what $file"
    done
    [ "$(losses "$1")" = "$(losses "$2")" ] || what="$what losses"
    [ "$(norms "$1")" = "$(norms "$2")" ] || what="$what norms"
    if [ -z "$what" ]; then echo "ok   $2 is $1 to the bit"; else fail "$2 is not $1 to the bit: other$what"; fi
}

# method NAME CONFIG [ARGUMENTS]: on both, again, and resumed.
method() {
    name=$1 config=$2
    shift 2
    case $name in *"$only"*) ;; *) return ;; esac
    # shellcheck disable=SC2086
    [ -d "$runs/$name.cpu" ] || train "$name.cpu" "$config" cpu "$@" $settings || return
    # shellcheck disable=SC2086
    train "$name.gpu" "$config" "$gpu" "$@" $settings || return
    follows "$name"
    # shellcheck disable=SC2086
    train "$name.again" "$config" "$gpu" "$@" $settings && same "$name.gpu" "$name.again"
    cp -r "$runs/$name.gpu" "$runs/$name.resumed"
    rm -r "$runs/$name.resumed/checkpoints/step-20"
    # shellcheck disable=SC2086
    train "$name.resumed" "$config" "$gpu" "$@" $settings --resume && same "$name.gpu" "$name.resumed"
}

# differently NAME OTHER CONFIG [ARGUMENTS]: OTHER, the method NAME with other ARGUMENTS, gives the same bits as NAME did; resumed, too.
differently() {
    name=$1 other=$2 config=$3
    shift 3
    case $other in *"$only"*) ;; *) return ;; esac
    [ -d "$runs/$name.gpu" ] || {
        fail "$other: $name was not run"
        return
    }
    # shellcheck disable=SC2086
    train "$other.gpu" "$config" "$gpu" "$@" $settings && same "$name.gpu" "$other.gpu" || return
    cp -r "$runs/$other.gpu" "$runs/$other.resumed"
    rm -r "$runs/$other.resumed/checkpoints/step-20"
    # shellcheck disable=SC2086
    train "$other.resumed" "$config" "$gpu" "$@" $settings --resume && same "$name.gpu" "$other.resumed"
}

# The tickets on the tiny model, by several policies.
at=$PWD/examples
sed "s#= \"models/#= \"$at/models/#; s#= \"data/#= \"$at/data/#" examples/quickstart.toml >"$runs/lora.toml"
sed '/^rank = /d; /^alpha = /d; s/^name = "lora"/name = "full"/; s/^lr = .*/lr = 1e-3/' "$runs/lora.toml" >"$runs/full.toml"
sed 's/^name = "full"/name = "spectrum"\npercent = 50/' "$runs/full.toml" >"$runs/spectrum.toml"
plugins=$PWD/tests/fixtures/plugins
sed "s#^name = \"full\"#plugin = \"$plugins/lisa.wasm\"\nblocks = 1\nevery = 4#" "$runs/full.toml" >"$runs/lisa.toml"
sed "s#^name = \"full\"#plugin = \"$plugins/badam.wasm\"\nevery = 3#" "$runs/full.toml" >"$runs/badam.toml"
sed "/^alpha = /d; s#^name = \"lora\"#plugin = \"$plugins/ladder.wasm\"\nevery = 4#" "$runs/lora.toml" >"$runs/ladder.toml"

method lora "$runs/lora.toml"
# A model whose head is another matrix than its embedding.
sed "s#^model = .*#model = \"$PWD/tests/golden/families/llama3/model\"#" "$runs/lora.toml" >"$runs/untied.toml"
method lora-untied "$runs/untied.toml"
differently lora-untied lora-offload "$runs/untied.toml" --set storage.offload_embedding=true
method lora-recompute "$runs/lora.toml" --set train.recompute=true
method lora-dropout "$runs/lora.toml" --set policy.dropout=0.1
# Magnitudes apart (DoRA), with all that changes the way of a pass.
method dora "$runs/lora.toml" --set policy.dora=true
method dora-recompute "$runs/lora.toml" --set policy.dora=true --set train.recompute=true
method dora-dropout "$runs/lora.toml" --set policy.dora=true --set policy.dropout=0.1
method dora-accumulated "$runs/lora.toml" --set policy.dora=true --set train.micro_batch_examples=3
method dora-int8 "$runs/lora.toml" --set policy.dora=true --set storage.frozen=int8
method qdora examples/qlora.toml --set policy.dora=true
method dora-unclipped "$runs/lora.toml" --set policy.dora=true --set train.max_grad_norm=0
differently dora-unclipped dora-unclipped-inside "$runs/lora.toml" --set policy.dora=true --set train.max_grad_norm=0 \
    --set train.update_in_backward=true
method full "$runs/full.toml"
method full-bf16 "$runs/full.toml" --set train.weights=bf16
method full-master "$runs/full.toml" --set train.weights=bf16 --set train.bf16_update=master
method full-accumulated "$runs/full.toml" --set train.micro_batch_examples=3
method spectrum "$runs/spectrum.toml"
method qlora examples/qlora.toml
method qspectrum examples/qspectrum.toml
method qlora-blocks-32 examples/qlora.toml --set storage.block_size=32
method qlora-blocks-256 examples/qlora.toml --set storage.block_size=256 --set storage.double_quantization=false
# Tables that lie on the card in 16 bits, with the numbers that they have in 4.
method qlora-embeddings examples/qlora.toml --set storage.embeddings=true
# Rows that are no whole number of blocks.
method qlora-untied "$runs/untied.toml" --set storage.frozen=nf4 --set storage.others=bf16
# The same update inside the backward pass and after it.
for policy in full spectrum; do
    method $policy-unclipped "$runs/$policy.toml" --set train.max_grad_norm=0
    differently $policy-unclipped $policy-unclipped-inside "$runs/$policy.toml" --set train.max_grad_norm=0 \
        --set train.update_in_backward=true
done
method qspectrum-unclipped examples/qspectrum.toml --set train.max_grad_norm=0
differently qspectrum-unclipped qspectrum-unclipped-inside examples/qspectrum.toml --set train.max_grad_norm=0 \
    --set train.update_in_backward=true
method lora-int8 "$runs/lora.toml" --set storage.frozen=int8
# Adapters that begin, cease and begin again: those of the first block, dealt out anew among all blocks every three steps.
# dealt NAME POLICY CONFIG [SED]: the configuration of that, from CONFIG with the policy POLICY.
dealt() {
    case $1 in *"$only"*) ;; *) return ;; esac
    "$liftplan" plan "$3" --set 'policy.blocks=[0]' --out "$runs/$1.json" >/dev/null || fail "$1: no plan"
    sed "/^rank = /d; /^alpha = /d; s/^name = \"$2\"/name = \"random\"/
        s#= \"models/#= \"$at/models/#; s#= \"data/#= \"$at/data/#" "$3" >"$runs/$1.toml"
    {
        echo "[policy.like]"
        echo "picks = {every = 3, at = []}"
        sed -n '/^"entries"/,/^\]/p' "$runs/$1.json" | sed "s/^\"entries\": /entries = /; s/\":/\"=/g; s/^\],/]/; ${4:-}"
    } >>"$runs/$1.toml"
}
dealt lora-dealt lora "$runs/lora.toml"
method lora-dealt "$runs/lora-dealt.toml"
dealt lora-dealt-dropout lora "$runs/lora.toml" 's/"dropout"=0.0/"dropout"=0.1/'
method lora-dealt-dropout "$runs/lora-dealt-dropout.toml"
dealt qlora-dealt qlora examples/qlora.toml
method qlora-dealt "$runs/qlora-dealt.toml"
method lisa "$runs/lisa.toml"
method badam "$runs/badam.toml" --set train.weights=bf16
# Weights that are kept in another storage from a pick on: read again in more bits, in fewer, in others.
method ladder "$runs/ladder.toml"
method ladder-down "$runs/ladder.toml" --set policy.storage=nf4 --set policy.waiting=bf16
method ladder-dora "$runs/ladder.toml" --set policy.storage=int8 --set policy.dora=true
method badam-nf4 "$runs/badam.toml" --set train.weights=bf16 --set storage.frozen=nf4 --set optimizer.name=adamw8bit

for run in lora dora; do
    [ -d "$runs/$run.gpu" ] || continue
    if "$liftplan" eval "$runs/$run.gpu" --data examples/data/tickets/test.jsonl >"$runs/eval.log" 2>&1 &&
        "$liftplan" generate "$runs/$run.gpu" --prompt "The parcel never came." --max-tokens 8 >"$runs/generate.log" 2>&1; then
        echo "ok   a run of $run on the GPU is evaluated and generates: $(grep '^loss' "$runs/eval.log")"
    else
        fail "evaluation or generation of $run: $(cat "$runs/eval.log" "$runs/generate.log")"
    fi
done

case smollm2 in *"$only"*) ;; *) SMOLLM2= ;; esac
if [ -n "${SMOLLM2:-}" ]; then
    for device in cpu gpu; do
        on=$([ $device = cpu ] && echo cpu || echo "$gpu")
        # shellcheck disable=SC2086
        [ -d "$runs/smollm2.$device" ] || train "smollm2.$device" examples/smollm2.toml "$on" --set "model=\"$SMOLLM2\"" \
            --set train.steps=200 ${SMOLLM2_SETTINGS:-} || failed=1
    done
    follows smollm2
fi
if [ "$failed" = 0 ]; then echo "all passed"; else echo "FAILED"; fi
exit "$failed"

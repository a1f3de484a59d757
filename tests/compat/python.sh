#!/bin/sh
# Prints the path of a Python that has torch, transformers, PEFT and bitsandbytes in the versions of tests/golden/requirements.txt:
# $LIFTPLAN_PYTHON if it is set, else one in target/python, made here when it is missing (530 MB to download for torch
# and about 120 MB for the rest; 2 GB on disk). Everything else that it says goes to standard error.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ -n "${LIFTPLAN_PYTHON:-}" ]; then
    echo "$LIFTPLAN_PYTHON"
    exit 0
fi
venv="${CARGO_TARGET_DIR:-$root/target}/python"
requirements="$root/tests/golden/requirements.txt"
if ! cmp -s "$requirements" "$venv/.installed"; then
    echo "making $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    pip() { "$venv/bin/pip" --disable-pip-version-check -q install --no-compile "$@" >&2; }
    # torch and what depends on it go in without their dependencies, which would bring 3 GB of CUDA along; the few that
    # the CPU path needs are named. See cpu_torch.py.
    of() { grep "^$1==" "$requirements"; }
    pip "$(of numpy)" "$(of transformers)" "$(of tokenizers)" "$(of safetensors)" "$(of gguf)" \
        psutil filelock typing-extensions sympy networkx jinja2 fsspec setuptools
    pip --no-deps "$(of torch)" "$(of peft)" "$(of accelerate)" "$(of bitsandbytes)"
    "$venv/bin/python" "$here/cpu_torch.py" >&2
    "$venv/bin/python" -c 'import torch, transformers, peft' >&2
    cp "$requirements" "$venv/.installed"
fi
echo "$venv/bin/python"

#!/usr/bin/env bash
# Installs NVRTC, NVIDIA's compiler of kernels, from its wheel (it needs no GPU), and prints the folder to add to
# LD_LIBRARY_PATH. The first argument is where to install it.
set -euo pipefail
place=${1:?usage: nvrtc.sh FOLDER}
[ -x "$place/bin/pip" ] || python3 -m venv "$place" >&2
"$place/bin/pip" install --quiet 'nvidia-cuda-nvrtc==13.*' >&2
dirname "$(find "$place" -name 'libnvrtc.so.*' | head -n 1)"

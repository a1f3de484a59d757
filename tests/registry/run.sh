#!/usr/bin/env bash
# Installs plugins from a real OCI registry, Debian's docker-registry, which runs on this machine for the time of the test.
#
#   tests/registry/run.sh
#
# Installs the package docker-registry where it is missing and apt is there, and fails where it can't. Cases: check.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v docker-registry > /dev/null; then
    command -v apt-get > /dev/null || { echo "docker-registry is not installed, and there is no apt-get" >&2; exit 1; }
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends docker-registry
fi
[ -n "${LIFTPLAN:-}" ] || cargo build --release --workspace --bins
exec python3 tests/registry/check.py "${LIFTPLAN:-${CARGO_TARGET_DIR:-target}/release/liftplan}"

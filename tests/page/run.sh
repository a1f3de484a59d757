#!/bin/sh
# Makes two small comparisons and tries their reports in a headless Chromium: tests/page/check.py. Chromium is installed from
# Debian's packages when there is none. Further arguments go to check.py (--pictures DIR).
set -eu
cd "$(dirname "$0")/../.."
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    apt-get install -y --no-install-recommends chromium >&2 || { apt-get update >&2 && apt-get install -y --no-install-recommends chromium >&2; }
fi
cargo build --release --workspace --bins
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${CARGO_TARGET_DIR:-target}/release/liftplan" compare examples/compare/quick.toml --out "$work/comparison" \
    --set 'title="A title </script><script>window.hacked = 1</script> & more"' \
    --set budget.steps=3 --set run.eval.limit=8 --set 'search.seeds=[1, 2]' --set 'search.learning_rates=[4e-3, 8e-3]' \
    --set 'latency={prompt_tokens = 8, new_tokens = 4, repeats = 1}' >"$work/table.txt"
python3 tests/page/check.py "$work/comparison/report.html" "$@"
# Where no method has a score.
"${CARGO_TARGET_DIR:-target}/release/liftplan" compare examples/compare/quick.toml --out "$work/failed" --set budget.memory='"1 MB"' \
    --set run.eval.limit=2 --set 'search.seeds=[1]' --set latency=false >"$work/failed.txt"
python3 tests/page/check.py "$work/failed/report.html"

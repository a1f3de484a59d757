"""Reads the JSON lines of `tests/bench/cpu.sh`'s rounds; prints medians, ratios, and how near the step comes to the
machine's best matrix product. Fails when the first losses differ by more than 1e-3."""

import argparse
import json
import statistics
import time

# SmolLM2-135M, 2 documents of 256 tokens: multiply-adds of one token count twice.
HIDDEN, INTERMEDIATE, KEYS, BLOCKS, VOCAB, LENGTH, TOKENS, RANK = 576, 1536, 192, 30, 49152, 256, 512, 8
LINEARS = BLOCKS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INTERMEDIATE)
ADAPTERS = BLOCKS * RANK * (2 * (2 * HIDDEN) + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INTERMEDIATE))
# Frozen weights: forward, and the gradient of the input. Adapters: the gradient of their own, too. Attention: two products
# forward and four backward (one of them recomputed in either), over half of the square.
FLOP = TOKENS * (4 * (LINEARS + VOCAB * HIDDEN) + 6 * ADAPTERS + BLOCKS * 2 * 7 * HIDDEN * (LENGTH / 2))

ROWS = [
    ("first_step_s", "first step after process start, s", 2),
    ("step_s", "step, s", 3),
    ("tokens_per_s", "tokens/s", 1),
    ("peak_mib", "peak memory, MiB", 0),
]


def best_product(threads):
    """GFLOP/s of this machine's best f32 matrix product, by PyTorch."""
    import torch

    torch.set_num_threads(threads)
    n, best = 4096, 0.0
    a, b = torch.randn(n, n), torch.randn(n, n)
    for _ in range(4):
        start = time.time()
        a @ b
        best = max(best, 2 * n**3 / (time.time() - start) / 1e9)
    return best


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lines")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    by_name = {}
    for line in open(args.lines):
        run = json.loads(line)
        by_name.setdefault(run["name"], []).append(run)
    (ours_name, ours), (peer_name, peer) = by_name.items()
    rounds = min(len(ours), len(peer))
    print(
        f"LoRA rank 8 on all linears of SmolLM2-135M, 2 x 256 tokens, f32, {args.threads} threads, {rounds} rounds by turns"
    )
    print(f"{'median of the rounds':36} {ours_name:>12} {peer_name + ' ' + peer[0]['version']:>24} {'ratio':>8}")
    for key, title, digits in ROWS:
        a, b = (statistics.median(run[key] for run in runs) for runs in (ours, peer))
        print(f"{title:36} {a:12.{digits}f} {b:24.{digits}f} {a / b:8.2f}")
    for runs in (ours, peer):
        spread = ", ".join(f"{run['step_s']:.3f}" for run in runs)
        print(f"  steps of {runs[0]['name']}: {spread} s")
    best = best_product(args.threads)
    rate = [FLOP / statistics.median(run["step_s"] for run in runs) / 1e9 for runs in (ours, peer)]
    print(
        f"best f32 matrix product: {best:.0f} GFLOP/s; a step is {FLOP / 1e9:.0f} GFLOP, so that {ours_name} runs at "
        f"{rate[0]:.0f} GFLOP/s ({rate[0] / best:.0%}) and {peer_name} at {rate[1]:.0f} ({rate[1] / best:.0%})"
    )
    first = [runs[0]["losses"][0] for runs in (ours, peer)]
    print(f"loss of the first step: {first[0]:.6f} and {first[1]:.6f}")
    if any(abs(run["losses"][0] - first[1]) > 1e-3 for run in ours + peer):
        raise SystemExit("the losses of the first step differ: the two did not compute the same")


if __name__ == "__main__":
    main()

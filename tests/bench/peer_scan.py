"""`liftplan scan` and NumPy's svdvals on the same matrices, in turns; see tests/bench/scan.sh.

    OPENBLAS_NUM_THREADS=1 peer_scan.py LIFTPLAN MODEL.gguf --rounds N --threads T

NumPy takes T matrices at a time, each on one thread: it lets go of the interpreter's lock meanwhile, and OpenBLAS's own threads
wait for each other by spinning, which costs many times as much wherever a core has anything else to do. Prints each round as it ends, then a table of medians.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden/spectrum"))
from make import snr_of, weights  # noqa: E402

NUMPY = (np.float32, np.float64)


def scan(program, model):
    """Wall and processor seconds of a scan without cache, and the ratios that it found."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [program, "scan", model, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "LIFTPLAN_CACHE": ""},
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, {row["tensor"]: row["score"] for row in json.loads(done.stdout)["rows"]}


def svdvals(matrices, threads):
    """Wall and processor seconds of NumPy's singular values, largest matrices first, and the ratios that they give."""
    names = sorted(matrices, key=lambda name: -matrices[name].size)
    with ThreadPoolExecutor(threads) as pool:
        start, cpu = time.perf_counter(), time.process_time()
        values = list(pool.map(lambda name: np.linalg.svdvals(matrices[name]), names))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    return wall, cpu, {name: snr_of(s.astype(np.float64), matrices[name].shape) for name, s in zip(names, values)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    plain = dict(weights(args.model))
    kinds = {kind.__name__: {name: m.astype(kind) for name, m in plain.items()} for kind in NUMPY}
    times = {}
    print(f"{len(plain)} matrices, {args.threads} threads, NumPy {np.__version__}", flush=True)
    for number in range(args.rounds):
        for title, run in [("liftplan scan", lambda: scan(args.program, args.model))] + [
            (f"NumPy svdvals, {kind}", lambda kind=kind: svdvals(kinds[kind], args.threads)) for kind in kinds
        ]:
            wall, cpu, found = run()
            times.setdefault(title, []).append((wall, cpu))
            print(f"round {number + 1}: {title:24} {wall:7.2f} s, {cpu:7.2f} s of processor time", flush=True)
            if title == "liftplan scan":
                ours = found
            else:
                # Single precision has seven digits, and the smallest values lose most of them.
                limit = 1e-4 if title.endswith("64") else 1e-2
                worst = max(abs(found[name] / ours[name] - 1) for name in found)
                if found.keys() != ours.keys() or worst > limit:
                    raise SystemExit(f"the ratios differ by {worst:.1e}: the two did not compute the same")
    ours = [statistics.median(column) for column in zip(*times["liftplan scan"])]
    print(f"\n{'median of ' + str(args.rounds) + ' rounds':24} {'wall, s':>8} {'ratio':>6} {'processor, s':>13} {'ratio':>6}")
    for title, runs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs))
        print(f"{title:24} {wall:8.2f} {wall / ours[0]:6.2f} {cpu:13.2f} {cpu / ours[1]:6.2f}")


if __name__ == "__main__":
    main()

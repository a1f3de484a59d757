#!/usr/bin/env python3
"""Makes `weights.json`, by which Liftplan's 4-bit and 8-bit storage is compared with bitsandbytes, bit for bit.

    pip install -r tests/golden/requirements.txt bitsandbytes==0.50.2
    python tests/golden/quantised/make.py        # half a minute on one core

1,000 random matrices: odd and even sizes from 1x1 to 150x200, among them zeros, denormals, outliers, and sizes that are no
whole number of blocks. They are not stored: `numbers` below makes them from their index by integer arithmetic alone, and so
does the test in Rust. For each of them and each way to quantise, the sha256 (8 bytes of it) of what bitsandbytes made:

  nf4        the packed bytes, then the scales (f32)
  double     the packed bytes, the scales' codes, their scales (f32), their offset (f32)
  int8       the codes, then the rows' magnitudes (f32)
  *_values   the dequantised matrix (f32)

and the whole of what it made for a few small ones. What counts is bitsandbytes' portable backend (`backends/default`), whose
rounding is that of its CUDA kernels. Its library for processors is kept from loading: it looks 8-bit codes up in a table of
65,536 places, which is less exact, and with AVX-512 takes another block's scale where a row is no whole number of blocks.
PyTorch runs on one thread, so that it adds the scales' mean in one order.
"""

import hashlib
import json
import os
import sys
import types
from pathlib import Path

# Compiled, the portable backend takes minutes, and may add and multiply in one rounding.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
# Before bitsandbytes is imported, so that its own is not.
blocked = types.ModuleType("bitsandbytes.backends.cpu")
blocked.ops = types.ModuleType("bitsandbytes.backends.cpu.ops")
sys.modules["bitsandbytes.backends.cpu"] = blocked
sys.modules["bitsandbytes.backends.cpu.ops"] = blocked.ops

import numpy  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
import bitsandbytes  # noqa: E402
import bitsandbytes.functional as functional  # noqa: E402

HERE = Path(__file__).resolve().parent
MATRICES = 1000
BLOCK_SIZES = [64, 64, 64, 32, 128, 256, 512, 1024, 2048, 4096]
WHOLE = [0, 1, 2, 3, 7, 11]  # these are written whole


def words(seed, count):
    """splitmix64: 64-bit integers from `seed`."""
    mask = (1 << 64) - 1
    out, state = [], seed & mask
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def matrix(index):
    """Matrix number `index`: rows, columns, f32 numbers, block size."""
    a, b, c = words(index, 3)
    rows, cols = (1 + index % 9, 1 + index // 9) if index < 90 else (1 + a % 150, 1 + b % 200)
    if index % 10 == 9:
        rows, cols = 16 * (1 + a % 12), 64 * (1 + b % 4)
    kind = index % 8
    draws = numpy.array(words(1_000_000 + index, rows * cols), dtype=numpy.uint64)
    # The sum of four 16-bit parts is nearly normal; every step is exact in f32.
    parts = [((draws >> numpy.uint64(16 * i)) & numpy.uint64(0xFFFF)).astype(numpy.int64) for i in range(4)]
    values = (sum(parts) - 131_070).astype(numpy.float32) * numpy.float32(2.0**-20)
    pick = (draws % numpy.uint64(97)).astype(numpy.int64)
    if kind == 1:  # outliers
        values = numpy.where(pick == 0, values * numpy.float32(1024.0), values)
    elif kind == 2:  # many zeros, whole blocks among them
        place = numpy.arange(values.size) // 300
        values = numpy.where((pick % 3 == 0) | (place % 2 == 0), numpy.float32(0.0), values)
    elif kind == 3:  # denormals beside small numbers
        values = values * numpy.float32(2.0**-126)
    elif kind == 4:  # denormals only
        values = ((draws % numpy.uint64(1000)).astype(numpy.int64) - 500).astype(numpy.float32) * numpy.float32(2.0**-149)
    elif kind == 5:  # few different values, so that there are ties
        values = ((draws % numpy.uint64(9)).astype(numpy.int64) - 4).astype(numpy.float32) * numpy.float32(0.25)
    elif kind == 6:  # as bf16 checkpoints have them
        values = (values.view(numpy.uint32) & numpy.uint32(0xFFFF0000)).view(numpy.float32)
    return rows, cols, values.astype(numpy.float32), BLOCK_SIZES[index % len(BLOCK_SIZES)] if kind else 64


def digest(*parts):
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


def quantised(index):
    rows, cols, values, block = matrix(index)
    tensor = torch.from_numpy(values).reshape(rows, cols)
    made = dict(input=digest(tensor))
    for name, double in (("nf4", False), ("double", True)):
        packed, state = functional.quantize_4bit(tensor, blocksize=block, compress_statistics=double, quant_type="nf4")
        parts = [packed, state.absmax]
        if double:
            parts += [state.state2.absmax, state.offset.reshape(1)]
        made[name] = digest(*parts)
        made[f"{name}_values"] = digest(functional.dequantize_4bit(packed, state))
        if index in WHOLE and double:
            made["parts"] = dict(
                codes=packed.flatten().tolist(),
                scale_codes=state.absmax.tolist(),
                scale_absmax=bits(state.state2.absmax),
                offset=bits(state.offset.reshape(1)),
            )
    codes, rows_absmax, _ = functional.int8_vectorwise_quant(tensor.clone())
    made["int8"] = digest(codes, rows_absmax)
    made["int8_values"] = digest(functional.int8_vectorwise_dequant(codes, rows_absmax))
    return made


def bits(tensor):
    return tensor.view(torch.int32).tolist()


def main():
    made = [quantised(index) for index in range(MATRICES)]
    maps = {name: bits(functional.create_dynamic_map(signed)) for name, signed in (("signed", True), ("unsigned", False))}
    versions = dict(bitsandbytes=bitsandbytes.__version__, torch=torch.__version__)
    lines = [json.dumps(entry) for entry in made]
    head = json.dumps(dict(versions=versions, maps=maps, nf4=bits(functional.get_4bit_type("nf4", device="cpu"))))
    (HERE / "weights.json").write_text(head[:-1] + ',\n"matrices": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()

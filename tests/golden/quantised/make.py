#!/usr/bin/env python3
"""Makes the golden numbers by which Liftplan's 4-bit and 8-bit numbers are compared with bitsandbytes.

    pip install -r tests/golden/requirements.txt
    python tests/golden/quantised/make.py        # two minutes on one core

It writes, beside this script:

  weights.json              1,000 random matrices, packed and unpacked, bit for bit
  adamw8bit.safetensors     20 steps of AdamW8bit
  qlora.json, .safetensors  20 steps of LoRA by PEFT over weights that bitsandbytes packed and unpacked
  checkpoint/               families/llama's model as transformers saves it when bitsandbytes has packed it

The 1,000 matrices have odd and even sizes from 1x1 to 150x200, among them zeros, denormals, outliers, and sizes that are no
whole number of blocks. They are not stored: `matrix` below makes them from their index by exact arithmetic, and so does the
test in Rust. For each of them and each way to quantise, 8 bytes of the sha256 of what bitsandbytes made:

  nf4        the packed bytes, then the scales (f32)
  double     the packed bytes, the scales' codes, their scales (f32), their offset (f32)
  int8       the codes, then the rows' magnitudes (f32)
  *_values   the dequantised matrix (f32)

and for a few small ones the whole of it. What counts is bitsandbytes' portable backend (`backends/default`), whose rounding
is that of its CUDA kernels. Its native library is kept from loading: on processors that looks 8-bit codes up in a table of
65,536 places, which is less exact, and with AVX-512 takes another block's scale where a row is no whole number of blocks.
PyTorch runs on one thread, so that it adds the scales' mean in one order.

adamw8bit.safetensors: for the parameters `large` (5,000 numbers, so that the last block is not whole) and `small` (1,000, kept
in 32 bits): NAME.start, NAME.grad.STEP, and after steps 1, 5 and 20 NAME.value.STEP, NAME.state1.STEP, NAME.state2.STEP, and
NAME.absmax1.STEP, NAME.absmax2.STEP for `large`. Learning rate 1e-3, betas 0.9 and 0.999, eps 1e-8, weight decay 0.01.

qlora: families/llama's model, the linear layers' weights in nf4 with blocks of 64 and double quantisation, dequantised to f32,
trained through transformers and PEFT in f32 as families/make.py's case `lora_b` is; the keys are those of that script.
"""

import ctypes
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

# Compiled, the portable backend takes minutes, and may add and multiply in one rounding.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy
import torch

torch.set_num_threads(1)


def without_library():
    """Imports bitsandbytes as it is where it has no native library."""

    def refuse(path, *more):
        raise OSError("kept from loading")

    load, ctypes.cdll.LoadLibrary = ctypes.cdll.LoadLibrary, refuse
    import bitsandbytes

    ctypes.cdll.LoadLibrary = load
    return bitsandbytes


bitsandbytes = without_library()
functional = bitsandbytes.functional

import safetensors.torch  # noqa: E402
import transformers  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "families"))
import make as families  # noqa: E402  (this folder's script is __main__)

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


def numbers(seed, count):
    """Nearly normal numbers around 0."""
    draws = numpy.array(words(seed, count), dtype=numpy.uint64)
    parts = [((draws >> numpy.uint64(16 * i)) & numpy.uint64(0xFFFF)).astype(numpy.int64) for i in range(4)]
    return torch.from_numpy((sum(parts) - 131_070).astype(numpy.float32) * numpy.float32(2.0**-17))


def make_adamw8bit():
    kept = {}
    for place, (name, count) in enumerate((("large", 5000), ("small", 1000))):
        value = torch.nn.Parameter(numbers(10 + place, count))
        optimizer = bitsandbytes.optim.AdamW8bit([value], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
        kept[f"{name}.start"] = value.detach().clone()
        for step in range(1, 21):
            # Gradients of very different sizes, as those of embeddings are.
            value.grad = numbers(100 * step + place, count) * torch.exp2(-torch.arange(count) % 13).float()
            kept[f"{name}.grad.{step}"] = value.grad.clone()
            optimizer.step()
            if step in (1, 5, 20):
                state = optimizer.state[value]
                kept[f"{name}.value.{step}"] = value.detach().clone()
                for part in ("state1", "state2", "absmax1", "absmax2"):
                    if part in state:
                        kept[f"{name}.{part}.{step}"] = state[part].clone()
    safetensors.torch.save_file(kept, HERE / "adamw8bit.safetensors")


def make_qlora():
    data = json.loads((HERE.parent / "families/data.json").read_text())
    model = families.load_model(HERE.parent / "families/llama/model")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.split(".")[-2] in families.LINEARS:
                packed, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
                weight.copy_(functional.dequantize_4bit(packed, state))
    case = families.LORA | dict(b=0.05)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        steps, keep = families.train(directory, case, data, seed=77)
    golden = dict(
        adamw=dict(families.ADAMW, betas=list(families.ADAMW["betas"])),
        max_grad_norm=families.MAX_GRAD_NORM,
        cases=dict(qlora=dict(settings=case, steps=steps)),
    )
    families.write_json(HERE / "qlora.json", golden)
    tensors = {f"qlora.{name}": value.contiguous() for name, value in keep.items()}
    safetensors.torch.save_file(tensors, HERE / "qlora.safetensors")


def make_checkpoint():
    model = transformers.AutoModelForCausalLM.from_pretrained(
        HERE.parent / "families/llama/model",
        dtype=torch.float32,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    )
    model.save_pretrained(HERE / "checkpoint")
    (HERE / "checkpoint/generation_config.json").unlink(missing_ok=True)


def main():
    make_checkpoint()
    make_adamw8bit()
    make_qlora()
    made = [quantised(index) for index in range(MATRICES)]
    maps = {name: bits(functional.create_dynamic_map(signed)) for name, signed in (("signed", True), ("unsigned", False))}
    versions = dict(bitsandbytes=bitsandbytes.__version__, torch=torch.__version__)
    lines = [json.dumps(entry) for entry in made]
    head = json.dumps(dict(versions=versions, maps=maps, nf4=bits(functional.get_4bit_type("nf4", device="cpu"))))
    (HERE / "weights.json").write_text(head[:-1] + ',\n"matrices": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()

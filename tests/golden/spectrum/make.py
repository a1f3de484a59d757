#!/usr/bin/env python3
"""Makes golden signal-to-noise ratios of SmolLM2-135M-Instruct's linear weights (Q4_1), by NumPy alone.

    pip install -r tests/golden/requirements.txt
    examples/get-smollm2.sh
    python tests/golden/spectrum/make.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf            # minutes

Writes, beside this script:

  smollm2.json   `weights`: Hugging Face name -> shape, snr, sigma, threshold, largest (the largest singular value), sum (of all), above
                 (how many lie above the threshold); `top_25`: the names that Spectrum's rule takes, for each role, best first

Weights are dequantised to f32 by the `gguf` package and widened to f64; singular values are numpy.linalg.svd's (LAPACK gesdd). The ratio is
Spectrum's (arXiv 2406.06623, and the script spectrum.py of its authors): sigma = (q75 - q25) / 1.349 with linear interpolation, threshold =
sigma * sqrt((1 + sqrt(beta))^2), snr = (sum above / sum not above) / largest; the top is int(count * 25 / 100) of each role.
(llama.cpp's files keep the rows of q and k in another order, which changes no singular value.)
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

HERE = Path(__file__).resolve().parent
ROLES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def weights(path):
    for tensor in GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and parts[2] in ROLES and parts[3] == "weight":
            yield f"model.layers.{parts[1]}.{ROLES[parts[2]]}.weight", dequantize(tensor.data, tensor.tensor_type)


def split(s, shape):
    """sigma, threshold, and which of the singular values `s` lie above it."""
    sigma = (np.quantile(s, 0.75) - np.quantile(s, 0.25)) / 1.349
    threshold = sigma * np.sqrt((1 + np.sqrt(min(shape) / max(shape))) ** 2)
    return sigma, threshold, s > threshold


def snr_of(s, shape):
    """The ratio of a matrix of this shape with these singular values, largest first."""
    _, _, above = split(s, shape)
    return s[above].sum() / s[~above].sum() / s[0]


def snr(matrix):
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    n, m = matrix.shape
    sigma, threshold, above = split(s, matrix.shape)
    value = snr_of(s, matrix.shape)
    numbers = dict(snr=value, sigma=sigma, threshold=threshold, largest=s[0], sum=s.sum())
    return {"shape": [n, m], **{k: float(v) for k, v in numbers.items()}, "above": int(above.sum())}


def main():
    path = sys.argv[1]
    found = {name: snr(matrix) for name, matrix in weights(path)}
    found = dict(sorted(found.items(), key=lambda item: (int(item[0].split(".")[2]), item[0])))
    top = {}
    for role in sorted(ROLES.values()):
        names = [name for name in found if role in name]
        names.sort(key=lambda name: found[name]["snr"], reverse=True)
        top[role.split(".")[1]] = names[: int(len(names) * 25 / 100)]
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items())
    made_by = f"numpy {np.__version__}"
    (HERE / "smollm2.json").write_text(
        f'{{\n  "made_by": {json.dumps(made_by)},\n  "top_25": {json.dumps(top, indent=2)},\n  "weights": {{\n{lines}\n  }}\n}}\n'
    )


if __name__ == "__main__":
    main()

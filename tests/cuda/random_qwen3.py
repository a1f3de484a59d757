#!/usr/bin/env python3
"""A checkpoint of Qwen3's shape with random weights, for measuring where the real one can't be fetched.

    python3 tests/cuda/random_qwen3.py FOLDER [--layers 36] [--hidden 4096] …

Out come bf16 shards with their index and config.json (Qwen3-8B's by default: 16.4 GB), and the tokenizer of
examples/models/tiny. Needs torch; weights are drawn on the GPU if there is one, and shards are written side by side. What
such a model says means nothing; what it takes of time and memory does.
"""

import argparse
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

TINY = Path(__file__).resolve().parent.parent.parent / "examples/models/tiny"


def tensors(shape):
    """Names and shapes of all weights, in the order of the forward pass."""
    hidden, heads, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    for block in range(shape.layers):
        at = f"model.layers.{block}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "self_attn.q_proj.weight", (heads, hidden)
        yield at + "self_attn.k_proj.weight", (kv, hidden)
        yield at + "self_attn.v_proj.weight", (kv, hidden)
        yield at + "self_attn.q_norm.weight", (shape.head_dim,)
        yield at + "self_attn.k_norm.weight", (shape.head_dim,)
        yield at + "self_attn.o_proj.weight", (hidden, heads)
        yield at + "post_attention_layernorm.weight", (hidden,)
        yield at + "mlp.gate_proj.weight", (shape.intermediate, hidden)
        yield at + "mlp.up_proj.weight", (shape.intermediate, hidden)
        yield at + "mlp.down_proj.weight", (hidden, shape.intermediate)
    yield "model.norm.weight", (hidden,)
    if not shape.tied:
        yield "lm_head.weight", (shape.vocab, hidden)


def config(shape):
    """config.json, with Qwen3-8B's values where no argument sets them."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": 4,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


def size(dims):
    """Bytes of a tensor of these dimensions in bf16."""
    return 2 * torch.Size(dims).numel()


def shards(shape):
    """The tensors in groups of at most `shard_gib`, one at least each."""
    group, held = [], 0
    for name, dims in tensors(shape):
        if group and held + size(dims) > shape.shard_gib * 2**30:
            yield group
            group, held = [], 0
        group.append((name, dims))
        held += size(dims)
    yield group


def write(path, group, seed):
    """One shard: the length of the header, the header, and each tensor's bytes as they are drawn."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator(device).manual_seed(seed)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in group:
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [end, end + size(dims)]}
        end += size(dims)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, dims in group:
            weight = torch.ones(dims, dtype=torch.bfloat16, device=device)
            if len(dims) == 2:
                weight.normal_(0.0, 0.02, generator=draw)
            rest = memoryview(weight.cpu().view(torch.uint8).flatten().numpy())
            while rest:
                rest = rest[file.write(rest) :]


def main():
    """Reads the arguments, writes the folder, says how large it is and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    sizes = {"vocab": 151936, "hidden": 4096, "intermediate": 12288, "layers": 36, "heads": 32, "kv-heads": 8, "head-dim": 128}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tied", action="store_true", help="one matrix for embedding and head")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gib", type=float, default=2.0)
    parser.add_argument("--tokenizer", type=Path, default=TINY, help="folder of the tokenizer's files")
    shape = parser.parse_args()
    started = time.monotonic()
    shape.folder.mkdir(parents=True, exist_ok=True)
    groups = list(shards(shape))
    names = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    with ThreadPoolExecutor(4) as pool:
        paths = [shape.folder / name for name in names]
        list(pool.map(write, paths, groups, range(shape.seed, shape.seed + len(groups))))
    total = sum(size(dims) for _, dims in tensors(shape))
    index = {tensor: name for name, group in zip(names, groups) for tensor, _ in group}
    index = {"metadata": {"total_size": total}, "weight_map": index}
    (shape.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (shape.folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]:
        shutil.copy(shape.tokenizer / name, shape.folder / name)
    print(f"{shape.folder}: {total / 2**30:.2f} GiB in {len(groups)} shards, {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()

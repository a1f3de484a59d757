"""Writes the tiny model's configuration and its first weights, beside the tokenizer that `tokenizer.py` put there.

    python init_model.py ../models/tiny work/init

A Llama of 3.7 million parameters: wide and shallow, because few large products are faster on a CPU than many small ones.

The weights are normal random numbers, except for three attention heads, which start with what every language model comes to have after a
few billion tokens and this one would not after its few million: *induction*. One head of the first block looks
at the token before and writes down what it was; two heads of the second look for where the present token was
written down, that is, for the token that followed it last time, and copy that. Training then does with them what it likes.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SEED = 1
STD = 0.04
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 3072, "hidden_size": 256,
    "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "hidden_act": "silu", "max_position_embeddings": 1024, "initializer_range": STD, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
    "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "tie_word_embeddings": True, "use_cache": True,
    "bos_token_id": None, "eos_token_id": 4, "pad_token_id": 0, "torch_dtype": "float32",
}
GENERATION = {"eos_token_id": [4, 0], "pad_token_id": 0, "do_sample": False}

# The hand-made heads. `COMMON`: length of the direction that all embeddings share, by which a head can see "a token" at all.
# `SHARPNESS`: logit by which the token before beats its neighbours. The others: strengths of writing down, of comparing, of copying.
COMMON, SHARPNESS, WRITE, COMPARE, COPY = 0.3, 4.0, 0.15, 1.6, 0.5


def random_weights(config, rng):
    """Name → array, in the names and shapes of `transformers`."""
    hidden, inner, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def normal(rows, columns, std=STD):
        return (rng.standard_normal((rows, columns)) * std).astype(np.float32)

    # What writes into the residual stream starts small, so that the stream is not drowned by many blocks.
    into_stream = STD / math.sqrt(2 * blocks)
    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden), "model.norm.weight": np.ones(hidden, np.float32)}
    for i in range(blocks):
        block = f"model.layers.{i}."
        tensors |= {
            block + "input_layernorm.weight": np.ones(hidden, np.float32),
            block + "self_attn.q_proj.weight": normal(q, hidden), block + "self_attn.k_proj.weight": normal(kv, hidden),
            block + "self_attn.v_proj.weight": normal(kv, hidden), block + "self_attn.o_proj.weight": normal(hidden, q, into_stream),
            block + "post_attention_layernorm.weight": np.ones(hidden, np.float32),
            block + "mlp.gate_proj.weight": normal(inner, hidden), block + "mlp.up_proj.weight": normal(inner, hidden),
            block + "mlp.down_proj.weight": normal(hidden, inner, into_stream),
        }
    return tensors


def add_induction(tensors, config, rng):
    """Overwrites query head 0 of block 0, and query heads 0 and 2 (key heads 0 and 1) of block 1."""
    hidden, head = config["hidden_size"], config["head_dim"]
    half, group = head // 2, config["num_attention_heads"] // config["num_key_value_heads"]
    # Rotary pair i turns by frequencies[i] a position; its two numbers stand at i and at i + half.
    frequencies = [config["rope_theta"] ** (-i / half) for i in range(half)]

    def orthonormal(rows):
        return np.linalg.qr(rng.standard_normal((hidden, rows)))[0].T

    common = orthonormal(1)[0]
    embedding = tensors["model.embed_tokens.weight"]
    embedding += (COMMON - embedding @ common)[:, None] * common
    # What the head sees of `common` after the norm has scaled the embedding to length sqrt(hidden).
    seen = math.sqrt(hidden) * COMMON / np.linalg.norm(embedding, axis=1).mean()

    first, second = ({name: tensors[f"model.layers.{i}.self_attn.{name}_proj.weight"] for name in "qkvo"} for i in (0, 1))
    # The token before: constant query and key, the key turned one position ahead, in the fast pairs that tell positions apart.
    fast = range(4)
    strength = math.sqrt(SHARPNESS * math.sqrt(head) / sum(1 - math.cos(frequencies[i]) for i in fast)) / seen
    for name in "qk":
        first[name][:head] = rng.standard_normal((head, hidden)) * 0.005
    for i in fast:
        first["q"][i] += strength * common
        first["k"][i] += strength * math.cos(frequencies[i]) * common
        first["k"][i + half] += strength * math.sin(frequencies[i]) * common
    # Signatures pass through the slow pairs, which hardly turn within a hundred positions.
    slow = [i for i in range(half) if frequencies[i] < 0.008]
    slow += [i + half for i in slow]
    own, written = orthonormal(len(slow)), orthonormal(len(slow))
    first["v"][:head] *= 0.1
    first["o"][:, :head] *= 0.1
    first["v"][slow] = own
    first["o"][:, slow] = WRITE * written.T
    copied = orthonormal(2 * head)
    for key_head in (0, 1):
        keys = slice(key_head * head, (key_head + 1) * head)
        queries = slice(key_head * group * head, (key_head * group + 1) * head)
        for name, rows, read in (("q", queries, own), ("k", keys, written)):
            block = rng.standard_normal((head, hidden)) * 0.005
            block[slow] += COMPARE * read
            second[name][rows] = block
        second["v"][keys] = copied[keys]
        second["o"][:, queries] = COPY * copied[keys].T


def main(tokenizer_folder, folder):
    """Writes a whole model directory."""
    source, target = Path(tokenizer_folder), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        shutil.copy(source / name, target / name)
    (target / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (target / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    rng = np.random.default_rng(SEED)
    tensors = random_weights(CONFIG, rng)
    add_induction(tensors, CONFIG, rng)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    print(sum(t.size for t in tensors.values()), "parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])

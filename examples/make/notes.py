"""Makes the summarisation data: short reports in telegram style and one sentence that says what mattered.

    python3 notes.py ../data/notes

writes `train.jsonl`, `validation.jsonl` and `test.jsonl`, one `{"prompt": …, "completion": …}` a line. Same script, same files.

First names, surnames and place names of validation and test occur in no training report, and every fourth way to write a line
is kept back for them. A quarter of the reports have typing errors outside of names and numbers.
"""

import sys
from pathlib import Path

from grammar import sentence, split, with_typos, write_rows
from note_kinds import KINDS, Names, distractions

SEED = "notes-1"
SIZES = {"train": 1500, "validation": 120, "test": 180}


def make_note(kind, part, rng):
    """One report with its summary."""
    names = Names(rng, part)
    report = kind(rng, part, names)
    lines = report.facts + distractions(rng, part, names, rng.randint(0, 4))
    rng.shuffle(lines)
    if rng.random() < 0.25:
        # Lower-case words only: a damaged name could not be copied right.
        lines = [" ".join(with_typos(word, rng, 0.08) if word.islower() else word for word in line.split(" ")) for line in lines]
    lines = [sentence(line) for line in lines]
    style = rng.random()
    if style < 0.6:
        body = "\n".join(lines)
    elif style < 0.8:
        body = "\n".join("- " + line for line in lines)
    else:
        body = "; ".join(line.rstrip(".") for line in lines) + "."
    return {"prompt": f"{report.title}\n{body}", "completion": report.summary}


def main(folder):
    """Writes the three files."""
    for part, size in SIZES.items():
        rows = split(SEED, part, size, KINDS, make_note)
        write_rows(Path(folder) / f"{part}.jsonl", rows)
        print(part, len(rows))


if __name__ == "__main__":
    main(sys.argv[1])

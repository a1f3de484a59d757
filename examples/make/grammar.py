"""A tiny text grammar: templates in, sentences out, the same ones for the same random generator.

A template is a string. `{name}` is replaced by a value that the caller bound, or by a random entry of the list that
the lexicon holds under that name (itself a template). `[a|b|c]` is replaced by one of its parts, which may be empty and
may hold further slots and brackets. Nothing else is special.

Also here: the noise that people make when they type (swapped letters, missing capitals, chat spellings).
Standard library only.
"""

import json
import random
import re
from pathlib import Path

SLOT_OR_CHOICE = re.compile(r"\{([a-z_0-9]+)\}|\[([^\[\]]*)\]")


def expand(template, rng, lexicon, bound=None):
    """Expands a template. `bound` maps slot names to fixed values and wins over the lexicon."""
    bound = bound or {}

    def fill(match):
        slot, options = match.group(1), match.group(2)
        if slot is None:
            return rng.choice(options.split("|"))
        if slot in bound:
            return str(bound[slot])
        return rng.choice(lexicon[slot])

    # Innermost brackets first; a replacement may bring new slots, so go on until nothing is left to replace.
    while SLOT_OR_CHOICE.search(template):
        template = SLOT_OR_CHOICE.sub(fill, template)
    template = re.sub(r"\b([Aa]) (?=[aeiou])(?!us|uni|one\b|eu)", r"\1n ", template)
    return re.sub(r" +", " ", template).replace(" ,", ",").replace(" .", ".").strip()


def sentence(text):
    """Makes the first letter a capital, leaving everything else as it is."""
    return text[:1].upper() + text[1:]


def held_out(items, part):
    """Splits a hand-written list into what each split may use.

    Of every six entries, four are for `train`, the fifth is for `validation` and the sixth for `test`. The three
    parts share nothing, so a test text is never a training template with other names in it.
    """
    keep = {"train": (0, 1, 2, 3), "validation": (4,), "test": (5,)}[part]
    return [item for i, item in enumerate(items) if i % 6 in keep]


CHAT_SPELLINGS = {
    "please": "pls", "thanks": "thx", "you": "u", "because": "bc", "about": "abt", "something": "sth",
    "tomorrow": "tmrw", "message": "msg", "minutes": "mins", "cannot": "cant", "I am": "im", "I have": "ive",
}


def with_typos(text, rng, rate):
    """Damages each longer word with the probability `rate`: letters swapped, dropped, doubled or mistyped."""
    neighbours = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioplsdfghjkkxcvbnmn"))
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) < 4 or not word[1:-1].isalpha() or rng.random() >= rate:
            continue
        at = rng.randrange(1, len(word) - 2)
        kind = rng.randrange(4)
        if kind == 0:
            word = word[:at] + word[at + 1] + word[at] + word[at + 2:]
        elif kind == 1:
            word = word[:at] + word[at + 1:]
        elif kind == 2:
            word = word[:at] + word[at] + word[at:]
        else:
            word = word[:at] + neighbours.get(word[at], word[at]) + word[at + 1:]
        words[i] = word
    return " ".join(words)


def as_typed(text, rng):
    """The text as a hurried customer types it: half of the time clean, otherwise with some of the usual damage."""
    if rng.random() < 0.5:
        return text
    if rng.random() < 0.35:
        for word, short in CHAT_SPELLINGS.items():
            text = re.sub(rf"\b{word}\b", short, text)
    text = with_typos(text, rng, rng.choice([0.02, 0.05, 0.05, 0.12]))
    style = rng.random()
    if style < 0.25:
        text = text.lower()
    elif style < 0.29:
        text = text.upper()
    if rng.random() < 0.15:
        text = text.replace(". ", " ").rstrip(".")
    if rng.random() < 0.12:
        text = text.rstrip(".!?") + rng.choice(["!!", "???", "...", " :("])
    return text


def generator(*parts):
    """A random generator whose stream depends on its name only, not on what was generated before it."""
    return random.Random("/".join(str(part) for part in parts))


def split(name, part, size, kinds, make):
    """The rows of one file: `make(kind, part, rng)` gives one, a dictionary. Kinds in equal shares and in random order,
    none twice by its first value."""
    rng = generator(name, part)
    seen, rows = set(), []
    while len(rows) < size:
        row = make(kinds[len(rows) % len(kinds)], part, rng)
        first = next(iter(row.values()))
        if first not in seen:
            seen.add(first)
            rows.append(row)
    rng.shuffle(rows)
    return rows


def write_rows(path, rows):
    """Writes one JSON object a line, and makes the folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

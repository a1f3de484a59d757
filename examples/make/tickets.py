"""Makes the classification data: support tickets and the topic that each is about.

    python3 tickets.py ../data/tickets

writes `train.jsonl`, `validation.jsonl` and `test.jsonl`, one `{"text": …, "label": …}` a line. Same script, same files.

A ticket is built around one core sentence, whose topic is the label. Around it stand asides that mention other topics without
wanting anything, fillers, a request and courtesies, all as a hurried person types. One ticket in thirty has two
cores, and which of them became the label was a coin's decision: nobody can get all of them right.
No core sentence of validation or test stands in a training ticket; asides, products and courtesies are common to all.
"""

import re
import sys
from collections import Counter
from pathlib import Path

from grammar import as_typed, expand, held_out, sentence, split, write_rows
from lexicon import DEVICES, GOODS, LEXICON
from ticket_templates import ASIDES, ASKS, CLOSINGS, CORES, FILLERS, NEUTRAL_ASKS, OPENINGS, SYNONYMS, TOPICS

SEED = "tickets-1"
SIZES = {"train": 1800, "validation": 240, "test": 300}
AMBIGUOUS_SHARE = 1 / 30
QUESTION_WORDS = {"Is", "Has", "Are", "Does", "Do", "Can", "Could", "May", "Will", "Would", "How", "What", "Which", "When", "Where",
                  "Why"}


SYNONYM_PATTERN = re.compile(r"\b(" + "|".join(word for line in SYNONYMS for word in line) + r")\b")
SYNONYMS_OF = {word: line for line in SYNONYMS for word in line}


def reworded(text, rng):
    """The text with half of the words that have synonyms exchanged for one of them."""
    return SYNONYM_PATTERN.sub(lambda m: rng.choice(SYNONYMS_OF[m.group()]) if rng.random() < 0.5 else m.group(), text)


def make_ticket(topic, part, rng):
    """One ticket with its label."""
    # Only what has a plug or a battery is repaired here or asked about. Every mention in a ticket is of the same product.
    powered = topic in ("repair", "advice") or rng.random() < 0.6
    bound = {"product": rng.choice(DEVICES if powered else GOODS)}

    def say(templates):
        text = sentence(reworded(expand(rng.choice(templates), rng, LEXICON, bound), rng))
        return text + ("?" if text.split(" ")[0] in QUESTION_WORDS else ".")

    core = say(held_out(CORES[topic], part))
    label = topic
    body = [core]
    if rng.random() < AMBIGUOUS_SHARE:
        other = rng.choice([t for t in TOPICS if t != topic])
        body.append("Also " + expand(rng.choice(held_out(CORES[other], part)), rng, LEXICON, bound) + ".")
        label = rng.choice([topic, other])
    else:
        others = [t for t in TOPICS if t != topic]
        asides = [expand(rng.choice(ASIDES[t]), rng, LEXICON, bound)
                  for t in rng.sample(others, rng.choice([0, 0, 1, 1, 1, 2]))]
        joined = rng.random() < 0.4
        for i, aside in enumerate(asides):
            if joined and i == 0:
                # The aside and the core in one sentence, either first.
                plain_core = core if core.startswith("I ") else core[:1].lower() + core[1:]
                body[0] = rng.choice([f"{sentence(aside)}, but {plain_core}", f"Although {aside}, {plain_core}",
                                      f"{core[:-1]}, {rng.choice(['even if', 'and yet', 'although'])} {aside}{core[-1]}"])
            else:
                body.insert(rng.choice([0, len(body)]), sentence(aside) + ".")
        if rng.random() < 0.35:
            body.append(say(held_out(CORES[topic], part)))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        body.insert(rng.choice([0, len(body)]), say(FILLERS))

    chance = rng.random()
    if chance < 0.35 and label == topic:
        body.append(say(ASKS[topic]))
    elif chance < 0.75:
        body.append(say(NEUTRAL_ASKS))
    if rng.random() < 0.5:
        body.insert(0, say(OPENINGS)[:-1] + ",")
    if rng.random() < 0.4:
        body.append(say(CLOSINGS)[:-1])
    # Drawing twice from a short list can say the same thing twice; once is enough.
    return {"text": as_typed(" ".join(dict.fromkeys(body)), rng), "label": label}


def main(folder):
    """Writes the three files and says what is in them."""
    for part, size in SIZES.items():
        rows = split(SEED, part, size, TOPICS, make_ticket)
        write_rows(Path(folder) / f"{part}.jsonl", rows)
        print(part, len(rows), dict(sorted(Counter(row["label"] for row in rows).items())))


if __name__ == "__main__":
    main(sys.argv[1])

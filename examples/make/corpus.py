"""Makes the text that the base model is pre-trained on: about three million tokens of plain, simple English.

    python3 corpus.py work/corpus.jsonl [documents]

One `{"text": …}` a line. It speaks of the same world as the two example tasks (shops, workshops, meetings, reports) and practises what any
language model can do (following a story, answering a question about a text, copying a name or number, comparing two
numbers, telling a record in sentences), but shows neither task: no topic is ever given as an answer, no
report is ever put into one sentence, and no ticket template of validation or test occurs.
A third of the names are made up from syllables, so that the model learns to copy and not only to remember.
"""

import json
import sys

from corpus_talk import FACTS, PLAINLY, REPLIES, SCENES, SETTLED, THINGS
from grammar import as_typed, expand, generator, held_out, sentence
from lexicon import DEVICES, FIRST_NAMES, GOODS, LAST_NAMES, LEXICON, MONTHS, PLACE_KINDS, PLACE_NAMES, WEEKDAYS
from note_kinds import DECISIONS, FAULTS, GOODS_COUNTED, GROUPS, INCIDENTS, MACHINES, PARTS, READINGS, SPECIES, TASKS
from tickets import reworded
from ticket_templates import ASIDES, ASKS, CLOSINGS, CORES, FILLERS, NEUTRAL_ASKS, OPENINGS, TOPICS

SEED = "corpus-1"
DOCUMENTS = 36_000

ONSETS, VOWELS, CODAS = "b d f g h k l m n p r s t v w br kr st tr sh".split(), "a e i o u ai ea".split(), ["", "", "n", "r", "l", "s", "t", "nd", "rk"]


def made_up(rng, syllables):
    """A name that exists nowhere."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables)).capitalize()


def person(rng):
    """A full name."""
    if rng.random() < 0.33:
        return f"{made_up(rng, 2)} {made_up(rng, rng.choice([1, 2]))}"
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def place(rng):
    """A place with its kind."""
    name = made_up(rng, 2) if rng.random() < 0.33 else rng.choice(PLACE_NAMES)
    return f"{name} {rng.choice(PLACE_KINDS)}"


def chat(*turns):
    """Turns of user and assistant as the chat template renders them."""
    roles = ["<|user|>", "<|assistant|>"]
    return "".join(f"{roles[i % 2]}{turn}<|end|>" for i, turn in enumerate(turns))


# --- the shop -------------------------------------------------------------------------------------------------------

def say(templates, rng, bound):
    """One expanded clause as a sentence, with a question mark where it asks."""
    text = sentence(reworded(expand(rng.choice(templates), rng, LEXICON, bound), rng))
    if text.endswith((".", "?")):
        return text
    asks = text.split(" ")[0] in {"Is", "Has", "Are", "Does", "Do", "Can", "Could", "May", "Will", "Would", "How", "What", "Which", "When", "Where", "Why"}
    return text + ("?" if asks else ".")


def letter(rng, topic, bound):
    """What a customer writes: two or three sentences of one topic, courtesies, perhaps an aside of another topic."""
    body = [say(SCENES[topic], rng, bound) for _ in range(rng.choice([1, 2, 2, 3]))]
    kind = rng.random()
    if kind < 0.35:
        body[0] = say(held_out(CORES[topic], "train"), rng, bound)
    elif kind < 0.6:
        body[0] = say(PLAINLY, rng, bound | {"thing": rng.choice(THINGS[topic])})
    for other in rng.sample([t for t in TOPICS if t != topic], rng.choice([0, 1, 1, 2])):
        asides = SETTLED[other] if rng.random() < 0.75 else held_out(ASIDES[other], "train")
        settled, first = say(asides, rng, bound)[:-1], body[0]
        plain, plain_first = settled if settled.startswith("I ") else settled[:1].lower() + settled[1:], first if first.startswith("I ") else first[:1].lower() + first[1:]
        joined = [f"{settled}, but {plain_first}", f"Although {plain}, {plain_first}", f"{first[:-1]}, even if {plain}{first[-1]}"]
        if rng.random() < 0.3:
            body[0] = rng.choice(joined)
        else:
            body.insert(rng.choice([0, len(body)]), settled + ".")
    if rng.random() < 0.2:
        body.append(say(held_out(ASKS[topic], "train"), rng, bound))
    if rng.random() < 0.4:
        body.insert(rng.choice([0, len(body)]), say(held_out(FILLERS, "train"), rng, bound))
    if rng.random() < 0.4:
        body.append(say(held_out(NEUTRAL_ASKS, "train"), rng, bound))
    if rng.random() < 0.4:
        body.insert(0, sentence(expand(rng.choice(OPENINGS), rng, LEXICON)) + ",")
    if rng.random() < 0.4:
        body.append(sentence(expand(rng.choice(CLOSINGS), rng, LEXICON)))
    return as_typed(" ".join(body), rng)


def shop_letter(rng):
    """A letter, and most of the time the answer that fits it."""
    topic = rng.choice(TOPICS)
    bound = {"product": rng.choice(DEVICES if topic in ("repair", "advice") else DEVICES + GOODS)}
    text = letter(rng, topic, bound)
    if rng.random() < 0.1:
        return text
    answer = [say([t], rng, bound) for t in rng.sample(REPLIES[topic], rng.choice([1, 2, 3]))]
    return chat(text, " ".join(answer))


def shop_facts(rng):
    """General statements, three to six of one or two topics."""
    topics = rng.sample(TOPICS, rng.choice([1, 1, 2]))
    lines = [say([t], rng, {"product": rng.choice(DEVICES)}) for topic in topics for t in rng.sample(FACTS[topic], 3)]
    return " ".join(lines)


def shop_story(rng):
    """The same world told in the third person."""
    topic, who = rng.choice(TOPICS), person(rng)
    first = who.split(" ")[0]
    product = rng.choice(DEVICES)
    begin = {
        "billing": "{f} looked at the [bank statement|bill|invoice] and saw that [{euros} were missing|the {p} was charged twice|the sum was wrong].",
        "delivery": "{f} waited for the [parcel|courier|driver] all [day|morning|week], but [nobody rang|the van drove past|the box did not come].",
        "returns": "{f} did not like the {p} and [sent it back|took it back to the shop|asked for a refund].",
        "repair": "The {p} of {f} [broke|stopped working|made a noise|did not start|began to smoke] {ago}.",
        "account": "{f} tried to [log in|sign in], but the [password|code|user name] was [wrong|refused|forgotten].",
        "advice": "{f} wanted to buy a {p} and asked which [model|size|colour] was the best.",
    }[topic]
    end = {
        "billing": "The [bank|clerk|shop] [paid back the money|corrected the bill|explained the fee].", "delivery": "The [parcel|box] [came on {weekday}|was at the depot|was with a neighbour].",
        "returns": "The [money|refund] came {number} days later.", "repair": "A mechanic [repaired it|mended the motor|found a loose cable].",
        "account": "[A new link came by mail|The profile was unlocked|The code came at last].", "advice": "The clerk [showed two models|said that the small one was enough|compared them].",
    }[topic]
    bound = {"f": first, "p": product}
    ask = rng.choice(["Who is the text about?", "What is the person called?", "Whom is this about?"])
    text = f"{who} lives in {rng.choice(PLACE_NAMES)}. {expand(begin, rng, LEXICON, bound)} {expand(end, rng, LEXICON, bound)}"
    return chat(f"{text} {ask}", f"{who}.") if rng.random() < 0.4 else text


# --- records: lists of fields, and what can be said of them ---------------------------------------------------------

def number(rng):
    """A number as reports have them."""
    return str(rng.choice([rng.randint(1, 30), rng.randint(10, 99), rng.randint(100, 999)]))


# field → (how it is written in a list, how a sentence tells it, the question for it, how a value is drawn)
FIELDS = {
    "person": (["Mechanic: {v}", "Inspector: {v}", "Observer: {v}", "Chair: {v}", "Signed by {v}", "Seen by {v}", "Visit by {v}", "Checked by {v}", "Caller: {v}",
                "Engineer: {v}", "Driver: {v}", "Ranger: {v}", "On duty: {v}", "Counted by {v}", "Led by {v}", "Reported by {v}", "Carried out by: {v}", "Watcher: {v}"],
               ["{v} was there.", "{v} did it.", "The work was done by {v}.", "{v} wrote this down."], ["Who was it?", "Who was there?", "What is the name?"], person),
    "helper": (["Notes by {v}", "Copy to {v}", "Keys are with {v}", "Hand-over to {v}", "Also there: {v}", "Guest: {v}", "With: {v}"],
               ["{v} was told as well.", "{v} came too."], ["Who else is named?", "Who is named besides?"], person),
    "place": (["Place: {v}", "Site: {v}", "Where: {v}", "Location: {v}", "At: {v}", "Scene: {v}", "Delivered to: {v}", "Unloaded at {v}", "Round at {v}", "For: {v}", "Area: {v}"],
              ["It was at {v}.", "This happened at {v}.", "The place is {v}."], ["Where was it?", "What is the place?", "At which place?"], place),
    "day": (["Date: {v}", "Filed on {v}", "Day: {v}"], ["It was on {v}.", "The date is {v}."], ["When was it?", "On which day?"],
            lambda rng: f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"),
    "weekday": (["Next visit on {v}", "Rest on {v}", "Second van on {v}", "Until {v}", "Missing ones follow on {v}", "The others come {v}"],
                ["More will come on {v}.", "The next day is {v}."], ["Which weekday is named?"], lambda rng: rng.choice(WEEKDAYS)),
    "machine": (["Machine: {v}", "Object: {v}", "About the {v}"], ["It is about the {v}.", "They looked at the {v}."], ["Which machine is it?"], lambda rng: rng.choice(MACHINES)),
    "cause": (["Cause: {v}", "Reason: {v}", "It was due to {v}", "Found {v}", "Because of {v}", "Started by {v}"], ["The cause was {v}.", "It came from {v}."],
              ["What was the cause?", "Why did it happen?"], lambda rng: rng.choice([rng.choice(FAULTS)[1], rng.choice(INCIDENTS)[1]])),
    "done": (["Work done: {v}", "Did: {v}", "Action: {v}", "What we did: {v}"], ["They {v}.", "Somebody {v}."], ["What was done?"], lambda rng: rng.choice(FAULTS)[2]),
    "part": (["To order: new {v}", "Part needed: {v}", "Still needs a new {v}", "Next: order a {v}"], ["A {v} must be ordered.", "A {v} is lacking."], ["Which part is needed?"],
             lambda rng: rng.choice(PARTS)),
    "group": (["Group: {v}", "Body: {v}", "Who met: {v}", "Meeting of the {v}"], ["The {v} came together.", "It was a meeting of the {v}."], ["Which group was it?"],
              lambda rng: rng.choice(GROUPS)),
    "decided": (["Decided: {v}", "Agreed to {v}", "Vote passed: {v}", "Yes to: {v}"], ["They want to {v}.", "The vote was to {v}."], ["What was decided?"],
                lambda rng: rng.choice(DECISIONS)),
    "refused": (["Put off: {v}", "No vote on: {v}", "Rejected: {v}", "Not now: {v}"], ["They do not want to {v}.", "It was put off to {v}."], ["What was put off?"],
                lambda rng: rng.choice(DECISIONS)),
    "task": (["To do: {v}", "Task: {v}", "Promised to {v}", "Will {v}"], ["Somebody has to {v}.", "The task is to {v}."], ["What is the task?"], lambda rng: rng.choice(TASKS)),
    "goods": (["Goods: {v}", "On the list: {v}", "Ordered: {v}", "Due: {v}", "Expected {v}"], ["The list has {v}.", "They ordered {v}."], ["What was ordered?"],
              lambda rng: f"{number(rng)} {rng.choice(GOODS_COUNTED)}"),
    "animal": (["Species: {v}", "Animals: {v}", "Looked for {v}", "Kind: {v}"], ["They looked for {v}.", "It is about {v}."], ["Which animals?"], lambda rng: rng.choice(SPECIES)),
    "count": (["Count: {v}", "Seen: {v}", "Arrived: {v}", "Number now: {v}", "This year: {v}", "Counted {v}", "Received: {v}", "Came in: {v}"], ["The number is {v}.", "{v} were counted."],
              ["What is the number?", "How many were counted?"], number),
    "event": (["What: {v}", "Kind: {v}", "Event: {v}", "Incident: {v}"], ["There was a {v}.", "A {v} happened."], ["What happened?"], lambda rng: rng.choice(INCIDENTS)[0]),
    "hurt": (["Injured: {v}", "People hurt: {v}", "Hurt: {v}", "Taken to hospital: {v}"], ["Hurt people: {v}."], ["How many were hurt?"], lambda rng: rng.choice(["none", "1", "2", "3"])),
    "room": (["Room {v}", "Page {v}", "Badge {v}", "Form {v}", "Photos: {v}", "Phone {v}", "File: {v}", "Travel: {v} km"], ["A note says {v}."], ["Which number is noted?"], number),
    "weather": (["Weather: {v}"], ["The weather was {v}."], ["How was the weather?"], lambda rng: rng.choice("sunny rain fog cloudy windy snow".split())),
    "problem": (["Problem: {v}", "Reported: {v}", "Customer says the {v}"], ["The {v}.", "People said that the {v}."], ["What was wrong?"],
                lambda rng: f"{rng.choice(MACHINES)} {rng.choice(FAULTS)[0]}"),
}
TITLES = ["Repair report", "Service visit", "Work sheet", "Minutes", "Meeting notes", "Protocol", "Inspection", "Daily check", "Control round", "Goods in", "Delivery record",
          "Stock list", "Incident", "Duty log", "Emergency report", "Field notes", "Wildlife count", "Count sheet", "Log", "Form", "List", "Record"]


def reading(rng):
    """A reading with its judgement, as a list line."""
    name, unit, low, high = rng.choice(READINGS)
    kind = rng.randrange(3)
    value = [rng.randint(low, high), high + rng.randint(1, 9), max(0, low - rng.randint(1, 9))][kind]
    note = rng.choice([["ok", "fine", "in range", "good"], ["above the limit", "more than allowed"], ["below the limit", "less than needed"]][kind])
    line = expand(rng.choice(["{n}: {x} {u}, {k}", "{n} {x} {u} ({k})", "{n} at {x} {u}, {k}", "{n} = {x} {u}, {k}"]), rng, LEXICON, {"n": name, "x": value, "u": unit, "k": note})
    told = [f"The {name} is all right.", f"The {name} is too high.", f"The {name} is too low."][kind]
    return line, told, f"How is the {name}?", ["All right.", "Too high.", "Too low."][kind]


def record(rng):
    """A list of fields; then it is told in sentences, or one to three questions about it are answered, or it stands alone."""
    chosen = rng.sample(sorted(FIELDS), rng.randint(2, 6))
    items = []
    for field in chosen:
        lines, told, questions, draw = FIELDS[field]
        value = draw(rng)
        bound = {"v": value}
        items.append((expand(rng.choice(lines), rng, LEXICON, bound), sentence(expand(rng.choice(told), rng, LEXICON, bound)), rng.choice(questions), sentence(f"{value}.")))
    items += [reading(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    rng.shuffle(items)
    style = rng.random()
    lines = [sentence(item[0]) for item in items]
    body = "\n".join(lines) if style < 0.6 else "\n".join("- " + line for line in lines) if style < 0.8 else "; ".join(lines) + "."
    text = f"{rng.choice(TITLES)}\n{body}"
    task = rng.random()
    if task < 0.03:
        return text
    if task < 0.5:
        told = items if rng.random() < 0.5 else rng.sample(items, len(items))
        return chat(f"{text}\n{rng.choice(['Tell it in full.', 'Write this as a story.', 'Put it in sentences.', 'Read it out to me.'])}", " ".join(item[1] for item in told))
    asked = rng.sample(items, min(len(items), rng.choice([1, 2, 3, 4])))
    turns = [f"{text}\n{asked[0][2]}", asked[0][3]]
    for item in asked[1:]:
        turns += [item[2], item[3]]
    return chat(*turns)


# --- stories and small exercises ------------------------------------------------------------------------------------

def workshop_story(rng):
    """Somebody repairs something, told at length, sometimes with a question."""
    who, where, machine = person(rng), place(rng), rng.choice(MACHINES)
    seen, cause, done = rng.choice(FAULTS)
    first = who.split(" ")[0]
    she = rng.choice(["he", "she"])
    lines = [
        rng.choice([f"The {machine} at {where} {seen}.", f"At {where} the {machine} {seen}.", f"People at {where} said that the {machine} {seen}."]),
        rng.choice([f"They called {who}.", f"So {who} went there.", f"{who} came to have a look."]),
        rng.choice([f"{first} found {cause}.", f"{sentence(she)} saw that it was {cause}.", f"The reason was {cause}."]),
        rng.choice([f"{sentence(she)} {done}.", f"Then {first} {done}."]),
        rng.choice(["After that it ran again.", f"But a new {rng.choice(PARTS)} was needed.", "But it was still out of service.", "Everybody was glad.", f"It was {rng.choice(WEEKDAYS)}."]),
    ]
    text = " ".join(lines)
    if rng.random() < 0.5:
        return text
    question, answer = rng.choice([("Who came?", f"{who}."), ("Where was it?", f"At {where}."), ("What was the cause?", f"It was {cause}."), ("What was done?", f"{first} {done}."),
                                   ("Which machine is it?", f"The {machine}.")])
    return chat(f"{text}\n{question}", answer)


def town_story(rng):
    """A meeting, an accident or animals, told at length."""
    a, b = person(rng), person(rng)
    first, second = a.split(" ")[0], b.split(" ")[0]
    kind = rng.randrange(4)
    if kind == 0:
        yes, no = rng.sample(DECISIONS, 2)
        text = (f"The {rng.choice(GROUPS)} met on {rng.choice(WEEKDAYS)}. {a} was in the chair. {first} wanted to {yes}, and {b} wanted to {no}. "
                f"{rng.choice(['Most people liked the plan of ' + first, 'In the end they agreed with ' + second])}. "
                f"{second} will {rng.choice(TASKS)} before {rng.choice(WEEKDAYS)}.")
    elif kind == 1:
        what, why = rng.choice(INCIDENTS)
        hurt = rng.choice(["Nobody was hurt.", "One person was hurt.", "Two people were hurt.", "Three people were hurt."])
        text = f"There was a {what} at {place(rng)} on {rng.choice(WEEKDAYS)}. {a} saw it first and called {b}. {rng.choice(['It was caused by', 'The cause was', 'It came from'])} {why}. {hurt}"
    elif kind == 2:
        animal, now, before = rng.choice(SPECIES), rng.randint(3, 99), rng.randint(3, 99)
        text = (f"{a} likes {animal}. Last year there were {before} {animal} at {rng.choice(PLACE_NAMES)}. This year {first} saw {now}. "
                f"{'That is more.' if now > before else 'That is fewer.' if now < before else 'That is the same.'} {b} was there too.")
    else:
        goods, number_due = rng.choice(GOODS_COUNTED), rng.randint(5, 200)
        came = rng.randint(1, number_due)
        text = (f"{place(rng)} had ordered {number_due} {goods}. {a} drove the truck and {b} counted. {came} came. "
                + ("So all of them were there." if came == number_due else f"So some were missing. They came on {rng.choice(WEEKDAYS)}."))
    return text.replace("a oil", "an oil")


def compare(rng):
    """Which of two numbers is larger."""
    animal = rng.choice(SPECIES + GOODS_COUNTED)
    low = rng.randint(1, 98)
    high = low + rng.choice([1, rng.randint(1, 5), rng.randint(1, 40)])
    now, before = rng.sample([low, high], 2)
    keys = rng.choice([("This year", "Last year"), ("Now", "Before"), ("Count", "Year before"), ("Seen", "A year ago"), ("Number now", "Earlier count"), ("Arrived", "Ordered")])
    lines = [f"{keys[0]}: {now}", f"{keys[1]}: {before}"]
    rng.shuffle(lines)
    return chat(f"{animal}\n{lines[0]}\n{lines[1]}\n{rng.choice(['More or fewer?', 'Is it more or fewer?'])}", "More." if now > before else "Fewer.")


def word(rng):
    """Anything that has a name: a person, a place, a thing, a number, or nothing that exists."""
    return rng.choice([person, place, number, lambda r: r.choice(DEVICES + GOODS), lambda r: made_up(r, r.choice([1, 2, 3])), lambda r: r.choice(SPECIES), lambda r: r.choice(TASKS)])(rng)


def repeat(rng):
    """Copying: a sentence, a list, or one entry of a list."""
    kind = rng.randrange(4)
    if kind == 0:
        text = letter(rng, rng.choice(TOPICS), {"product": rng.choice(DEVICES)})
        return chat(f"Say after me: {text}", text)
    names = [word(rng) for _ in range(rng.randint(3, 9))]
    if kind < 3:
        return chat("Say after me: " + ", ".join(names), ", ".join(names))
    names = names[:5]
    at = rng.randrange(len(names))
    order = ["first", "second", "third", "fourth", "fifth"]
    which = "last" if at == len(names) - 1 and rng.random() < 0.5 else order[at]
    return chat(f"{', '.join(names)}. Which is the {which}?", f"{names[at]}.")


def lookup(rng):
    """A list of pairs, some of which are asked for again, in another order."""
    pairs = {sentence(word(rng)): word(rng) for _ in range(rng.randint(3, 7))}
    lines = [f"{key}: {value}" for key, value in pairs.items()]
    turns = []
    for key in rng.sample(sorted(pairs), rng.randint(2, len(pairs))):
        turns += [f"{key}:", f"{pairs[key]}"]
    turns[0] = "\n".join(lines) + "\n" + turns[0]
    return chat(*turns)


def day_story(rng):
    """An everyday story in which the same people and things come back."""
    a, b = person(rng), person(rng)
    x, y = a.split(" ")[0], b.split(" ")[0]
    thing, colour, where = rng.choice(DEVICES + GOODS), rng.choice(LEXICON["colour"]), place(rng)
    lines = [
        f"{a} [has|bought|was given|found] a {colour} {thing}.", f"[One day|On {rng.choice(WEEKDAYS)}|In {rng.choice(MONTHS)}] {x} went to {where}.",
        f"[There|At the door|In the street] {x} met {b}.", f"{y} [liked|wanted|asked about] the {thing}.", f"\"[May I have it|Is it yours|Where did you get it]?\" asked {y}.",
        f"\"[No|Yes|Perhaps], [it was a present|it is old|I need it]\", said {x}.", f"Then {x} and {y} [went home|had coffee|talked about the weather|looked for {rng.choice(SPECIES)}].",
    ]
    text = " ".join(expand(line, rng, LEXICON) for line in lines)
    if rng.random() < 0.5:
        return text
    question, answer = rng.choice([("Who has it?", f"{a}."), ("Whom did " + x + " meet?", f"{b}."), (f"What colour is the {thing}?", f"{sentence(colour)}."), ("Where did they meet?", f"At {where}."),
                                   ("What is it?", f"A {thing}.".replace("A a", "An a").replace("A e", "An e").replace("A i", "An i"))])
    return chat(f"{text}\n{question}", answer)


MIX = [(shop_letter, 46), (shop_facts, 3), (shop_story, 6), (record, 22), (workshop_story, 5), (town_story, 5), (compare, 3), (repeat, 8), (lookup, 8), (day_story, 4)]


def main(path, documents):
    """Writes the corpus."""
    rng = generator(SEED)
    kinds, weights = zip(*MIX)
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for _ in range(documents):
            out.write(json.dumps({"text": rng.choices(kinds, weights)[0](rng)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else DOCUMENTS)

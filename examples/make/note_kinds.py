"""The six kinds of report in the summarisation data: what each holds, how its lines may read, and its summary.

A kind is a function `(rng, part, names) -> Report`. The facts are drawn first; lines and summary are then both written
from the facts, so the summary is always right. What makes it a task: the lines come in any order among lines that do not matter, the
same fact is written in several ways, and some of what the summary says must be inferred (a reading outside its
range, how many are missing, more or fewer than last year) rather than copied.
"""

from dataclasses import dataclass

from grammar import expand, held_out
from lexicon import FIRST_NAMES, LAST_NAMES, LEXICON, MONTHS, PLACE_KINDS, PLACE_NAMES, WEEKDAYS


@dataclass
class Report:
    """`title`: first line. `facts`: lines that matter, in any order. `summary`: one sentence."""

    title: str
    facts: list
    summary: str


class Names:
    """Draws people, places and dates of one split: first names and place names of the others never occur."""

    def __init__(self, rng, part):
        self.rng = rng
        self.firsts, self.lasts = held_out(FIRST_NAMES, part), held_out(LAST_NAMES, part)
        self.places = held_out(PLACE_NAMES, part)
        self.day = f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
        self.weekday = rng.choice(WEEKDAYS)

    def people(self, count):
        """`count` full names without a repeated first name."""
        return [f"{first} {self.rng.choice(self.lasts)}" for first in self.rng.sample(self.firsts, count)]

    def place(self):
        """A place such as `Mill Lane bakery`."""
        return f"{self.rng.choice(self.places)} {self.rng.choice(PLACE_KINDS)}"


def written(rng, part, templates, **facts):
    """One of the split's ways to write a line. Test lines may use every way, so some of them are new to the model."""
    usable = templates if part != "train" else [t for i, t in enumerate(templates) if i % 4 != 3]
    return expand(rng.choice(usable), rng, LEXICON, facts)


MACHINES = """main pump|lift|boiler|conveyor belt|big oven|air compressor|cooling unit|back-up generator|water heater|sliding door
packing machine|fork lift|ventilation fan|dish washer|fire alarm|control panel|hoist|bottle filler""".replace("\n", "|").split("|")

# (what was seen, what it was due to, what was done)
FAULTS = [
    ("leaked", "a worn seal", "replaced the seal"), ("leaked", "a loose pipe", "tightened the pipe"),
    ("was too loud", "a dry bearing", "greased the bearing"), ("was too loud", "a loose cover", "fixed the cover"),
    ("did not start", "a blown fuse", "changed the fuse"), ("did not start", "an empty battery", "charged the battery"),
    ("did not start", "a torn cable", "replaced the cable"), ("overheated", "a blocked filter", "cleaned the filter"),
    ("overheated", "a lack of oil", "filled up the oil"), ("stopped again and again", "a faulty sensor", "swapped the sensor"),
    ("stopped again and again", "a slipping belt", "tightened the belt"), ("ran too slowly", "an old motor", "changed the motor"),
    ("ran too slowly", "a wrong setting", "corrected the setting"), ("shook badly", "a bent shaft", "straightened the shaft"),
    ("shook badly", "a missing screw", "replaced the screw"), ("smelled of burning", "a scorched wire", "replaced the wire"),
]

PARTS = ["motor", "valve", "filter", "fan", "switch", "gasket", "display", "pump wheel", "chain", "sensor", "hose", "bearing"]


def repair_visit(rng, part, names):
    """A mechanic went to a machine: the fault, its cause, what was done, how it ended."""
    (person,), place, machine = names.people(1), names.place(), rng.choice(MACHINES)
    seen, cause, done = rng.choice(FAULTS)
    spare = rng.choice(PARTS)
    facts = [
        written(rng, part, ["Place: {v}", "Site: {v}", "Where: {v}", "Location: {v}"], v=place),
        written(rng, part, ["Mechanic: {v}", "Visit by {v}", "Engineer: {v}", "Carried out by: {v}"], v=person),
        written(rng, part, ["Machine: {m}. It {s}.", "Customer says the {m} {s}", "Reported: the {m} {s}", "Problem: {m} {s}"],
                m=machine, s=seen),
        written(rng, part, ["Cause: {v}", "Found {v}", "It was due to {v}", "Reason: {v}"], v=cause),
        written(rng, part, ["Work done: {v}", "Did: {v}", "Action: {v}", "What we did: {v}"], v=done),
    ]
    head = f"{person} {done} of the {machine} at {place}"
    ending = rng.randrange(3)
    if ending == 0:
        facts.append(written(rng, part, ["Test run fine", "Result: runs again", "All good after the test", "Works as it should"]))
        summary = f"{head}, and it runs again."
    elif ending == 1:
        facts.append(written(rng, part, ["To order: new {v}", "Still needs a new {v}", "Part needed: {v}", "Next: order a {v}"], v=spare))
        summary = f"{head}, but a new {spare} is still needed."
    else:
        facts.append(written(rng, part, ["Not safe yet, switched off", "Result: still faulty, shut down", "Had to leave it switched off",
                                         "Result: out of service"]))
        summary = f"{head}, but it is still out of service."
    return Report(rng.choice(["Repair report", "Service visit", "Work sheet"]), facts, summary)


GROUPS = ["garden club", "town council", "parents' board", "sports club", "choir", "library board", "safety team", "theatre group",
          "fire brigade", "tenants' board", "market team", "youth centre"]
DECISIONS = ["buy a new projector", "repaint the hall", "plant forty trees", "raise the yearly fee", "open on Sundays", "hire a second trainer",
             "move the meeting to the town hall", "print a new leaflet", "hold a summer party", "repair the roof", "invite the press",
             "sell the old van", "close the car park", "start a reading group", "lower the entry price", "rent a larger room"]
TASKS = ["ask for three offers", "write to the mayor", "find a date", "make a list of helpers", "check the budget", "book the room",
         "call the printer", "draw up a plan", "order the material", "talk to the neighbours"]


def meeting(rng, part, names):
    """A group met: one decision was taken, one postponed, and somebody has something to do until a day."""
    chair, doer, *guests = names.people(4)
    group, (decided, dropped) = rng.choice(GROUPS), rng.sample(DECISIONS, 2)
    task, until = rng.choice(TASKS), rng.choice(WEEKDAYS)
    facts = [
        written(rng, part, ["Group: {v}", "Meeting of the {v}", "Who met: {v}", "Body: {v}"], v=group),
        written(rng, part, ["Chair: {v}", "Led by {v}", "In the chair: {v}", "Meeting run by {v}"], v=chair),
        written(rng, part, ["Present: {v}", "Also there: {v}", "Guests: {v}", "With: {v}"], v=", ".join(guests)),
        written(rng, part, ["Decided: {v}", "Agreed to {v}", "Vote passed: {v}", "Yes to: {v}"], v=decided),
        written(rng, part, ["Put off: {v}", "No vote on: {v}", "Rejected: {v}", "Not now: {v}"], v=dropped),
        written(rng, part, ["Task: {d} to {t} until {u}", "{d} will {t} by {u}", "To do for {d}: {t}, {u} at the latest",
                            "{d} promised to {t} before {u}"], d=doer, t=task, u=until),
    ]
    summary = f"The {group} decided to {decided}, and {doer} will {task} by {until}."
    return Report(rng.choice(["Minutes", "Meeting notes", "Protocol"]), facts, summary)


# quantity, unit, lowest and highest that are in order
READINGS = [("temperature", "degrees", 18, 25), ("pressure", "bar", 3, 6), ("oil level", "cm", 20, 40), ("water level", "cm", 50, 80),
            ("air flow", "percent", 60, 90), ("noise", "decibels", 30, 55), ("moisture", "percent", 35, 55), ("voltage", "volts", 220, 240)]


def inspection(rng, part, names):
    """Somebody read four instruments; at most one was outside its range, which the line gives but does not judge."""
    (person,), place = names.people(1), names.place()
    chosen = rng.sample(READINGS, 4)
    wrong = rng.choice([None, *chosen, *chosen])
    facts = [
        written(rng, part, ["Place: {v}", "Site: {v}", "Round at {v}", "Location: {v}"], v=place),
        written(rng, part, ["Inspector: {v}", "Checked by {v}", "Read by: {v}", "On duty: {v}"], v=person),
    ]
    verdict = "found everything in order"
    for reading in chosen:
        name, unit, low, high = reading
        value, note = rng.randint(low, high), rng.choice(["ok", "fine", "in range", "good"])
        if reading is wrong:
            over = rng.random() < 0.5
            value = high + rng.randint(1, 2 + high // 8) if over else max(0, low - rng.randint(1, 2 + low // 8))
            note = rng.choice(["above the limit", "more than allowed"] if over else ["below the limit", "less than needed"])
            verdict = f"found the {name} too {'high' if over else 'low'}"
        facts.append(written(rng, part, ["{n}: {x} {u}, {k}", "{n} {x} {u} ({k})", "{n} at {x} {u}, {k}", "{n} = {x} {u}, {k}"],
                             n=name, x=value, u=unit, k=note))
    return Report(rng.choice(["Inspection", "Daily check", "Control round"]), facts, f"{person} {verdict} at {place}.")


GOODS_COUNTED = ["chairs", "sacks of flour", "boxes of tiles", "crates of apples", "bricks", "bottles of juice", "rolls of cloth", "lamps",
                 "bags of cement", "books", "tyres", "wooden boards", "blankets", "cans of paint", "window panes", "seedlings"]


def stock(rng, part, names):
    """Goods came in: all of them, or some are missing and may follow on a day."""
    place, goods, follow = names.place(), rng.choice(GOODS_COUNTED), rng.choice(WEEKDAYS)
    ordered = rng.choice([12, 20, 24, 30, 36, 40, 48, 50, 60, 72, 80, 90, 120, 150, 200])
    missing = rng.choice([0, 0, rng.randint(1, ordered // 3)])
    (person,) = names.people(1)
    facts = [
        written(rng, part, ["Delivered to: {v}", "For: {v}", "Unloaded at {v}", "Receiver: {v}"], v=place),
        written(rng, part, ["Signed by {v}", "Driver: {v}", "Taken in by {v}", "Counted by: {v}"], v=person),
        written(rng, part, ["Ordered: {n} {g}", "On the list: {n} {g}", "Expected {n} {g}", "Due: {n} {g}"], n=ordered, g=goods),
    ]
    if missing == 0:
        facts.append(written(rng, part, ["Arrived: {n}", "Counted {n}", "Received: {n}", "Came in: {n}"], n=ordered))
        summary = f"All {ordered} {goods} arrived at {place}."
    else:
        facts.append(written(rng, part, ["Arrived: {n}", "Counted {n}", "Received: {n}", "Came in: {n}"], n=ordered - missing))
        facts.append(written(rng, part, ["Missing ones follow on {d}", "Rest on {d}", "Second van on {d}", "The others come {d}"], d=follow))
        summary = f"Only {ordered - missing} of {ordered} {goods} arrived at {place}, and the rest will come on {follow}."
    return Report(rng.choice(["Goods in", "Delivery record", "Stock list"]), facts, summary)


INCIDENTS = [("fire", "a candle that was left burning"), ("fire", "an old heater"), ("flood", "a burst pipe"), ("flood", "an open tap"),
             ("power cut", "a storm"), ("power cut", "a digger that hit a cable"), ("break-in", "an open window"), ("gas leak", "a cracked valve"),
             ("fall of a shelf", "too much weight"), ("traffic jam", "a truck that lost its load"), ("oil spill", "a leaking drum"),
             ("false alarm", "a steaming kettle")]


def incident(rng, part, names):
    """Something happened somewhere: when, why, and whether anybody was hurt."""
    place, (what, why) = names.place(), rng.choice(INCIDENTS)
    (person,) = names.people(1)
    hurt = rng.choice([0, 0, 1, 2, 3])
    facts = [
        written(rng, part, ["Where: {v}", "Place: {v}", "Scene: {v}", "At: {v}"], v=place),
        written(rng, part, ["What: {v}", "Kind: {v}", "Event: {v}", "Incident: {v}"], v=what),
        written(rng, part, ["Cause: {v}", "Started by {v}", "Reason: {v}", "Because of {v}"], v=why),
        written(rng, part, ["Reported by {v}", "Caller: {v}", "Witness: {v}", "Seen by {v}"], v=person),
        written(rng, part, ["Injured: {n}", "People hurt: {n}", "Hurt: {n}", "Taken to hospital: {n}"], n=hurt or "none"),
    ]
    harm = ["and nobody was hurt", "and one person was hurt", "and two people were hurt", "and three people were hurt"][hurt]
    article = "An" if what[0] in "aeiou" else "A"
    return Report(rng.choice(["Incident", "Duty log", "Emergency report"]), facts,
                  f"{article} {what} at {place} was caused by {why}, {harm}.")


SPECIES = ["storks", "hares", "swallows", "bats", "frogs", "owls", "bees", "butterflies", "herons", "foxes", "otters", "cranes", "toads", "deer",
           "seals", "geese"]


def count(rng, part, names):
    """Animals were counted; whether there are more or fewer than last year has to be read from two numbers."""
    (person,), place, animal = names.people(1), rng.choice(names.places), rng.choice(SPECIES)
    now = rng.randint(4, 95)
    before = max(1, now + rng.choice([-1, 1]) * rng.randint(1, 3 + now // 2))
    before = now + 1 if before == now else before
    facts = [
        written(rng, part, ["Area: {v}", "Place: {v}", "Where: {v}", "Reserve: {v}"], v=place),
        written(rng, part, ["Observer: {v}", "Counted by {v}", "Ranger: {v}", "Watcher: {v}"], v=person),
        written(rng, part, ["Species: {v}", "Looked for {v}", "Animals: {v}", "Kind: {v}"], v=animal),
        written(rng, part, ["This year: {v}", "Seen: {v}", "Number now: {v}", "Count: {v}"], v=now),
        written(rng, part, ["Last year: {v}", "Year before: {v}", "Earlier count: {v}", "A year ago: {v}"], v=before),
    ]
    trend = "more" if now > before else "fewer"
    return Report(rng.choice(["Field notes", "Wildlife count", "Count sheet"]), facts,
                  f"{person} counted {now} {animal} at {place}, {trend} than last year.")


KINDS = [repair_visit, meeting, inspection, stock, incident, count]

# Lines that the summary leaves out.
DISTRACTIONS = [
    "Weather: [sunny|rain|fog|cloudy|windy|snow]", "Travel: {n} km", "Parking behind the {kind}", "File: {n}{digit}{digit}", "Phone {n}{digit} {n}{n}",
    "Coffee with the [caretaker|cook|manager|guard]", "Room {n}", "Lunch at [noon|one]", "Keys are with {person}", "Date: {date}", "Start {hour}:{minute}",
    "End {hour}:{minute}", "Copy to {person}", "Photos: {n}", "Form {digit}{digit}-{digit}", "Next visit on {weekday}", "Stamp: [yes|no]",
    "Road works on the way", "Page 1 of {digit}", "Notes by {person}", "Badge {digit}{digit}{digit}", "[Windows|Lights|Heating] checked",
    "Filed on {weekday}", "Hand-over to {person}",
]


def distractions(rng, part, names, count):
    """`count` lines that do not matter, with names that do not matter either."""
    lines = []
    for template in rng.sample(held_out(DISTRACTIONS, "train") if part == "train" else DISTRACTIONS, count):
        (person,) = names.people(1)
        lines.append(expand(template, rng, LEXICON, {
            "n": rng.randint(2, 60), "person": person, "date": names.day, "hour": rng.randint(7, 18),
            "minute": rng.choice(["00", "10", "15", "20", "30", "40", "45"]), "kind": rng.choice(PLACE_KINDS),
        }))
    return lines

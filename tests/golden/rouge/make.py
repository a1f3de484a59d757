"""Makes cases.json with the package rouge_score, and classification.json with scikit-learn.

    pip install rouge_score==0.1.2 scikit-learn==1.9.1 && python make.py
"""

import json
import pathlib
import random
import warnings
from importlib.metadata import version

from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score

assert version("rouge_score") == "0.1.2" and version("scikit-learn") == "1.9.1"
here = pathlib.Path(__file__).parent
warnings.simplefilter("ignore")

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat sat on the mat", "the cat was on the mat"),
    ("the cat sat on the mat", "on the mat the cat sat"),
    ("the cat sat on the mat", "a dog barked"),
    ("", ""),
    ("", "something"),
    ("something", ""),
    ("   \n\t ", "something"),
    ("...", "!!!"),
    ("word", "word"),
    ("word", "Word."),
    ("WORD word WoRd", "word"),
    ("word", "word word word"),
    ("a a a b", "a b b b"),
    ("a b a b a b", "b a b a b a"),
    ("one two three four five", "five four three two one"),
    ("state-of-the-art", "state of the art"),
    ("it's John's dog", "its johns dog"),
    ("don't", "don t"),
    ("3.14 is pi", "3 14 is pi"),
    ("1,000,000 dollars", "1000000 dollars"),
    ("snake_case_name", "snake case name"),
    ("e-mail: a.b@c.org", "email a b c org"),
    ("line one\nline two\nline three", "line one line three"),
    ("tabs\tand\u00a0spaces\u2003here", "tabs and spaces here"),
    ("café au lait", "cafe au lait"),
    ("naïve façade", "na ve fa ade"),
    ("Zürich ist schön", "zürich IST schön"),
    ("ÉCOLE NORMALE", "école normale"),
    ("İstanbul", "i stanbul"),
    ("\u212a is kelvin", "k is kelvin"),
    ("日本語の要約", "日本語の要約"),
    ("日本 2024 report", "2024 report"),
    ("Привет мир", "Привет мир"),
    ("emoji 🙂 here", "emoji here 🙃"),
    ("cafe\u0301 noir", "café noir"),
    ("ﬁne", "fine"),
    ("\u00bd cup", "1 2 cup"),
    ("the quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."),
    ("police killed the gunman", "police kill the gunman"),
    ("police killed the gunman", "the gunman kill police"),
    ("running runs ran", "run run run"),
    ("x " * 300, "x " * 120),
]
rng = random.Random(1)
for _ in range(6):
    words = [f"w{i}" for i in range(12)]
    PAIRS.append((" ".join(rng.choices(words, k=rng.randint(5, 60))), " ".join(rng.choices(words, k=rng.randint(5, 60)))))

scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
cases = []
for reference, candidate in PAIRS:
    scores = {name: float(score.fmeasure) for name, score in scorer.score(reference, candidate).items()}
    cases.append({"reference": reference, "candidate": candidate, **scores})
(here / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")

LISTS = [
    ([0, 1, 2], [0, 1, 2]),
    ([0, 1, 2], [1, 2, 0]),
    ([0, 0, 1, 1], [0, 0, 0, 0]),
    ([0, 0, 0, 0], [0, 0, 0, 0]),
    ([0, 0, 0, 0], [1, 1, 1, 1]),
    ([0, 1], [2, 3]),
    ([7, 7, 9], [7, 9, 9]),
    ([0, 2, 2], [2, 2, 2]),
]
for classes in (2, 3, 5, 10):
    LISTS.append(([rng.randrange(classes) for _ in range(40)], [rng.randrange(classes) for _ in range(40)]))
cases = []
for truth, predicted in LISTS:
    f1 = f1_score(truth, predicted, average="macro", zero_division=0)
    cases.append({"truth": truth, "predicted": predicted, "accuracy": accuracy_score(truth, predicted), "macro_f1": f1})
(here / "classification.json").write_text(json.dumps(cases) + "\n")

"""Opens a comparison's report in a headless Chromium and tries it as a reader would.

    python3 tests/page/check.py REPORT.html [--pictures DIR]

It draws, asks for nothing, complains of nothing; sorts by a click and by the keyboard; tells more under the pointer and at the keyboard;
has a light and a dark face, room on a phone, and a form on paper. With --pictures, PNGs of it are left to be looked at.
"""

import argparse
import base64
import json
import re
from pathlib import Path

from chromium import Browser


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def names(page):
    return texts(page, "#results tbody tr:not(.base) th")


def middle(page, selector):
    """The middle of an element, after it was brought into view."""
    page.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
    page.settle()
    return page.run(f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] }})()")


def tip(page):
    return page.run("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")


def luminance(page):
    return sum(map(int, re.findall(r"\d+", page.run("getComputedStyle(document.body).backgroundColor"))[:3]))


def check(page, data, pictures):
    page.scheme("light")
    page.size(1240, 900)
    rows = data["methods"]

    assert texts(page, "h1") == [data["title"]], texts(page, "h1")
    assert [row["name"] for row in rows] == [re.sub("baseline$", "", name) for name in names(page)], names(page)
    said = texts(page, ".said li")
    assert sorted(said) == sorted(statement["text"] for statement in data["summary"]), said
    assert page.run("document.querySelectorAll('#results tbody tr').length") == len(rows) + 1
    # The untouched model has its score beside the methods, also where none of them has one.
    base = data["base"]["scores"].get(data["setup"]["score"])
    if base is not None and base < 10:
        assert f"{base:.4f}" in texts(page, "#results tr.base td")[0], texts(page, "#results tr.base td")
    for row in rows:
        if row["status"] != "ok":
            assert any(row["reason"] in text for text in texts(page, "td.reason")), row["reason"]
    assert page.run("document.querySelectorAll('svg').length") >= (3 if any(row["status"] == "ok" for row in rows) else 0)
    assert page.run("[...document.querySelectorAll('svg *')].every(e => ![...e.attributes].some(a => /NaN|undefined|Infinity/.test(a.value)))")
    assert not re.search(r"NaN|undefined|\[object", page.run("document.querySelector('main').innerText"))

    # By a click, best first; again, the other way round; with the keyboard, by name.
    scored = [row for row in rows if row["status"] == "ok"]
    by_score = [row["name"] for row in sorted(scored, key=lambda row: -row["score"]["mean"])]
    if scored:
        page.run("document.querySelectorAll('#results thead button')[1].click()")
        first = re.sub("baseline$", "", names(page)[0])
        assert rows_score(rows, first) == rows_score(rows, by_score[0]), names(page)
        assert page.run("document.querySelectorAll('#results thead th')[1].getAttribute('aria-sort')") == "descending"
        page.run("document.querySelectorAll('#results thead button')[1].click()")
        first = re.sub("baseline$", "", names(page)[0])
        assert rows_score(rows, first) == rows_score(rows, by_score[-1]), names(page)
        page.run("document.querySelectorAll('#results thead button')[0].focus()")
        page.key("Enter", 13)
        plain = [re.sub("baseline$", "", name) for name in names(page)][: len(scored)]
        assert plain == sorted(plain, key=str.lower), plain

    # More is told under the pointer, and at the keyboard; Escape takes it away.
    if page.run("document.querySelector('.mark') !== null"):
        page.move(*middle(page, ".mark circle:last-of-type"))
        assert tip(page) and letters(data["setup"]["score"]) in letters(tip(page)), tip(page)
        page.move(2, 2)
        assert tip(page) is None
        page.run("document.querySelector('.mark').focus()")
        assert tip(page), "no tooltip at the keyboard"
        page.key("Escape", 27)
        assert tip(page) is None
    if page.run("document.querySelector('.legend button') !== null"):
        before = page.run("document.querySelectorAll('path.line').length")
        page.run("document.querySelector('.legend button').click()")
        assert page.run("document.querySelectorAll('path.line').length") == before - 1
        page.run("document.querySelector('.legend button').click()")
        page.run("document.querySelectorAll('.switch button')[1].click()")
        assert "seconds of training" in page.run("document.querySelector('path.line').closest('svg').textContent")
        page.run("document.querySelectorAll('.switch button')[0].click()")
    page.move(2, 2)
    page.run("document.activeElement.blur(); scrollTo(0, 0)")

    if pictures:
        page.picture(pictures / "light.png")
    light = luminance(page)
    page.scheme("dark")
    assert light > 700 and luminance(page) < 150, (light, luminance(page))
    if pictures:
        page.picture(pictures / "dark.png")
    page.scheme("light")
    page.size(390, 844)
    assert page.run("document.documentElement.scrollWidth") <= 390, "the page is wider than a phone"
    if pictures:
        page.picture(pictures / "phone.png")
    page.size(1240, 900)
    paper = base64.b64decode(page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)["data"])
    assert paper.startswith(b"%PDF") and len(paper) > 20_000
    if pictures:
        page.scheme("light", "print")
        page.size(794, 1123)
        page.picture(pictures / "print.png")
        (pictures / "print.pdf").write_bytes(paper)

    # Names and configurations are text, whatever they look like.
    assert page.run("window.hacked === undefined")
    assert page.complaints() == [], page.complaints()


def letters(text):
    """The text's letters and digits: `rouge_l` is shown as ROUGE-L."""
    return re.sub("[^a-z0-9]", "", text.lower())


def rows_score(rows, name):
    return next(row["score"]["mean"] for row in rows if row["name"] == name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("report", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    data = json.loads(arguments.report.with_suffix(".json").read_text())
    with Browser() as browser:
        check(browser.open(arguments.report), data, arguments.pictures)
    print(f"{arguments.report}: draws, sorts, tells, prints; {len(data['methods'])} methods")


if __name__ == "__main__":
    main()

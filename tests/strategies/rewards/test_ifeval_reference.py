"""The 25 checks against verdicts of the reference implementation, stored with its versions."""

import json
from pathlib import Path

from abduce.strategies.rewards.ifeval import INSTRUCTIONS, check, ok

STORED = json.loads(Path(__file__).with_name("ifeval_reference.json").read_text(encoding="utf-8"))
ROWS = [
    (case["id"], case["kwargs"], STORED["texts"][int(i)], verdict == "1", loose)
    for case in STORED["cases"]
    for i, both in case["verdicts"].items()
    for verdict, loose in zip(both, (False, True), strict=True)
]


def known_to_differ(id, kwargs, text):
    """Punkt counts a mark of emphasis that ends a text as one more sentence. A language that only
    `langdetect` can tell counts as right without it, as in the reference where it fails."""
    if id == "length_constraints:number_sentences":
        return text.rstrip().endswith((".*", ".**"))
    return not check(id, kwargs, text).certain


def test_they_agree_strictly_and_loosely():
    compared = [row for row in ROWS if not known_to_differ(*row[:3])]
    wrong = [row for row in compared if ok(*row[:3], loose=row[4]) is not row[3]]
    assert not wrong
    assert len(compared) > 0.93 * len(ROWS)


def test_every_id_is_held_against_ten_texts_and_an_empty_one_among_them():
    texts = {id: {text for other, _, text, *_ in ROWS if other == id} for id in INSTRUCTIONS}
    assert all(len(each) >= 10 and "" in each for each in texts.values())
    assert not any(verdict for *_, text, verdict, _ in ROWS if not text.strip())

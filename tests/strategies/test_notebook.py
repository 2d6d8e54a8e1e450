import xml.etree.ElementTree as ElementTree

from abduce.serving.flow import Usage
from abduce.strategies.base import Candidate, Result
from abduce.strategies.notebook import MOST

ODD = "<script>alert(1)</script> & more"


def shown(result):
    """The text of all cells and the rest, which parses as markup; a script would be an element."""
    page = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    assert not page.findall(".//script")
    return page


def test_answer_use_and_candidates_are_shown_and_what_a_model_wrote_is_text():
    pool = (Candidate("5", ODD, score=0.25), Candidate(None, "x" * 1000, weight=0.5))
    page = shown(Result(ODD, ODD, pool, usage=Usage(input_tokens=1200, output_tokens=34, calls=2)))
    assert page.findtext(".//b") == ODD
    assert "1,234 tokens; 2 calls" in page.find("p").find("b").tail
    first, second = ([cell.text or "" for cell in row] for row in page.findall(".//tbody/tr"))
    assert first == ["5", "0.250", "", ODD]
    assert second[:3] == ["", "", "0.500"] and len(second[3]) < 400


def test_what_is_missing_is_told_and_many_are_cut():
    result = Result(None, "", (Candidate("1", "a"),) * (MOST + 3), False, diagnostics={"stopped": "<budget>"})
    page = shown(result)
    assert page.findtext(".//b") == "no answer" and "incomplete: <budget>" in page.find("p").find("b").tail
    assert len(page.findall(".//tbody/tr")) == MOST and "3 more" in "".join(page.itertext())
    assert "table" not in Result("1", "1")._repr_html_()

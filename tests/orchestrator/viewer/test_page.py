"""The page as a file: self-contained, and nothing of a run is markup in it."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest

from abduce.orchestrator.viewer import picture
from abduce.orchestrator.viewer.page import live_page, whole_page
from abduce.serving.scripted import Scripted

HOSTILE = (
    "</script><script>owned = 1</script><img src=x onerror='owned = 1'> <!-- {{script}} {{data}} \u202e\u0007"
)


class Elements(HTMLParser):
    """The elements of a page, and what stands in its scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self._in = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._in = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in:
            self.texts.append((*self._in, data))

    def text(self, tag, kind=None):
        [text] = [text for name, attrs, text in self.texts if name == tag and attrs.get("type") == kind]
        return text


@pytest.fixture(scope="module")
def hostile(run_of):
    model = Scripted([HOSTILE, f"{HOSTILE} again"], rate=lambda request: 0.5)
    return run_of("best_of_n", n=2, question=HOSTILE, model=model)


def test_what_a_run_says_cannot_become_an_element(run_of, hostile):
    plain, odd = (
        Elements(whole_page([picture.load(run.trace)])) for run in (run_of("best_of_n", n=2), hostile)
    )
    assert odd.tags == plain.tags
    assert odd.attributes == plain.attributes
    data = json.loads(odd.text("script", "application/json"))
    assert data["runs"][0]["run"]["question"] == HOSTILE
    assert any(HOSTILE in node[2] for node in data["runs"][0]["nodes"])


@pytest.mark.parametrize("page", ["whole", "live"])
def test_the_policy_allows_this_script_and_this_style_and_nothing_else(run_of, page):
    text = whole_page([picture.load(run_of("best_of_n", n=2).trace)]) if page == "whole" else live_page()
    elements = Elements(text)
    policy = dict(elements.attributes)["content"]
    [policy] = [value for _, value in elements.attributes if value and value.startswith("default-src")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == ("'none'" if page == "whole" else "'self'")
    for directive, part in (("script-src", elements.text("script")), ("style-src", elements.text("style"))):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert rules[directive] == f"'sha256-{digest}'"


def test_the_page_names_no_address_and_no_handler(run_of):
    page = whole_page([picture.load(run_of("best_of_n", n=2).trace)])
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) <= {"http://www.w3.org/2000/svg"}
    elements = Elements(page)
    assert not [name for name, _ in elements.attributes if name.startswith("on") or name in ("src", "style")]
    script = elements.text("script")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert way not in script


def test_the_same_run_is_the_same_page(run_of):
    run = run_of("particle_filter")
    assert whole_page([picture.load(run.trace)]) == whole_page([picture.load(run.trace)])

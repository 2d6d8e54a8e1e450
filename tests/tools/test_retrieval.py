import random

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import ToolSpec
from abduce.tools.logistic import Logistic, trained
from abduce.tools.plans import signature
from abduce.tools.retrieval import Example, Index, Retriever, closure

# A catalogue of 48 tools in 12 areas: what an area's main tool does is asked for in words; its other tools
# are needed on the way and never mentioned.
AREAS = {
    "mail": "send an e-mail message letter", "calendar": "arrange a meeting appointment event",
    "contacts": "phone number address of a person", "files": "open a document report file",
    "music": "play a song album artist", "maps": "directions route way distance",
    "weather": "forecast rain temperature umbrella", "shop": "order buy price product",
    "photos": "picture image album camera", "notes": "write down remember memo",
    "bank": "transfer pay money account", "travel": "flight hotel booking ticket",
}  # fmt: skip
TOOLS = [
    ToolSpec(
        f"{area}_{kind}",
        f"{about}: {words if kind == 'main' else 'internal step of the service, see the manual'}. " * 3,
        {"properties": {"what": {"type": "string"}}, "required": ["what"]},
        requires=(f"{area}_login",) if kind == "main" else (),
    )
    for area, words in AREAS.items()
    for kind, about in (("main", "Do it"), ("login", "Open"), ("lookup", "Find"), ("confirm", "Close"))
]
BY_NAME = {tool.name: tool for tool in TOOLS}
FRAMES = [
    "please {} for me",
    "could you {} today",
    "I want to {} now",
    "{} as soon as you can",
    "help me to {}",
]


def question(draw):
    """A question about one or two areas, and the tools that it needs."""
    areas = draw.sample(sorted(AREAS), draw.choice([1, 1, 2]))
    said = " and ".join(" ".join(draw.sample(AREAS[area].split(), 2)) for area in areas)
    tools = {f"{area}_{kind}" for area in areas for kind in ("main", "login", "lookup", "confirm")}
    return draw.choice(FRAMES).format(said), frozenset(tools)


@pytest.mark.parametrize("kind", ["neighbours", "logistic"])
def test_it_finds_what_is_needed_and_little_else(kind):
    """Recall at least 0.98 with at most 30 % of the tools, 40 % of the prompt saved, and better than the
    same number of nearest descriptions, which miss what is needed on the way."""
    draw = random.Random(0)
    examples = [Example(*question(draw)) for _ in range(800)]
    more = {"scorer": trained(tuple(examples)), "threshold": 0.5} if kind == "logistic" else {}
    retriever = Retriever(TOOLS, examples, **more)
    descriptions = Index([f"{tool.name} {tool.description}" for tool in TOOLS])
    recall, by_description, kept, saved = [], [], [], []
    whole = sum(len(signature(tool).split()) for tool in TOOLS)
    for _ in range(200):
        asked, needed = question(draw)
        found = retriever.choose(asked)
        names = {tool.name for tool in found}
        near = {TOOLS[i].name for i, _ in descriptions.nearest(asked, len(found))}
        recall.append(len(names & needed) / len(needed))
        by_description.append(len(near & needed) / len(needed))
        kept.append(len(found) / len(TOOLS))
        saved.append(1 - sum(len(signature(tool).split()) for tool in found) / whole)
        assert closure(names, BY_NAME) == names
    n = len(recall)
    print(kind, sum(recall) / n, sum(kept) / n, sum(saved) / n, sum(by_description) / n)
    assert sum(recall) / n >= 0.98 and sum(kept) / n <= 0.3
    assert sum(saved) / n >= 0.4
    assert sum(recall) > sum(by_description) + 0.2 * n


def test_what_was_learnt_is_the_same_each_time_and_says_nothing_of_words_it_does_not_know():
    draw = random.Random(2)
    examples = [Example(*question(draw)) for _ in range(40)]
    one, other = Logistic(examples), Logistic(examples)
    asked, _ = question(draw)
    assert one(asked) == other(asked) and all(0 <= p <= 1 for p in one(asked).values())
    assert one("xyzzy") == {}
    assert Retriever(TOOLS, examples, scorer=one, threshold=0.5).choose("xyzzy") == TOOLS
    with pytest.raises(UsageError, match="no example"):
        Logistic([Example("x", frozenset())])


def test_words_that_always_come_with_a_tool_speak_for_it():
    examples = [
        Example(f"{w} it {i}", frozenset({t})) for i in range(5) for w, t in (("send", "a"), ("play", "b"))
    ]
    sure = Logistic(examples)("please send that")
    assert sure["a"] > 0.5 > sure["b"]


def test_nothing_found_means_all():
    assert Retriever(TOOLS).choose("anything") == TOOLS
    examples = [Example("play a song", frozenset({"music_main"}))]
    assert Retriever(TOOLS, examples).choose("xyzzy") == TOOLS


def test_what_is_required_is_never_left_out():
    chain = [ToolSpec(f"t{i}", requires=(f"t{i + 1}", "gone") if i < 9 else ("t0",)) for i in range(10)]
    retriever = Retriever(chain, scorer=lambda _: {"t7": 0.9, "unknown": 1.0})
    assert [tool.name for tool in retriever.choose("x")] == [f"t{i}" for i in range(10)]
    assert closure({"t8"}, {t.name: t for t in chain[:9]}) == {"t8"}


def test_widening_only_ever_adds_and_ends_with_all():
    draw = random.Random(1)
    retriever = Retriever(TOOLS, [Example(*question(draw)) for _ in range(60)])
    for _ in range(50):
        asked, _ = question(draw)
        sizes = [{tool.name for tool in retriever.choose(asked, widened=w)} for w in range(4)]
        assert sizes[0] <= sizes[1] <= sizes[2] == sizes[3] == set(BY_NAME)


def test_a_scorer_of_ones_own():
    retriever = Retriever(TOOLS, scorer=lambda asked: {"mail_login": 0.6, "bank_login": 0.4}, threshold=0.5)
    assert [tool.name for tool in retriever.choose("x")] == ["mail_login"]
    assert [tool.name for tool in retriever.choose("x", widened=1)] == ["mail_login", "bank_login"]
    with pytest.raises(UsageError):
        Retriever(TOOLS, threshold=0)


def test_the_examples_shown_need_only_the_tools_there_are():
    mail, bank = frozenset({"mail_main"}), frozenset({"bank_main"})
    examples = [
        Example("send a letter", mail, "1. mail_main('a')"),
        Example("send money", bank, "1. bank_main('a')"),
        Example("send it", mail),
    ]
    retriever = Retriever(TOOLS, examples)
    assert retriever.shown("send a letter", [BY_NAME["mail_main"]], k=1) == examples[:1]
    assert retriever.shown("send a letter", [BY_NAME["mail_main"]], k=2) == examples[:2]
    assert retriever.shown("send", [], k=0) == []

import json
import random

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.serving.flow import ToolResult, ToolSpec
from abduce.tools.dag import critical_path
from abduce.tools.plan_metrics import (
    edit_distance,
    graph,
    parallelism,
    success,
    success_args,
    tool_recall,
)
from abduce.tools.plans import Action, PlanError, PlanReader, read_plan, references, substituted


def spec(name, required=(), **kinds):
    properties = {key: {"type": kind} for key, kind in kinds.items()}
    return ToolSpec(name, f"{name}.", {"properties": properties, "required": list(required)})


TOOLS = [
    spec("search", ["query"], query="string"),
    spec("calculator", ["expression"], expression="string"),
    spec("mail", ["to", "body"], to="array", body="string", urgent="boolean"),
    spec("scale", ["factor"], factor="number", times="integer"),
    spec("note", ["data"], data="object"),
    spec("now"),
]
PLAN = """Thought: I need both populations.
1. search("population of Oslo")
2. search('population of Bergen')
3. calculator("$1 / ${2}")
4. join()<END_OF_PLAN>
5. search("never read")"""


def test_a_plan():
    plan = read_plan(PLAN, TOOLS)
    assert [(a.id, a.tool, a.arguments, a.parents) for a in plan] == [
        (1, "search", {"query": "population of Oslo"}, ()),
        (2, "search", {"query": "population of Bergen"}, ()),
        (3, "calculator", {"expression": "$1 / ${2}"}, (1, 2)),
    ]
    assert plan[0].thought == "I need both populations." and plan[1].thought == ""


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ('1. mail(["a", "b"], "hi", True)', {"to": ["a", "b"], "body": "hi", "urgent": True}),
        ("1. mail(('a',), body='hi')", {"to": ["a"], "body": "hi"}),
        ("1. mail(['x'], 'it\\'s (so)')", {"to": ["x"], "body": "it's (so)"}),
        ("1. scale(2.5, -3)", {"factor": 2.5, "times": -3}),
        ("1. note({'a': [1, None]})", {"data": {"a": [1, None]}}),
        ("1. calculator(2 + 3 * (4))", {"expression": "2 + 3 * (4)"}),  # no literal: the text
        ("1. search(who is it?)", {"query": "who is it?"}),
        ("1. now()", {}),
        ("  1.   now()  # a comment", {}),
    ],
)
def test_arguments(line, arguments):
    [action] = read_plan(line, TOOLS)
    assert action.arguments == arguments


def test_a_reference_may_stand_without_quotes():
    plan = read_plan("1. now()\n2. mail([$1, '$1'], $1)\n3. scale(${1})", TOOLS)
    assert plan[1].arguments == {"to": ["$1", "$1"], "body": "$1"} and plan[1].parents == (1,)
    assert plan[2].arguments == {"factor": "${1}"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1. serch('x')", "there is no tool serch. There are: search"),
        ("1. search('x', 'y')", "takes query, and was given 2"),
        ("1. search()", "needs query too"),
        ("1. search(3)", 'query of search must be "string", not 3'),
        ("1. scale('two')", 'factor of scale must be "number"'),
        ("1. scale(True)", "must be"),
        ("1. mail('a', 'b')", "to of mail must be"),
        ("1. search(quer='x')", "does not take quer"),
        ("1. search('$1')", r"\$1 is no earlier call"),
        ("1. search('$2')\n2. search('x')", r"\$2 is no earlier call"),
        ("2. now()\n2. now()", "at least 3"),
        ("2. now()\n1. now()", "at least 3"),
        ("1. search('costs $5')", "USD 5"),
        ("\n".join(f"{i}. now()" for i in range(1, 40)), "at most 32"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(text, said):
    with pytest.raises(PlanError, match=said):
        read_plan(text, TOOLS)


@given(
    st.lists(st.sampled_from([*PLAN, "$", "(", "\\", "\n", '"', "1. ", "join()", "\x00", "é"]), max_size=60)
)
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_plan_or_an_error_and_has_no_circles(parts):
    reader = PlanReader(TOOLS)
    reader.feed("".join(parts))
    reader.close()
    assert all(parent < action.id for action in reader.actions for parent in action.parents)


@given(st.lists(st.integers(1, 30), max_size=20))
@settings(max_examples=100, deadline=None)
def test_however_a_plan_arrives_it_is_the_same(cuts):
    reader, at, found = PlanReader(TOOLS), 0, []
    for cut in cuts:
        found += reader.feed(PLAN[at : at + cut])
        at += cut
    found += reader.feed(PLAN[at:])
    found += reader.close()
    assert found == reader.actions == read_plan(PLAN, TOOLS)


def test_a_call_is_known_when_its_line_ends_and_a_fragment_is_left_out():
    reader = PlanReader(TOOLS)
    assert reader.feed("1. now()") == []
    assert [a.id for a in reader.feed("\n2. sear")] == [1]
    assert reader.close(whole=False) == [] and reader.finished and not reader.error


def test_calls_of_earlier_plans_may_be_referred_to():
    reader = PlanReader(TOOLS, first=4, known={1, 3})
    assert [a.parents for a in reader.feed("4. search('$1 $3')\n")] == [(1, 3)]
    reader.feed("5. search('$2')\n")  # it failed, or there was none
    assert "$2" in reader.error
    early = PlanReader(TOOLS, first=4)
    early.feed("3. now()\n")
    assert "at least 4" in early.error


# ---------------------------------------------------------------- putting results in


OUTPUTS = {1: ToolResult("one"), 2: ToolResult("[2, 3]", value=[2, 3]), 12: ToolResult("twelve $1 ${2}")}


@pytest.mark.parametrize(
    ("argument", "found"),
    [
        ("$1", "one"),
        ("$12", "twelve $1 ${2}"),  # not `$1` and a 2; and what was put in is text
        ("${1}2", "one2"),
        ("a $1, $12 and ${12}.", "a one, twelve $1 ${2} and twelve $1 ${2}."),
        (["$1", {"k": ["x $2"]}], ["one", {"k": ["x [2, 3]"]}]),
        ("$2", [2, 3]),
        ("${2}", [2, 3]),
        ("$7 and $", "$7 and $"),
        (3.5, 3.5),
    ],
)
def test_results_take_the_place_of_references(argument, found):
    assert substituted(argument, OUTPUTS) == found


@given(st.text(alphabet="$1{}2 a", max_size=12), st.text(alphabet="$1{}2 a", max_size=12))
def test_what_a_tool_returned_is_never_read_as_a_reference(written, returned):
    outputs = {i: ToolResult(returned) for i in range(100)}
    marked = {i: ToolResult("\0") for i in range(100)}
    assert substituted(written, outputs) == substituted(written, marked).replace("\0", returned)


@given(st.recursive(st.text(alphabet="$1{}", max_size=6), lambda inner: st.lists(inner, max_size=3)))
def test_with_all_references_known_none_is_left(value):
    outputs = {i: ToolResult("x") for i in references(value)}
    assert references(substituted(value, outputs)) == ()


# ---------------------------------------------------------------- how good a plan is


def renamed(plan, order):
    """The same plan with its calls written in another order."""
    number = {old.id: new for new, old in enumerate(order, 1)}

    def again(value):
        text = json.dumps(value)
        for old in sorted(number, reverse=True):
            text = text.replace(f"${old}", f"$<{number[old]}>")
        return json.loads(text.replace("<", "").replace(">", ""))

    return [Action(number[a.id], a.tool, again(dict(a.arguments))) for a in order]


def random_plan(draw, n):
    plan = []
    for i in range(1, n + 1):
        parents = [j for j in range(1, i) if draw.random() < 0.35]
        said = " ".join(f"${j}" for j in parents)
        plan.append(Action(i, draw.choice("abc"), {"x": said, "y": draw.choice(["p", "q"])}))
    return plan


def shuffled(draw, plan):
    left, order = list(plan), []
    while left:
        done = {a.id for a in order}
        order.append(left.pop(left.index(draw.choice([a for a in left if set(a.parents) <= done]))))
    return renamed(plan, order)


def test_two_plans_are_the_same_where_networkx_says_so():
    draw, same = random.Random(0), 0
    for trial in range(1000):
        plan = random_plan(draw, draw.randint(1, 6))
        other = shuffled(draw, plan)
        if trial % 2:
            other = random_plan(draw, len(plan))
            other = [Action(a.id, b.tool, a.arguments) for a, b in zip(other, plan, strict=True)]
        expected = networkx.is_isomorphic(
            graph(plan), graph(other), node_match=lambda a, b: a["tool"] == b["tool"]
        )
        assert success(plan, other) == success(other, plan) == expected
        same += expected
    assert 500 <= same < 1000


def test_order_that_does_not_matter_does_not_matter():
    draw = random.Random(1)
    for _ in range(100):
        plan = random_plan(draw, 8)
        assert success(shuffled(draw, plan), plan) and success_args(shuffled(draw, plan), plan)


def test_what_matters():
    plan = read_plan("1. search('a')\n2. search('b')\n3. calculator('$1+$2')", TOOLS)
    swapped = read_plan("1. search('b')\n2. search('A ')\n3. calculator('$2+$1')", TOOLS)
    assert success(swapped, plan) and success_args(swapped, plan)
    constants = read_plan("1. search('c')\n2. search('d')\n3. calculator('$1+$2')", TOOLS)
    assert success(constants, plan) and not success_args(constants, plan)
    for wrong in (
        "1. search('a')\n2. now()\n3. calculator('$1+$2')",  # another tool
        "1. search('a')\n2. search('b')\n3. calculator('$1')",  # an edge less
        "1. search('a')\n2. search('b')\n3. calculator('$1+$2')\n4. now()",  # a call more
        "1. search('a')\n2. search('b $1')\n3. calculator('$1+$2')",  # an edge more
    ):
        other = read_plan(wrong, TOOLS)
        assert not success(other, plan)
    assert edit_distance(plan, plan) == edit_distance(swapped, plan) == 0
    two, apart = (read_plan(f"1. search('a')\n2. search('{b}')", TOOLS) for b in ("$1", "b"))
    assert edit_distance(two, apart) == 1


def test_recall_and_parallelism():
    plan = read_plan("1. search('a')\n2. search('b')\n3. calculator('$1+$2')", TOOLS)
    assert parallelism(plan) == pytest.approx(1.5) and parallelism([]) == 1
    assert tool_recall(plan[:2], plan) == 0.5 and tool_recall([], []) == 1
    assert critical_path({a.id: a.parents for a in plan}) == 2

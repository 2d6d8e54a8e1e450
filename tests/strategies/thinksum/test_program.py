"""Programs: what is wrong with one is told before any call."""

import copy
from dataclasses import replace

import pytest

from abduce.orchestrator.solve import build
from abduce.serving.errors import UsageError
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Task
from abduce.strategies.policy import policy
from abduce.strategies.thinksum import PRESETS, ThinkSum
from abduce.strategies.thinksum.program import Program, Unanswerable
from abduce.strategies.thinksum.think import Workings

GOOD = {
    "read": {"words": "choices"},
    "think": [
        {
            "op": "score",
            "as": "l",
            "over": {"i": "words", "j": "words"},
            "context": "{j},",
            "continuation": " {i}",
        }
    ],
    "sum": {"op": "product", "of": {"op": "both", "of": "l"}, "over": ["j"]},
    "decide": "argmin",
}


def changed(path, value):
    """GOOD with one thing changed; None takes it away."""
    made = copy.deepcopy(GOOD)
    here = made
    for key in path[:-1]:
        here = here[key]
    if value is None:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return made


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_sound(name):
    assert Program.checked(PRESETS[name]).think


def test_there_is_one_for_each_kind_of_task():
    assert len(PRESETS) >= 14  # thirteen and `direct`


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["decide"], "argmaxx", "Did you mean 'argmax'"),
        (["decide"], {"by": "top_k"}, "lacks 'k'"),
        (["decide"], {"by": "top_k", "k": "l"}, "k is a number"),
        (["decide"], {"by": "threshold", "at": "x", "above": "a", "below": "b"}, "at is a number"),
        (["decide"], {"by": "threshold", "at": 0, "above": "x", "below": "y"}, "no axis left"),
        (["decide"], {"by": "threshold", "at": 0, "above": "x"}, "below, or among"),
        (["sum"], "l", "one axis left"),
        (["sum"], "m", "No table named 'm'"),
        (["sum"], 7, "name of a table"),
        (["sum", "op"], "produce", "Did you mean 'product'"),
        (["sum", "over"], ["k"], "out of ['i', 'j']"),
        (["sum", "over"], "j", "over is a list"),
        (["sum", "over"], ["i", "j"], "one axis left"),
        (["sum", "with"], 1, "key of sum.product"),
        (["sum", "of"], {"op": "ratio", "of": ["l"]}, "of two tables"),
        (["sum", "of"], {"op": "latent", "of": "l", "over": ["i", "j"]}, "two axes"),
        (["think"], [], "at least one"),
        (["think"], ["score"], "think operation"),
        (["think", 0, "op"], "scores", "Did you mean 'score'"),
        (["think", 0, "op"], ["score"], "think operation"),
        (["think", 0, "as"], "two words", "A name is a word"),
        (["think", 0, "as"], "words", "given twice"),
        (["think", 0, "per"], "line", "'sum', 'token' or 'byte'"),
        (["think", 0, "context"], None, "lacks 'context'"),
        (["think", 0, "context"], "{k}", "text in a template"),
        (["think", 0, "context"], "{words}", "text in a template"),
        (["think", 0, "context"], 7, "A template is a text"),
        (["think", 0, "over"], {"i": "word"}, "Did you mean 'words'"),
        (["think", 0, "over"], 7, "over is a list"),
        (["think", 0, "k"], 3, "key of think.l"),
        (["read", "words"], {"pattern": "("}, "no pattern"),
        (["read", "words"], {"pattern": "x"}, "exactly one"),
        (["read", "words"], 7, "read.words is"),
        (["read"], [], "are mappings"),
    ],
)
def test_a_mistake_is_told(path, value, said):
    with pytest.raises(UsageError) as told:
        Program.checked(changed(path, value))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("k", [0, -1, "ten", 1.5])
def test_counts_are_counts(k):
    query = {"op": "examples", "as": "more", "prompt": "Name one:", "k": k}
    with pytest.raises(UsageError, match="k must be"):
        Program.checked(GOOD | {"think": [query, *GOOD["think"]]})


def test_an_index_stands_for_one_list():
    wrong = copy.deepcopy(GOOD)
    wrong["read"]["others"] = ["a", "b"]
    wrong["think"].append({**wrong["think"][0], "as": "m", "over": {"i": "others", "j": "words"}})
    with pytest.raises(UsageError, match="The index 'i' is over"):
        Program.checked(wrong)


def test_the_strategy_refuses_a_program_that_is_none():
    with pytest.raises(UsageError, match="Did you mean 'odd_one_out'"):
        ThinkSum(policy=policy("plain"), program="odd_one_in")
    with pytest.raises(UsageError, match="max_pairs"):
        ThinkSum(policy=policy("plain"), max_pairs=0)


def test_built_by_name_a_faulty_program_is_told_in_one_line():
    with pytest.raises(UsageError, match="argmix") as told:
        build(
            strategy="thinksum",
            policy="plain",
            program=changed(["decide"], "argmix"),
            model=Scripted("x", logprob=lambda _: -1.0),
        )
    assert "\n" not in str(told.value)


def test_too_many_pairs_are_refused_before_any_call():
    work = Workings(Program.checked(GOOD), seed=0, max_pairs=20, chat=False)
    with pytest.raises(UsageError, match="asks for 36 pairs"):
        work.take({"words": list("abcdef")})


@pytest.mark.parametrize(
    ("read", "question", "found"),
    [
        ({"pattern": r": (.+?)\.?$", "split": ","}, "Pick: a, b , c.", ["a", "b", "c"]),
        ({"pattern": r"word (\w+)"}, "the word sea", "sea"),
        ({"pattern": r": (.+)", "split": ",", "unless": "choices"}, "Pick: a, b", ["x", "y"]),
        ("question", " Which? ", "Which?"),
        ("clue", "", "a text"),
        ({"list": "several"}, "", ["1", "2"]),
        (["p", "q"], "", ["p", "q"]),
    ],
)
def test_items_are_read_out_of_the_task(read, question, found):
    program = replace(Program.checked(GOOD), read={"it": read})
    task = Task(question, choices=("x", "y"), metadata={"clue": "a text", "several": [1, 2]})
    assert program.items(task) == {"it": found}


def test_what_the_task_lacks_is_told():
    with pytest.raises(Unanswerable, match="nothing to read as 'words'"):
        Program.checked(GOOD).items(Task("no choices"))

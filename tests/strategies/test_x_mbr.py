"""Laws of MBR and X-MBR: exact match is majority, foreign evidence is evidence only, and what it costs."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.flow import Completion, Failure, Generate
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Task
from abduce.strategies.mbr import chrf, expected, same
from abduce.strategies.policy import StepPolicy
from abduce.strategies.x_mbr import XMBR, preferred

from .baselines import Runner

TEXT = StepPolicy(prompt="plain", answer_kind="text", delimiter=None)
NUMBER = StepPolicy(prompt="plain", answer_kind="number", delimiter=None)
SWAHILI = Task("Je, ni matufaha mangapi yamebaki mwishoni mwa siku?")


def script(pool, foreign=(), judge=lambda a, b: "tie"):
    """A model with a pool, answers in another language, and a judge of pairs."""
    left, abroad = list(pool), list(foreign)

    def reply(request, seed):
        text = request.prompt.messages[-1].content
        if request.model == "judge":
            if text.startswith("Translate"):
                return "How many apples are left?"
            a, b = text.partition("### Answer A\n")[2].split("\n\nWhich is")[0].split("\n\n### Answer B\n")
            return f"Hm.\n{judge(a, b)}"
        source = abroad if text.startswith("Answer the following task in") or "apples" in text else left
        return [source.pop(0) for _ in range(request.n)]

    return Scripted(reply)


def chosen(pool, foreign=(), judge=lambda a, b: "tie", task=SWAHILI, policy=TEXT, **parameters):
    method = XMBR(**{"policy": policy, "n": len(pool), "foreign": len(foreign), **parameters})
    return Runner(script(pool, foreign, judge)).run(method.solve(task, seed=0))


def by_length(a, b):
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


# ---------------------------------------------------------------- expected utility


def test_the_specifications_pool_of_five():
    result = chosen(["7", "7", "3", "7", "5"], policy=NUMBER, utility="exact")
    assert result.answer == "7"
    assert result.diagnostics["utilities"] == [0.5, 0.5, 0.0, 0.5, 0.0]
    assert result.diagnostics["utilities_asked"] == 10  # half of N(N − 1): exact match is symmetric


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=9))
def test_with_exact_match_it_is_majority_voting_ties_aside(answers):
    utilities = expected([[same(y, e) for e in answers] for y in answers])
    best = answers[utilities.index(max(utilities))]
    counts = Counter(answers)
    assert counts[best] == max(counts.values())
    assert utilities == [pytest.approx((counts[a] - 1) / (len(answers) - 1)) for a in answers]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["3", "5", "7", "no idea"]), min_size=1, max_size=7))
def test_the_strategy_gives_the_majority(texts):
    result = chosen(texts, policy=NUMBER, utility="exact")
    counts = Counter(text for text in texts if text != "no idea")
    assert counts[str(result.answer)] == max(counts.values(), default=0)


def test_one_candidate_has_no_evidence():
    assert expected([[1.0]]) == [0.0]
    assert expected([[1.0]], [[0.5, 1.0]]) == [0.75]


# ---------------------------------------------------------------- foreign evidence


@pytest.mark.parametrize("pool", [["one", "three33", "two2"], ["a", "b", "c"], ["a", "bb", "a"]])
def test_without_foreign_evidence_it_is_mbr(pool):
    plain = chosen(pool, judge=by_length)
    n = len(pool)
    u = [[1.0 if len(y) > len(e) else 0.5 if len(y) == len(e) else 0.0 for e in pool] for y in pool]
    assert plain.diagnostics["utilities"] == [
        pytest.approx(sum(u[i][j] for j in range(n) if j != i) / (n - 1), abs=1e-6) for i in range(n)
    ]
    assert plain.diagnostics["foreign"] == 0


def test_with_a_constant_utility_the_greedy_answer_stands():
    assert chosen(["c", "a", "b"], ["x", "y"]).text == "c"
    assert chosen(["c", "a", "b"], ["x", "y"], policy=NUMBER, utility="exact").text == "c"


def test_foreign_evidence_moves_the_choice_and_is_never_returned():
    pool = ["5", "7", "5", "7", "9"]
    assert chosen(pool, policy=NUMBER, utility="exact").answer == "5"
    moved = chosen(pool, ["It is 7", "7", "7"], policy=NUMBER, utility="exact")
    assert moved.answer == "7"
    assert moved.diagnostics["utilities"][1] == pytest.approx((1 + 3) / 7, abs=1e-6)
    alien = chosen(pool, ["11"] * 9, policy=NUMBER, utility="exact")
    assert alien.answer == "5"
    assert {c.text for c in alien.candidates} == set(pool)


def test_it_is_asked_for_in_english_or_in_chinese_of_english():
    for task, language in ((SWAHILI, "English"), (Task("How many apples are left in the end?"), "Chinese")):
        asked = []

        def reply(request, seed, asked=asked):
            asked.append(request.prompt.messages[-1].content)
            return [f"{len(asked)} {i}" for i in range(request.n)]

        Runner(Scripted(reply)).run(XMBR(policy=NUMBER, n=3, utility="exact").solve(task, seed=0))
        assert any(f"task in {language}," in text and task.question in text for text in asked)


def test_the_question_may_be_translated_first():
    result = chosen(["a", "b"], ["x"], evidence="translate")
    assert result.diagnostics["foreign"] == 1


@pytest.mark.parametrize(
    ("task", "pool", "why"),
    [
        (Task("7 x 8 ="), ["54", "56"], "language is not known"),
        (
            Task("Translate this sentence, please", metadata={"kind": "translation"}),
            ["a", "b"],
            "translation",
        ),
        (Task("Write a program for the sum", metadata={"kind": "code"}), ["a", "b"], "code"),
        (Task("Write a program for the sum"), ["```\na\n```", "```\nb\n```"], "are code"),
    ],
)
def test_where_it_would_mislead_it_is_left_out(task, pool, why):
    result = chosen(pool, task=task, foreign=(), judge=by_length)
    assert result.diagnostics["without_foreign"] == "foreign is 0"
    method = XMBR(policy=TEXT, n=2, foreign=3)
    left = Runner(script(pool, (), by_length)).run(method.solve(task, seed=0))
    assert why in left.diagnostics["without_foreign"]
    assert left.text == result.text


# ---------------------------------------------------------------- what it costs


@pytest.mark.parametrize(("n", "m"), [(2, 0), (3, 0), (3, 2), (5, 3)])
async def test_calls_are_those_of_the_specification(n, m):
    events = []
    engine = script([f"a{i}" * (i + 1) for i in range(n)], [f"x{i}" for i in range(m)], by_length)
    driver = Driver(Services({"policy": engine, "judge": engine}), seed=0, observers=[events.append])
    result = await driver.run(XMBR(policy=TEXT, n=n, foreign=m).solve(SWAHILI, seed=0))
    asked = [e.request for e in events if isinstance(e, Called) and isinstance(e.request, Generate)]
    calls = [request for request in asked if request.model == "judge"]
    assert len(calls) == result.diagnostics["utilities_asked"] == n * (n - 1 + m)


def test_equal_answers_need_no_judge_and_no_evidence():
    asked = []

    def reply(request, seed):
        asked.append(request.n)
        return "same"

    result = Runner(Scripted(reply)).run(XMBR(policy=TEXT, n=4).solve(SWAHILI, seed=0))
    assert (result.text, asked) == ("same", [1, 3])


def test_no_pair_of_texts_is_asked_about_twice():
    result = chosen(["a", "bb", "a", "a"], judge=by_length)
    assert result.diagnostics["judge_calls"] == 2
    assert result.diagnostics["utilities"] == [
        pytest.approx(1 / 3, abs=1e-6),
        1.0,
        *[pytest.approx(1 / 3, abs=1e-6)] * 2,
    ]


# ---------------------------------------------------------------- the judge of pairs


@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_a_judge_that_always_prefers_a_position_changes_nothing(m):
    result = chosen(["c", "a", "b"], [f"x{i}" for i in range(m)], judge=lambda a, b: "A")
    assert result.text == "c"
    assert len(set(result.diagnostics["utilities"])) == 1


def test_two_candidates_are_compared_in_both_orders():
    assert chosen(["short", "longer one"], judge=by_length).text == "longer one"


def test_what_cannot_be_read_is_a_tie_and_told():
    result = chosen(["c", "a"], judge=lambda a, b: "I cannot say.")
    assert (result.text, result.diagnostics["unread"]) == ("c", 2)


def test_where_the_judge_cannot_be_had_the_result_says_so():
    def reply(request, seed):
        if request.model == "judge":
            raise EngineError("the judge has gone")
        return [f"{seed} {i}" for i in range(request.n)]

    result = Runner(Scripted(reply)).run(XMBR(policy=TEXT, n=3, foreign=0).solve(SWAHILI, seed=0))
    assert not result.complete
    assert "the judge has gone" in result.diagnostics["stopped"]
    assert result.text == result.candidates[0].text


@pytest.mark.parametrize(
    ("text", "u"),
    [
        ("Both fine.\nA", 1.0),
        ("**B**", 0.0),
        ("tie.", 0.5),
        ("Answer A", 1.0),
        ("Better: (B)", 0.0),
        ("A is it", None),
    ],
)
def test_only_the_last_line_is_read(text, u):
    assert preferred((Completion(text),)) == u
    assert preferred(Failure("engine", "lost")) is None


# ---------------------------------------------------------------- letters


def test_chrf_needs_no_words_and_no_form():
    assert chrf("我吃苹果", "我吃苹果") == 1.0
    assert chrf("我吃苹果", "我吃梨") > chrf("我吃苹果", "他喝水")
    assert chrf("cafe\u0301", "café") == 1.0
    assert chrf("", "") == 1.0
    assert chrf("", "a") == 0.0


@given(st.text(max_size=12), st.text(max_size=12))
def test_chrf_lies_between_nothing_and_all(a, b):
    assert 0.0 <= chrf(a, b) <= 1.0 + 1e-12
    assert chrf(a, a) == pytest.approx(1.0)


def test_the_translation_most_like_the_others_is_chosen():
    pool = ["Er trinkt Wasser", "Sie isst einen Apfel", "Sie isst den Apfel", "Sie aß einen Apfel"]
    assert chosen(pool, utility="chrf").text == "Sie isst einen Apfel"


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"foreign": -1}, "not be below 0"),
        ({"utility": "bleu"}, "one of judge, exact, chrf"),
        ({"utility": "chrf"}, "foreign=0"),
        ({"evidence": "guess"}, "one of instruct, translate"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        XMBR(policy=TEXT, **wrong)

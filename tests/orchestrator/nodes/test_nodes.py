"""Each node is sent its replies by hand."""

import asyncio
from typing import Any

import pytest

from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.nodes.ask import AskNode
from abduce.orchestrator.nodes.base import NOTED, Progress, Visit, filled, outcome
from abduce.orchestrator.nodes.branch import BranchNode
from abduce.orchestrator.nodes.knowledge import RecallNode, RememberNode, answered
from abduce.orchestrator.nodes.route import RouteByModel, RouteByQuestion
from abduce.orchestrator.nodes.solve import ReviseNode
from abduce.orchestrator.nodes.verify import (
    VerifyByAgreement,
    VerifyByCalculator,
    VerifyByPython,
    VerifyByReward,
    equations,
)
from abduce.orchestrator.services import Services
from abduce.orchestrator.steps import Bound, Way
from abduce.serving.entries import Entry, Evidence, Match
from abduce.serving.errors import BudgetExhausted
from abduce.serving.flow import (
    Ask,
    CallTool,
    Completion,
    Failure,
    Flow,
    Fork,
    Generate,
    LogLikelihood,
    LogProb,
    Recall,
    ToolResult,
)
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Candidate, Result, Task
from abduce.strategies.chain_of_thought import ChainOfThought
from abduce.strategies.policy import policy

NONE = Services()
TEXT = Services({"policy": Scripted("")})
SCORING = Services({"policy": Scripted("", logprob=lambda request: -1.0)})


def at(question: str = "6 x 7?", seed: int = 0, **state: Any) -> Visit:
    return Visit(Task(question), Progress(question=question, **state), seed)


def run(flow: Flow[Any], *replies: Any) -> tuple[Any, list[Any]]:
    """What a flow returns that is sent these replies, a batch each, and what it asked."""
    asked: list[Any] = []
    waiting = list(replies)
    sent: Any = None
    try:
        while True:
            batch = flow.send(sent)
            asked += batch
            sent = waiting.pop(0) if batch else []
    except StopIteration as end:
        assert not waiting
        return end.value, asked


def drawn(text: str) -> tuple[Completion, ...]:
    return (Completion(text),)


# ---------------------------------------------------------------- what is known


def test_what_is_recalled_joins_the_notes() -> None:
    found = tuple(Match(Entry(name, name.upper()), 1.0, "") for name in "bc")
    update, asked = run(RecallNode(NONE, 3).visit(at(notes=['"a"'])), [found])
    assert update == {"notes": ['"a"', '"B"', '"C"'], "recalled": ["b", "c"]}
    assert asked == [Recall("6 x 7?", 3)]


def test_a_memory_that_fails_loses_nothing() -> None:
    update, _ = run(RecallNode(NONE, 3).visit(at(notes=["a"])), [Failure("memory", "gone")])
    assert update == {"notes": ["a"], "recalled": []}


def remembered(node: RememberNode, visit: Visit, *entries: Entry) -> tuple[Entry, ...]:
    """What a store holds after a visit that held these entries before."""

    async def visited() -> tuple[Entry, ...]:
        store = InMemory()
        await store.write(entries)
        await Driver(Services(memory=store)).run(node.visit(visit))
        return await store.everything()

    return asyncio.run(visited())


@pytest.mark.parametrize(
    ("always", "verified", "answer", "kept"),
    [(False, True, "42", 1), (False, None, "42", 0), (True, False, "42", 1), (True, True, None, 0)],
)
def test_only_verified_answers_are_remembered(always, verified, answer, kept) -> None:
    visit = at(verified=verified, answer=answer, verifier="python", confidence=1.0, run="r-1")
    found = remembered(RememberNode(NONE, always), visit)
    assert [(entry.text, entry.kind) for entry in found] == [("6 x 7? Answer: 42", "answer")] * kept
    sure = ("python", 1.0) if verified else ("", 0.0)
    assert all(entry.evidence == (Evidence("r-1", "6 x 7?", *sure),) for entry in found)


@pytest.mark.parametrize("verified", [True, False, None])
def test_what_was_recalled_gets_credit_once_the_answer_is_judged(verified) -> None:
    visit = at(verified=verified, answer="42", recalled=["a", "b"])
    a, b, *_ = remembered(
        RememberNode(NONE, False), visit, Entry("a", "one"), Entry("b", "two", wins=1, uses=1)
    )
    judged = verified is not None
    assert (a.uses, a.wins) == (judged, bool(verified))
    assert (b.uses, b.wins) == (1 + judged, 1 + bool(verified))
    assert answered(visit).evidence[0].read == ("a", "b")


def test_of_one_question_there_is_one_entry() -> None:
    names = {
        answered(at(question, answer=text)).name for question, text in [("6 x 7?", "1"), ("6 x 7?", "2")]
    }
    assert len(names) == 1
    assert len({answered(at(f"{'long ' * 50}{i}", answer="1")).name for i in range(9)}) == 9


def test_hints_stand_before_the_question() -> None:
    assert (
        at(hints=["a", "b {question}"]).informed.question == "What is known:\n- a\n- b {question}\n\n6 x 7?"
    )
    assert at().informed == at().task


def test_notes_of_a_memory_stand_apart_as_material_to_judge() -> None:
    told = at(hints=["a"], notes=['"b"', '"c"']).informed.question
    assert told == f'What is known:\n- a\n\n{NOTED}\n- "b"\n- "c"\n\n6 x 7?'
    assert at().informed.question == "6 x 7?"


def test_braces_in_what_is_put_in_stay() -> None:
    assert filled("{a} {b} {c}", {"a": "{b}", "b": "x"}) == "{b} x {c}"


# ---------------------------------------------------------------- ways

WAYS = {
    "short": Way(about="sums", words=Bound(at_most=2)),
    "sum": Way(about="products", contains=("add", "plus")),
    "else": Way(about="the rest"),
}


@pytest.mark.parametrize(
    ("question", "way"),
    [("6 7", "short"), ("6 Plus 7 and 8", "sum"), ("what is it all about?", "else")],
)
def test_the_first_way_that_fits(question: str, way: str) -> None:
    assert run(RouteByQuestion(NONE, WAYS).visit(at(question)))[0] == {"route": way}


def test_where_no_way_fits_the_last_is_taken() -> None:
    ways = {"a": Way(contains=("x",)), "b": Way(contains=("y",))}
    assert run(RouteByQuestion(NONE, ways).visit(at("z")))[0] == {"route": "b"}


def test_a_model_chooses_by_likelihood_per_token() -> None:
    likely = [LogLikelihood((-1.0, -1.0, -1.0)), LogLikelihood((-2.0,)), Failure("engine", "x")]
    update, asked = run(RouteByModel(SCORING, WAYS).visit(at()), likely)
    assert update == {"route": "short"}  # -1 per token, though -3 in all
    assert [(type(a), a.continuation) for a in asked] == [(LogProb, name) for name in WAYS]
    assert "sum: products" in asked[0].prompt.messages[0].content


@pytest.mark.parametrize(
    ("reply", "way"),
    [(drawn("It is Sum, not short."), "sum"), (drawn("?"), "else"), (Failure("engine", "x"), "else")],
)
def test_a_model_without_likelihoods_names_the_way(reply: Any, way: str) -> None:
    update, [asked] = run(RouteByModel(TEXT, WAYS).visit(at()), [reply])
    assert isinstance(asked, Generate)
    assert update == {"route": way}


# ---------------------------------------------------------------- answers


def test_a_search_without_an_answer_does_not_replace_one() -> None:
    nothing = Result(None, "", complete=False)
    assert "answer" not in outcome(at(answer="42"), nothing)
    assert outcome(at(), nothing)["answer"] is None
    assert outcome(at(answer="42"), Result("43", "t"))["answer"] == "43"


def test_a_new_answer_is_not_verified() -> None:
    assert outcome(at(verified=True, answer="1"), Result("2", "t"))["verified"] is None


def test_the_score_is_that_of_the_answers_best_candidate() -> None:
    pool = (Candidate("42", "", 0.2), Candidate("42", "", 0.6), Candidate("41", "", 0.9), Candidate("42", ""))
    assert outcome(at(), Result("42", "t", pool))["score"] == 0.6


def test_a_revision_sees_the_solution_and_what_was_wrong() -> None:
    node = ReviseNode(TEXT, ChainOfThought(policy=policy("plain")))
    flow = node.visit(at(text="It is {why} 41.", answer="41", why="6 * 7 is 42"))
    [asked] = flow.send(None)
    prompt = asked.prompt.messages[-1].content
    assert "6 x 7?" in prompt
    assert "It is {why} 41." in prompt
    assert "What was found: 6 * 7 is 42" in prompt


def test_a_budget_that_is_used_up_ends_the_search_not_the_graph() -> None:
    class Stubborn:
        def solve(self, task: Task, *, seed: int) -> Flow[Result]:
            yield [Generate(None)]  # type: ignore[arg-type]
            raise AssertionError

    flow = ReviseNode(TEXT, Stubborn()).visit(at())
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.throw(BudgetExhausted("calls", 1))
    assert end.value.value["complete"] is False


# ---------------------------------------------------------------- verification


class Scored:
    def score(self, states: Any) -> Flow[list[Any]]:
        [score] = yield [states[0].text]
        return [score]


@pytest.mark.parametrize(("score", "verified"), [(0.5, True), (0.49, False), (Failure("reward", "no"), None)])
def test_a_reward_verifies_from_its_bound_on(score: Any, verified: bool | None) -> None:
    update, asked = run(VerifyByReward(NONE, Scored(), 0.5).visit(at(text="t")), [score])
    assert asked == ["t"]
    assert update["verified"] is verified
    assert bool(update["why"]) == (verified is not True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("6 x 7 = 42", [("6 * 7", "42")]),
        ("1,000 + 2 = 1,002.", [("1000 + 2", "1002")]),
        ("3.5 − 1 = 2.5 and 8 ÷ 2 = 4", [("3.5 - 1", "2.5"), ("8 / 2", "4")]),
        ("2 + 3 + 4 = 9", [("2 + 3 + 4", "9")]),
        ("x = 3, f(2) = 4, 1 < 2", []),
        ("2 - 5 = -3", [("2 - 5", "-3")]),
    ],
)
def test_calculations_are_found_in_text(text: str, told: list[tuple[str, str]]) -> None:
    assert equations(text) == told


def test_long_texts_are_searched_in_no_time() -> None:
    assert equations("1 + " * 50_000 + "= 3") == []
    assert equations("9" * 100_000 + " + ") == []


@pytest.mark.parametrize(
    ("results", "verified", "why"),
    [
        (["42", "50"], True, ""),
        (["42.0", "50"], True, ""),
        (["42", "49"], False, "42 + 8 is 49, not 50."),
        ([None, "50"], True, ""),
        ([None, None], None, "No calculation could be checked."),
    ],
)
def test_every_calculation_is_done_again(results: Any, verified: Any, why: str) -> None:
    replies = [ToolResult("?", ok=False) if text is None else ToolResult(text) for text in results]
    update, asked = run(VerifyByCalculator(NONE).visit(at(text="6 x 7 = 42, 42 + 8 = 50")), replies)
    assert [call.arguments["expression"] for call in asked] == ["6 * 7", "42 + 8"]
    assert update == {"verified": verified, "why": why, "verifier": "calculator", "confidence": 1.0}


PROGRAM = "```python\nprint(6 * 7)\n```"


@pytest.mark.parametrize(
    ("replies", "verified"),
    [
        ([[drawn(PROGRAM)], [ToolResult("so\n42\n")]], True),
        ([[drawn(PROGRAM)], [ToolResult("41")]], False),
        ([[drawn(PROGRAM)], [ToolResult("Error", ok=False)]], None),
        ([[drawn("I can't.")]], None),
        ([[Failure("engine", "x")]], None),
    ],
)
def test_a_program_must_print_the_answer(replies: Any, verified: bool | None) -> None:
    update, asked = run(VerifyByPython(TEXT).visit(at(answer="42", text="the answer is 42")), *replies)
    assert update["verified"] is verified
    assert "42" not in asked[0].prompt.messages[0].content  # it is written without knowing the answer
    if len(asked) > 1:
        assert asked[1] == CallTool("python", {"code": "print(6 * 7)\n"})


@pytest.mark.parametrize(("other", "verified"), [("42", True), ("41", False)])
def test_a_second_solution_must_agree(other: str, verified: bool) -> None:
    from abduce.orchestrator.ledger import Budget
    from abduce.orchestrator.session import Session

    services = Services({"policy": Scripted(f"The answer is {other}.")})
    node = VerifyByAgreement(services, policy("cot"))

    async def visit() -> Any:
        with Session(None, budget=Budget()) as session:
            return await session.drive(node.visit(at(answer="42")), services, seed=0)

    assert asyncio.run(visit())["verified"] is verified


# ---------------------------------------------------------------- others


BY_USER = {"verifier": "user", "confidence": 1.0}


@pytest.mark.parametrize(
    ("use", "reply", "changed"),
    [
        ("hint", "think of 6", {"hints": ["a", "think of 6"]}),
        ("verdict", " YES ", {"verified": True, "why": "", **BY_USER}),
        ("verdict", "hm", {"verified": False, "why": "The human said: hm", **BY_USER}),
        ("answer", "43", {"answer": "43", "text": "43", "complete": True}),
    ],
)
def test_what_the_human_says(use: Any, reply: str, changed: dict[str, Any]) -> None:
    node = AskNode(NONE, "Is {answer} right, {nobody}?", (), use)
    update, asked = run(node.visit(at(hints=["a"], answer="42")), [reply])
    assert update == {"said": reply, **changed}
    assert asked == [Ask("Is 42 right, {nobody}?", ("yes", "no") if use == "verdict" else ())]


def test_a_human_who_cannot_be_asked_changes_nothing() -> None:
    node = AskNode(NONE, "?", (), "verdict")
    assert run(node.visit(at()), [Failure("human", "nobody")])[0] == {"said": None}


def test_a_question_is_taken_apart_and_its_parts_are_solved_at_once() -> None:
    node = BranchNode(TEXT, ChainOfThought(policy=policy("plain")), "model", 3)
    flow = node.visit(at(hints=["a"]))
    [asked] = flow.send(None)
    assert "at most 3" in asked.prompt.messages[0].content
    [fork] = flow.send([drawn("1. What is 6?\n- What is 7?\n\n* What is 6?\n(4) x?\nToo many?")])
    assert isinstance(fork, Fork)
    assert len(fork.flows) == 3
    results = (Result("six", "t"), Failure("budget", "x"), Result(None, "t"))
    with pytest.raises(StopIteration) as end:
        flow.send([results])
    assert end.value.value == {"hints": ["a", "What is 6? Answer: six"]}


def test_lines_of_the_question_are_its_parts() -> None:
    node = BranchNode(NONE, ChainOfThought(policy=policy("plain")), "lines", 16)
    flow = node.visit(at("2 + 2?\n3 + 3?"))
    [fork] = flow.send(None)
    assert len(fork.flows) == 2

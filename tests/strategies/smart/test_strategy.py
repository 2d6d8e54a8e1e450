"""The episode: choose, run, check, go on; and the arms themselves."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from abduce.orchestrator import recipe
from abduce.orchestrator.codec import dumps
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.flow import Failure, Generate, Prompt, ToolSpec
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Candidate, Check, Result, Task
from abduce.strategies.policy import StepPolicy, policy
from abduce.strategies.smart import SMART
from abduce.strategies.smart.arms import LeastToMost, ProgramOfThought, arm, program
from abduce.strategies.smart.bandit import Chooser
from abduce.strategies.smart.log import Log
from abduce.strategies.smart.router import Attempt
from abduce.tools import toolbox

TASK = Task("7 x 8 =", checks=(Check("numeric", {"value": 56}),))
PYTHON = ToolSpec("python")


@dataclass(frozen=True)
class Says:
    """An arm that answers as it is told, in one call."""

    answer: str
    tokens: int = 10
    needs: tuple[str, ...] = ()
    asked: list[Any] = field(default_factory=list, compare=False)

    def solve(self, task, *, seed):
        self.asked.append(task)
        [reply] = yield [Generate(Prompt.user(task.question))]
        if isinstance(reply, Failure):
            return Result(None, "", complete=False, diagnostics={"stopped": reply.message})
        facts = {"tokens": self.tokens, "proposals": 1, "nodes": 2}
        return Result(self.answer, self.answer, (Candidate(self.answer, self.answer),), diagnostics=facts)


def run(smart, task=TASK, *, seed=0, tools=(), engine=None, budget=None):
    services = Services({"policy": engine or Scripted("said")}, tools=toolbox(tools))
    driver = Driver(services, seed=seed, budget=budget)
    result = asyncio.run(driver.run(smart.solve(task, seed=seed)))
    dumps(result)
    return result


def smart(arms: Mapping[str, Any], **words):
    return SMART(policy=StepPolicy(), arms=arms, **words)


def tried(result):
    return [row["arm"] for row in result.diagnostics["attempts"]]


@pytest.mark.parametrize("retry", ["policy", "random", "ordered"])
def test_it_stops_at_the_first_success_and_never_repeats_an_arm(retry):
    arms = {"a": Says("1"), "b": Says("56"), "c": Says("2"), "d": Says("3")}
    orders = set()
    for seed in range(30):
        result = run(smart(arms, retry=retry), seed=seed)
        order = tried(result)
        assert len(set(order)) == len(order) and order[-1] == "b" and "b" not in order[:-1]
        assert (result.answer, result.diagnostics["solved"], result.complete) == ("56", True, True)
        assert [row["attempt"] for row in result.diagnostics["attempts"]] == list(range(1, len(order) + 1))
        orders.add(tuple(order))
    assert len(orders) > 3


def test_after_all_arms_have_failed_it_ends_with_the_first_answer():
    result = run(smart({"a": Says("1"), "b": Says("2")}, retry="ordered"))
    assert len(tried(result)) == 2 and not result.diagnostics["solved"] and result.complete
    assert result.answer == {"a": "1", "b": "2"}[tried(result)[0]]


def test_one_attempt_where_nobody_can_check_or_none_more_is_wished():
    arms = {"a": Says("1"), "b": Says("2")}
    assert len(tried(run(smart(arms), Task("7 x 8 =")))) == 1
    assert len(tried(run(smart(arms, verify="none")))) == 1
    assert len(tried(run(smart(arms, retry="none")))) == 1


def test_an_arm_without_its_tool_is_masked_before_normalising():
    arms = {"a": Says("1"), "b": Says("56", needs=("python",)), "c": Says("2")}
    result = run(smart(arms))
    [first, *_] = result.diagnostics["attempts"]
    assert first["mask"] == ["b"] or first["mask"] == ("b",)
    assert set(first["pi"]) == {"a", "c"} and sum(first["pi"].values()) == pytest.approx(1)
    assert "b" not in tried(result)
    assert run(smart(arms), Task(TASK.question, checks=TASK.checks, tools=(PYTHON,))).answer == "56"
    with pytest.raises(UsageError, match="tools its arms need"):
        run(smart({"b": Says("56", needs=("python",))}))


def test_the_tokens_of_an_episode_are_bounded():
    arms = {name: Says("1", tokens=40) for name in "abcd"}
    assert len(tried(run(smart(arms, budget_tokens=100)))) == 3
    assert len(tried(run(smart(arms, budget_tokens=40)))) == 1
    result = run(smart(arms), budget=Budget(calls=2))
    assert len(tried(result)) >= 2 and not result.complete and "calls" in result.diagnostics["stopped"]


def test_dear_arms_are_masked_once_their_cost_is_known(tmp_path):
    arms = {"cheap": Says("1", tokens=20), "dear": Says("56", tokens=900)}
    path = str(tmp_path / "router.jsonl")
    learn(path, [run(smart(arms), seed=seed) for seed in range(4)])
    result = run(smart(arms, router=path, budget_tokens=500))
    assert tried(result) == ["cheap"] and list(result.diagnostics["attempts"][0]["mask"]) == ["dear"]


def learn(path, results):
    rows = [row for result in results for row in result.diagnostics["attempts"]]
    return Log(path).append([Attempt.of(row) for row in rows])


def test_what_is_learnt_is_chosen(tmp_path):
    arms = {"a": Says("1"), "b": Says("56"), "c": Says("2")}
    path = str(tmp_path / "router.jsonl")
    for seed in range(60):
        learn(path, [run(smart(arms, router=path), seed=seed)])
    late = [run(smart(arms, router=path), seed=seed) for seed in range(100, 140)]
    assert sum(tried(result)[0] == "b" for result in late) >= 36
    greedy = run(smart(arms, router=path, choose="greedy"))
    assert tried(greedy) == ["b"]
    early = run(smart(arms, router=path, version=0))
    assert set(early.diagnostics["attempts"][0]["pi"].values()) == {1 / 3}


def test_a_run_goes_on_with_the_version_it_began_with(tmp_path):
    path = str(tmp_path / "router.jsonl")
    parts = {"arms": {"a": Says("1"), "b": Says("2")}, "router": path}

    def pipeline(version=None):
        return build(strategy=smart(**parts, version=version), model=Scripted("said"))

    learn(path, [run(smart(**parts), seed=seed) for seed in range(30)])
    store = Runs(tmp_path / "runs")
    begun = pipeline().solve(TASK, seed=1, store=store)
    [first, *_] = begun.diagnostics["attempts"]
    other = {**first, "arm": "b" if first["arm"] == "a" else "a", "y": 1}
    Log(path).append([Attempt.of(other)] * 60)  # the file has grown, and says otherwise now
    again = pipeline(first["version"]).solve(TASK, seed=1, run=store.open("last"))
    assert tried(again) == tried(begun) != tried(pipeline().solve(TASK, seed=1))


def test_a_router_of_other_features_is_refused(tmp_path):
    path = str(tmp_path / "router.jsonl")
    learn(path, [run(smart({"a": Says("56")}))])
    with pytest.raises(UsageError, match="other features"):
        run(smart({"a": Says("56")}, router=path, embed=4))


def test_hidden_states_are_part_of_the_context_where_they_can_be_had():
    engine = Scripted("said")
    result = run(smart({"a": Says("56")}, embed=4), engine=engine)
    plain = run(smart({"a": Says("56")}))
    assert len(result.diagnostics["attempts"][0]["phi"]) == len(plain.diagnostics["attempts"][0]["phi"]) + 4


def test_all_arms_are_run_where_it_explores():
    arms = {"a": Says("1"), "b": Says("56"), "c": Says("2")}
    result = run(smart(arms, explore_full=1.0))
    assert sorted(tried(result)) == ["a", "b", "c"] and result.answer == "56"
    assert all(row["full"] for row in result.diagnostics["attempts"])
    assert len(tried(run(smart(arms, explore_full=1.0), Task("7 x 8 =")))) == 1  # nobody checks


def test_a_retry_sees_the_attempts_before_it_only_if_so_wished():
    for history in (False, True):
        arms = {"a": Says("1"), "b": Says("2")}
        run(smart(arms, with_history=history))
        asked = [task.question for each in arms.values() for task in each.asked]
        assert any("Earlier attempts" in question for question in asked) == history


def test_without_texts_nothing_of_the_question_is_kept():
    [row] = run(smart({"a": Says("56")}, keep_text=False)).diagnostics["attempts"]
    assert (row["question"], row["text"], row["answer"]) == ("", "", None) and row["prompt"]


def test_the_vote_of_samples_is_a_check():
    engine = Scripted("The answer is 56.")
    arms = {"a": Says("1"), "b": Says("56")}
    result = run(smart(arms, verify="consistency", retry="ordered"), Task("7 x 8 ="), engine=engine)
    assert result.answer == "56"
    assert {(row["kind"], row["c"]) for row in result.diagnostics["attempts"]} == {("consistency", 1.0)}


def test_the_judges_value_is_the_weight():
    engine = Scripted({"Judge a solution": "VERDICT: 8", "": "said"})
    [row] = run(smart({"a": Says("1")}, verify="judge"), Task("7 x 8 ="), engine=engine).diagnostics[
        "attempts"
    ]
    assert (row["y"], row["kind"], row["c"]) == (1, "judge", pytest.approx(0.8))


def test_an_answer_is_kept_where_the_budget_does_not_reach_for_its_verdict():
    engine = Scripted({"Judge a solution": "VERDICT: 8", "": "said"})
    judged = smart({"a": Says("1")}, verify="judge")
    result = run(judged, Task("7 x 8 ="), engine=engine, budget=Budget(calls=1))
    assert result.answer == "1"


def test_an_attempt_that_was_cut_short_teaches_nothing():
    result = run(SMART(policy=policy("cot"), arms=("cot",)), budget=Budget(calls=0))
    assert not result.complete
    assert all(row["y"] is None for row in result.diagnostics["attempts"])


# ---------------------------------------------------------------- arms


CODE = "def solution():\n    return 7 * 8"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (CODE, "56"),
        (f"Here it is:\n```python\n{CODE}\n```\nThat was it.", "56"),
        ("x = 7\nprint(x * 8)", "56"),
        ("def solution():\n    return 1 / 0", None),
        ("def solution():\n    pass\nprint('')", None),
        ("It is 7 times 8. The answer is 56.", "56"),
    ],
)
def test_a_programs_value_is_the_answer(text, answer):
    pot = ProgramOfThought(policy=policy("cot"))
    result = run(pot, engine=Scripted(text), tools=["python"])
    assert result.answer == answer


@pytest.mark.parametrize("preset", ["cot", "math", "few_shot"])
def test_a_program_is_read_by_every_kind_of_policy(preset):
    result = run(ProgramOfThought(policy=policy(preset)), engine=Scripted(CODE), tools=["python"])
    assert result.answer == "56" and result.complete


def test_a_program_needs_its_last_line():
    assert program(CODE).endswith("print(solution())")
    assert program("I do not know.") == ""


def test_least_to_most_answers_the_parts_in_order_each_with_those_before_in_view():
    seen = []

    def reply(request, seed):
        text = request.prompt.messages[-1].content
        seen.append(text)
        if "List them" in text:
            return "1. How much is 7 x 4?\n2) What is twice 28?\nNot a question"
        return (
            "It is 28.\nThe answer is 28." if "7 x 4?" in text.rpartition("\n\n")[2] else "The answer is 56."
        )

    result = run(LeastToMost(policy=StepPolicy(prompt="plain")), engine=Scripted(reply))
    assert result.answer == "56" and result.diagnostics["parts"] == 4
    assert len(seen) == 4 and "It is 28." in seen[2] and "twice 28" in seen[3]


@pytest.mark.parametrize(
    ("text", "answer", "chosen"),
    [
        (f"<strategy>pot</strategy>\n{CODE}", "56", "pot"),
        ("<strategy>cot</strategy>\n7 * 8 is 56.\nThe answer is 56.", "56", "cot"),
        ("<strategy>magic</strategy>\nThe answer is 56.", "56", ""),
        ("<strategy>pot</strategy>\ndef solution():\n    return 1 / 0", None, "pot"),
    ],
)
def test_a_tuned_model_chooses_by_itself(text, answer, chosen):
    result = run(arm("self", policy("few_shot")), engine=Scripted(text), tools=["python"])
    assert (result.answer, result.diagnostics["chosen"]) == (answer, chosen)


def test_any_strategy_is_an_arm():
    made = arm({"strategy": "self_consistency", "n": 3, "policy": "few_shot"}, policy("cot"))
    assert (made.n, made.policy) == (3, policy("few_shot"))
    assert arm("best_of_n", policy("cot")).reward is not None
    assert (
        arm({"strategy": "revision", "sampling": {"temperature": 0.1}}, policy("cot")).sampling.max_tokens > 1
    )
    with pytest.raises(UnknownName, match="self_consistency"):
        arm("self_consistancy", policy("cot"))
    with pytest.raises(UnknownName):
        arm({"strategy": "pot", "m": 3}, policy("cot"))


@pytest.mark.parametrize(
    "given",
    [
        {"pipeline": [{"solve": {"strategy": "cot"}}, {"verify": "python"}]},
        {"recipe": "retry-products"},
        recipe.load("retry-products"),
        recipe.load("one-sample-products"),
    ],
    ids=["steps", "name", "workflow", "pipeline"],
)
def test_a_recipe_is_no_arm_and_the_refusal_says_what_to_write(given):
    with pytest.raises(UsageError, match=r"arms are strategies\. Write \{strategy: name, …\}.*verify.*route"):
        smart({"cot": "cot", "other": given})


@pytest.mark.parametrize(
    "wrong",
    [
        {"arms": ()},
        {"choose": "fixed:x"},
        {"votes": 2},
        {"retry": "never"},
        {"verify": "gold"},
        {"embed": -1},
        {"budget_tokens": 0},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError):
        SMART(**({"policy": StepPolicy()} | wrong))


def test_its_numbers_are_those_of_the_chooser():
    assert SMART(policy=StepPolicy()).chooser == Chooser()

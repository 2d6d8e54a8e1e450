"""Any search with tools: results are steps, effects are refused, each branch has its own interpreter."""

import pytest

from abduce.orchestrator.recipe import read
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Noted
from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.scripted import Scripted
from abduce.strategies.policy import policy
from abduce.tools.base import tool
from abduce.tools.sandbox.session import Session

LINES = {
    "preset": "acting",
    "policy": {
        "preset": "few_shot",
        "examples": [["2 x 2", "Action: python[print(2 * 2)]\nObservation: 4\nThe answer is 4."]],
    },
}


class Branches(Scripted):
    """Says lines by what stands in the text so far: {end of the text: lines that may follow}."""

    def __init__(self, lines):
        def said(request, seed):
            text = request.prompt.prefix.rpartition("Answer:\n")[2].rstrip("\n")
            fitting = [follow for end, follow in lines.items() if text.endswith(end)]
            return (lines[""] if not text else fitting[-1])[: request.n] if fitting else "0\n"

        super().__init__(said, logprob=lambda request: -1.0)


SETS = {
    "": ["Action: python[x = 6; print('set')]\n", "Action: python[x = 5; print('set')]\n"] * 4,
    "Observation: set": ["Action: python[print('x is', x)]\n"],
    "x is 6": ["The answer is 6.\n"],
    "x is 5": ["The answer is 5.\n"],
}
SEARCHES = {
    "beam": {"reward": "self_eval", "width": 4},
    "best_of_n": {"reward": "agreement"},
    "self_consistency": {},
    "mcts": {"reward": "self_eval"},
    "particle_filter": {"reward": "self_eval"},
    "a_star": {"reward": "self_eval"},
}


def solved(strategy, lines, tools, policy=LINES, seed=1, **settings):
    """The result, and the text of every node."""
    texts = {}

    def keep(event):
        if isinstance(event, Noted) and event.note == "nodes":
            for row in event.data["nodes"]:
                texts[row["id"]] = texts.get(row["parent"], "") + row["text"]

    pipeline = build(strategy=strategy, policy=policy, model=Branches(lines), tools=tools, **settings)
    return pipeline.solve("q", seed=seed, observers=[keep]), [*texts.values()]


@pytest.mark.parametrize("strategy", SEARCHES)
def test_a_child_sees_its_branchs_variables_and_not_its_siblings(strategy, monkeypatch):
    ran, plain = [], Session.run

    def run(self, code, *rest):
        ran.append(code)
        return plain(self, code, *rest)

    monkeypatch.setattr(Session, "run", run)
    result, texts = solved(strategy, SETS, ["python"], **SEARCHES[strategy])
    assert result.complete and result.answer in ("5", "6")
    shown = {x: [text for text in texts if f"x is {x}" in text] for x in (5, 6)}
    assert any(shown.values()) and all(f"x = {x};" in text for x in shown for text in shown[x])
    sets = [code for code in ran if code.startswith("x = ")]
    assert len(sets) == len(set(sets))  # nothing was run again to get back to a state


def test_searches_that_keep_both_branches_answer_by_both():
    result, _ = solved("self_consistency", SETS, ["python"])
    assert {candidate.answer for candidate in result.candidates} == {"5", "6"}


def test_a_result_is_one_step_however_many_are_asked_for():
    _, texts = solved("beam", SETS, ["python"], **SEARCHES["beam"])
    results = [text for text in texts if text.endswith("Observation: set\n")]
    assert len(results) == len(set(results))


def test_tools_with_effects_are_refused_and_the_model_is_told():
    called = []

    @tool(effect="once")
    def pay(x: int) -> str:
        """Pay."""
        called.append(x)
        return "paid"

    lines = {"": ["Action: pay[3]\n"], 'without effects."}': ["The answer is 7.\n"]}
    result, texts = solved("self_consistency", lines, [pay])
    assert called == [] and result.answer == "7"
    assert any("may be dropped" in text for text in texts)


def test_several_calls_of_a_chat_get_a_result_each_in_their_order():
    @tool(effect="pure")
    def double(x: int) -> int:
        """Twice a number."""
        return 2 * x

    calls = ", ".join(f'{{"name": "double", "arguments": {{"x": {x}}}}}' for x in (3, 4))
    seen = []

    def said(request, seed):
        seen.append(request.prompt.messages)
        done = request.prompt.messages[-1].role == "tool"
        return "The answer is 14." if done else f"<tool_call>\n[{calls}]\n</tool_call>"

    acting = {"preset": "acting"}
    pipeline = build(strategy="chain_of_thought", policy=acting, model=Scripted(said), tools=[double])
    assert pipeline.solve("q", seed=0).answer == "14"
    told = [message for message in seen[-1] if message.role == "tool"]
    assert [message.content for message in told] == ["6", "8"]
    assert [message.tool_call_id for message in told] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    "budget", ["1 calls", "3 calls", "6 calls", "2 tool_calls", "30 tokens", "150 tokens"]
)
@pytest.mark.parametrize("strategy", ["particle_filter", "self_consistency", "beam"])
def test_a_budget_ends_it_with_what_there_is(strategy, budget):
    lines = {**SETS, "": [*SETS[""][:2], "Thinking.\n"] * 3, "Thinking.": ["The answer is 5.\n"]}
    result, _ = solved(strategy, lines, ["python"], budget=budget, **SEARCHES[strategy])
    assert result.complete or result.diagnostics["stopped"]


def test_maxs_takes_the_policy_inside():
    result, _ = solved("maxs", SETS, ["python"])
    assert result.complete and result.answer in ("5", "6")


def test_a_recipe_says_it_and_mistakes_are_told(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: r\nmodel: {engine: scripted, replies: The answer is 7.}\ntools: [calculator]\n"
        "policy: {preset: acting, policy: few_shot, observation_chars: 50}\n"
        "strategy: {name: self_consistency, n: 2}\n"
    )
    assert read(file).pipeline().solve("q").answer == "7"
    file.write_text(file.read_text().replace("few_shot", "few_shop"))
    with pytest.raises(UsageError, match="few_shot"):
        read(file)
    with pytest.raises(UnknownName, match="observation_chars"):
        policy({"preset": "acting", "observation_char": 5})
    with pytest.raises(UsageError, match="preset that writes its own steps"):
        policy({"preset": "acting", "policy": {"preset": "acting"}})

"""`solve` and `asolve`: they work anywhere, say what is wrong before they start, and always have a result."""

import asyncio
import math
import threading
from fractions import Fraction
from itertools import count

import pytest

import abduce
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.again import again
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.trace import read
from abduce.orchestrator.workflow import as_workflow
from abduce.serving.entries import Entry
from abduce.serving.errors import EngineError, MissingCapability, UnknownName, UsageError
from abduce.serving.flow import Generate, Prompt, Recall
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Candidate, Result

TASK = abduce.Task("7 x 8 =", checks=(abduce.Check("numeric", {"value": 56}),))
RIGHT = {"model": {"engine": "scripted", "replies": {"": ["The answer is 54.", "The answer is 56."]}}}
RIGHT |= {"reward": "checks", "n": 4}


def solve(**options) -> Result:
    return abduce.solve(TASK, **RIGHT | options)


# ---------------------------------------------------------------- anywhere


def test_in_a_script():
    assert solve().answer == "56"


async def test_inside_a_running_loop_both_ways_give_the_same():
    assert solve() == await abduce.asolve(TASK, **RIGHT)


async def test_inside_a_loop_others_go_on_meanwhile():
    slow = {"engine": "scripted", "replies": "The answer is 56.", "latency_s": 0.1}
    ticks = count()

    async def tick() -> None:
        while True:
            next(ticks)
            await asyncio.sleep(0.005)

    ticking = asyncio.ensure_future(tick())
    await abduce.asolve(TASK, **RIGHT | {"model": slow})
    ticking.cancel()
    assert next(ticks) > 3


def test_in_a_thread():
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(solve()))
    thread.start()
    thread.join(20)
    assert [result.answer for result in found] == ["56"]


def test_in_a_notebook():
    """Cells are run one after another by a loop that never stops running."""
    cells = (lambda: solve(seed=1), lambda: solve(seed=2))

    async def kernel() -> list[Result]:
        found = []
        for cell in cells:
            await asyncio.sleep(0)
            found.append(cell())
        return found

    assert [result.answer for result in asyncio.run(kernel())] == ["56", "56"]


def test_a_tool_or_engine_that_solves_inside_a_search_is_told_to_await():
    engine = Scripted(lambda request, seed: solve().text)
    with pytest.raises(UsageError, match="Await asolve"):
        abduce.solve(TASK, model=engine, reward="checks")


def test_many_at_once_keep_to_themselves():
    async def all_of_them() -> list[Result]:
        return await asyncio.gather(*(abduce.asolve(TASK, **RIGHT, seed=i) for i in range(20)))

    assert all(result.usage.calls == 1 for result in asyncio.run(all_of_them()))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strategy": "best_of_m"}, "No strategy named 'best_of_m'. Did you mean 'best_of_n'?"),
        ({"atempts": 3}, "No parameter of best_of_n named 'atempts'. Did you mean 'attempts'?"),
        ({"policy": {"preset": "cot", "max_step": 3}}, "Did you mean 'max_steps'?"),
        ({"policy": "cott"}, "No policy named 'cott'. Did you mean 'cot'?"),
        ({"reward": "check"}, "No reward named 'check'. Did you mean 'checks'?"),
        ({"reward": {"kind": "checks", "lose": True}}, "Did you mean 'loose'?"),
        ({"model": "scripten"}, "No engine named 'scripten'. Did you mean 'scripted'?"),
        ({"tools": ["calculater"]}, "No tool named 'calculater'. Did you mean 'calculator'?"),
        ({"budget": {"token": 3}}, "No budget named 'token'. Did you mean 'tokens'?"),
        ({"budget": "8k tokns"}, "Cannot read the budget '8k tokns'. Did you mean 'tokens'?"),
        ({"n": 0}, "n and attempts must be at least 1, got 0"),
        ({"n": "8"}, "n: must be an integer, got '8'"),
        ({"budgt": "9 calls"}, "Did you mean 'budget'?"),
        ({"budget": 8000}, "a text such as '8k tokens, 60 s', a mapping or a Budget, got 8000"),
        ({"budget": {"tokens": "many"}}, "budget.tokens: must be a number, got 'many'"),
        ({"tools": "calculator"}, "tools is a list of names such as ['calculator'], got 'calculator'"),
        ({"concurrency": "4"}, "concurrency must be at least 1, got '4'"),
        ({"policy": {"max_steps": "3"}}, "policy.max_steps: must be an integer, got '3'"),
        ({"policy": 3}, "A policy is a name, a mapping or a Policy, got 3"),
        ({"reward": {"kind": "judge", "n_eval": "3"}}, "reward.n_eval: must be an integer, got '3'"),
        (
            {"reward": {"kind": "checks", "model": "synthetic"}},
            "reward.model: 'model' is not a parameter of",
        ),
        ({"reward": 3}, "reward is a name, a mapping or an object with score(states), got 3"),
        ({"model": 3}, "A model is a name"),
        ({"models": {"judge": "synthetic"}}, "No role of a model named 'judge'. Known: policy."),
        ({"models": "synthetic"}, "models is a mapping of roles to engines"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"strategy": "self_consistency"}, "'self_consistency' uses no reward"),
        ({"memory": "concepts.db"}, "'best_of_n' asks no memory"),
        ({"strategy": {"name": "beam"}, "n": 4}, "n: parameters go into the strategy object"),
    ],
)
def test_a_mistake_is_told_with_the_nearest_spelling(options, told):
    with pytest.raises(UsageError) as error:
        solve(**options)
    assert told in str(error.value)


def test_a_strategy_that_is_none_is_named():
    with pytest.raises(UsageError, match=r"a name or an object with solve.*got \{'name': 'beam'\}"):
        abduce.build(strategy={"name": "beam"}, model=RIGHT["model"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reward": "checks"}, "reward"),
        ({"policy": "cot"}, "policy"),
        ({"n": 3, "policy": "cot"}, "n, policy"),
    ],
)
def test_a_strategy_object_has_its_parts_already(options, told):
    with pytest.raises(UsageError, match=f"^{told}: parameters go into the strategy object"):
        abduce.build(strategy=abduce.build(**RIGHT).strategy, model=RIGHT["model"], **options)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question):
    with pytest.raises(UsageError, match="The question is empty"):
        abduce.solve(question, **RIGHT)


@pytest.mark.parametrize("model", [{"engine": "scripted", "replies": "VERDICT: 7"}, Scripted("VERDICT: 7")])
def test_a_rewards_model_plays_the_role_reward(model):
    short = solve(reward={"kind": "judge", "model": model})
    assert short == solve(reward="judge", models={"reward": model})
    assert [candidate.score for candidate in short.candidates] == [pytest.approx(0.7)] * 4


def test_a_rewards_model_is_given_once():
    judge = {"engine": "scripted", "replies": "VERDICT: 7"}
    with pytest.raises(UsageError, match="'reward' is given twice"):
        solve(reward={"kind": "judge", "model": judge}, models={"reward": judge})


def test_the_outcome_reward_is_found_by_name():
    model = Scripted("The answer is 56.", rate=lambda request: 0.3)
    words = {"strategy": "particle_filter", "reward": "rate", "select": "orm", "outcome": "checks"}
    assert abduce.solve(TASK, model=model, **words).answer == "56"


def test_a_script_that_is_used_up_is_new_in_the_next_call():
    once = {"engine": "scripted", "replies": ["The answer is 56."]}
    assert [solve(model=once, n=1).answer for _ in range(2)] == ["56", "56"]


def test_a_task_without_checks_cannot_be_checked():
    with pytest.raises(UsageError, match="The task has no checks"):
        abduce.solve("7 x 8 =", **RIGHT)


@pytest.mark.parametrize(
    ("reward", "able"), [("self_eval", {"embedded", "synthetic"}), ("rate", {"synthetic"})]
)
def test_a_missing_capability_names_the_engines_that_have_it(reward, able):
    with pytest.raises(MissingCapability, match=r"'scripted' \(role 'reward'\) cannot") as error:
        solve(reward=reward)
    assert "models: {reward: …}, or take another reward" in str(error.value)
    named = set(str(error.value).rpartition("can: ")[2].strip(".").split(", "))
    assert able <= named
    assert "scripted" not in named


def test_a_hosted_model_is_one_engine_for_all_who_ask_it_so_its_rate_limits_hold():
    pytest.importorskip("litellm")
    spec = {"engine": "litellm", "model": "openai/x", "requests_per_minute": 60}
    hosted = {"strategy": "self_consistency", "model": spec}
    [first], [second] = abduce.build(**hosted).engines, abduce.build(**hosted, n=3).engines
    assert first is second
    [other] = abduce.build(**hosted | {"model": spec | {"model": "openai/y"}}).engines
    assert other is not first


def test_a_limit_in_money_is_refused_where_no_price_is_known():
    class Unpriced(Scripted):
        def priced(self):
            return False

    wanting = {"strategy": "self_consistency", "model": Unpriced("The answer is 1.")}
    assert abduce.solve("Which?", budget="9 calls", **wanting).answer == "1"
    with pytest.raises(UsageError, match="no price of scripted is known"):
        abduce.solve("Which?", budget="9 calls, 1 usd", **wanting)
    steps = as_workflow(abduce.build(budget="1 usd", **wanting))
    with pytest.raises(UsageError, match="no price of scripted is known"):
        steps.solve("Which?")


def test_an_answer_of_a_kind_that_is_not_read_is_told_and_words_are_read():
    paris = {
        "strategy": "self_consistency",
        "model": {"engine": "scripted", "replies": "The answer is Paris."},
    }
    result = abduce.solve("The capital of France?", **paris)
    assert result.answer is None and "kind 'number'" in result.diagnostics["unanswered"]
    assert abduce.solve("The capital of France?", policy="words", **paris).answer == "paris"
    assert "unanswered" not in abduce.solve(TASK, **RIGHT).diagnostics


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "openai:gpt-4o-mini"}, "litellm:openai/gpt-4o-mini"),
        ({"model": "gpt-4o-mini"}, "litellm:openai/gpt-4o-mini"),
        (
            {"model": {"engine": "openai", "model": "mine"}},
            "{engine: litellm, model: openai/mine, api_base: URL}",
        ),
        ({"model": {"engine": "litellm", "model": "openai/x", "base_url": "x"}}, "Write api_base."),
        ({"temperature": 0.2}, "policy={'preset': 'cot', 'sampling': {'temperature': …}}"),
        (
            {"policy": {"preset": "cot", "temperature": 0.2}},
            "policy.sampling.temperature, as in {sampling: {temperature: …}}",
        ),
        ({"observers": print}, "observers is a list"),
    ],
)
def test_what_others_call_it_is_told_as_it_is_called_here(options, told):
    with pytest.raises(UsageError) as error:
        solve(**options)
    assert told in str(error.value)


def test_nothing_is_left_behind_by_a_mistake(tmp_path):
    with pytest.raises(UnknownName):
        solve(strategy="best_of_m", store=Runs(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- a memory


class Asking:
    """Answers with what the memory finds."""

    def solve(self, task, *, seed):
        [found] = yield [Recall(task.question, 1)]
        return Result(found[0].entry.text, "")


async def test_a_strategy_of_ones_own_asks_the_memory_it_is_given():
    memory = InMemory()
    await memory.write([Entry("crop", "crop to the object")])
    found = await abduce.asolve("crop it", strategy=Asking(), model=RIGHT["model"], memory=memory)
    assert found.answer == "crop to the object"


@pytest.mark.parametrize(
    ("memory", "told"), [(3, "a name such as 'concepts.db' or a store, got 3"), ("./m.db", "name of a file")]
)
def test_what_is_no_memory_is_told(memory, told):
    with pytest.raises(UsageError, match=told):
        abduce.build(strategy="arcmemo", model=RIGHT["model"], memory=memory)


def test_a_memory_by_its_name_is_that_of_recipes_and_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    replies = {"as concise pseudocode": "", "Write down the concepts": "- {concept: count, kind: routine}"}
    model = {"engine": "scripted", "replies": {**replies, "": "The answer is 56."}}
    runs, words = Runs(tmp_path / "runs"), {"strategy": "arcmemo", "memory": "m.db", "model": model}
    result = abduce.solve(TASK, **words, store=runs)
    assert result.diagnostics["version"] == 1 and (tmp_path / "memory" / "m.db").exists()
    again_ = again(runs.open("last").record)
    assert "count" in [entry.name for entry in asyncio.run(again_.services.memory.everything())]
    assert again_.solve(TASK).diagnostics["memory"][0]["names"] == []  # read, and nothing of it chosen


# ---------------------------------------------------------------- endings


@pytest.mark.parametrize("resource", ["tokens", "output_tokens", "calls", "seconds"])
@pytest.mark.parametrize("strategy", ["best_of_n", "beam", "particle_filter", "a_star", "mcts", "dvts"])
def test_a_budget_of_nothing_buys_nothing_and_says_so(strategy, resource):
    model = Scripted("The answer is 56.")
    result = abduce.solve(TASK, strategy=strategy, model=model, reward="checks", budget={resource: 0})
    assert (result.answer, result.complete, result.usage.calls) == (None, False, 0)
    assert result.diagnostics["stopped"] == f"budget of 0 {resource} is used up"


@pytest.mark.parametrize("strategy", ["beam", "particle_filter", "a_star", "mcts", "dvts"])
def test_an_engine_that_dies_on_the_way_leaves_what_there_is(tmp_path, strategy):
    alive = iter(range(3))

    def say(request, seed):
        if next(alive, None) is None:
            raise EngineError("the machine is gone")
        return [f"Step {seed % 7 + i}.\n\n" for i in range(request.n)]

    runs = Runs(tmp_path)
    model = Scripted(say, rate=lambda request: 0.3)
    result = abduce.solve(TASK, strategy=strategy, model=model, reward="rate", store=runs)
    assert not result.complete
    assert "the machine is gone" in result.diagnostics["stopped"]
    assert result.text.startswith("Step ")
    run = runs.open("last")
    assert run.result["text"] == result.text
    drawn = [event["reply"] for event in read(run.trace) if event.get("call") == "Generate"]
    assert sum(isinstance(reply, list) for reply in drawn) == 3
    journal = run.journal()
    assert len(journal) == result.usage.calls
    journal.close()


def test_a_reward_that_is_no_number_leaves_a_result_that_says_why():
    judge = Scripted("", rate=lambda request: math.nan)
    result = solve(models={"reward": judge}, reward={"kind": "rate", "squash": "none"})
    assert not result.complete
    assert "returned NaN" in result.diagnostics["stopped"]
    assert result.answer in ("54", "56")
    assert all(candidate.score in (None, 0.0) for candidate in result.candidates)


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda states: [0.5 for _ in states], "begins with: yield from ()"),
        (lambda states: flow([0.5] * (len(states) + 1)), "One each is wanted"),
        (lambda states: flow(None), "must return a list of scores"),
        (lambda states: flow(["0.5" for _ in states]), "A score is a number in [0, 1] or a Failure"),
    ],
)
def test_a_reward_of_ones_own_that_is_none_is_told_what_it_should_be(score, told):
    class Mine:
        def score(self, states):
            return score(states)

    with pytest.raises(UsageError) as error:
        solve(reward=Mine())
    assert told in str(error.value) and "Mine" in str(error.value)


def test_scores_of_any_number_type_are_floats():
    class Mine:
        def score(self, states):
            return flow([Fraction(1, 2) for _ in states])

    assert {type(c.score) for c in solve(reward=Mine()).candidates} == {float}


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (Result("5", "5"), "begins with: yield from ()"),
        ("5", "must be a flow"),
        (None, "must return a Result"),
    ],
)
def test_a_strategy_of_ones_own_that_is_none_is_told_what_it_should_be(made, told):
    class Mine:
        def solve(self, task, *, seed):
            return flow(None) if made is None else made

    with pytest.raises(UsageError, match="Mine") as error:
        abduce.solve("Which?", strategy=Mine(), model=RIGHT["model"])
    assert told in str(error.value)


def flow(value):
    yield from ()
    return value


def test_a_strategy_that_does_not_catch_the_end_has_a_result_too():
    class Careless:
        def solve(self, task, *, seed):
            yield [Generate(Prompt.user(task.question))]
            return Result("never", "")

    result = abduce.solve(TASK, strategy=Careless(), model=RIGHT["model"], budget="0 calls")
    assert (result.answer, result.complete) == (None, False)
    assert result.diagnostics["stopped"] == "budget of 0 calls is used up"


# ---------------------------------------------------------------- stores and observers


def test_a_stored_run_holds_all_of_it(tmp_path):
    runs, seen = Runs(tmp_path), []
    result = solve(store=runs, observers=[seen.append], seed=5)
    run = runs.open("last")
    assert (run.record["seed"], run.record["task"]["question"]) == (5, TASK.question)
    assert Candidate(**run.result["candidates"][0]) == result.candidates[0]
    kinds = [event["event"] for event in read(run.trace)]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_ended")
    assert sorted(kinds) == sorted(event.kind for event in seen)


def test_a_run_that_goes_on_calls_no_engine_and_ends_the_same(tmp_path):
    runs = Runs(tmp_path)
    first = solve(store=runs)
    dead = abduce.build(**RIGHT | {"model": Scripted(lambda request, seed: 1 / 0)})
    assert dead.solve(TASK, run=runs.open("last")) == first


def test_a_run_goes_on_only_as_what_it_was(tmp_path):
    runs = Runs(tmp_path)
    solve(store=runs, seed=1)
    with pytest.raises(abduce.AbduceError, match="another run"):
        abduce.build(**RIGHT).solve(TASK, seed=2, run=runs.open("last"))

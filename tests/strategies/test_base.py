"""Laws of the contracts: states, policies, and what every baseline owes its caller."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called
from abduce.serving.errors import EngineError
from abduce.serving.flow import Failure, Usage
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import Result, State, Step, requirements
from abduce.strategies.policy import StepPolicy
from abduce.strategies.rewards.rate import RateReward
from abduce.strategies.toys import ToyTree, drain

from .baselines import BASELINES, MODEL, TASK, Runner, baseline

each_baseline = pytest.mark.parametrize("name", BASELINES)


def walk(*steps: Step) -> State:
    state = State(TASK)
    for step in steps:
        state = state.extend(step)
    return state


# ---------------------------------------------------------------- states


def test_a_state_is_what_its_steps_say():
    steps = (Step("a", (1,), -0.5), Step("b", (2, 3), -1.0), Step("c", (4,), -0.25))
    state = walk(*steps)
    assert state.steps == steps
    assert (state.text, state.ids, state.logp, state.depth) == ("abc", (1, 2, 3, 4), -1.75, 3)


@pytest.mark.parametrize("lacking", range(3))
def test_ids_and_logp_are_known_only_if_every_step_has_them(lacking):
    steps = [Step("a", (1,), -1.0)] * 3
    steps[lacking] = Step("a")
    state = walk(*steps)
    assert state.text == "aaa"
    assert state.ids == ()
    assert state.logp is None


def test_the_empty_solution_is_certain_and_empty():
    state = State(TASK)
    assert (state.text, state.ids, state.steps, state.depth) == ("", (), (), 0)
    assert state.logp == 0


def test_the_same_text_drawn_twice_is_two_states_with_seeds_of_their_own():
    root = State(TASK)
    first, second = root.extend(Step("a"), 0), root.extend(Step("a"), 1)
    assert first != second
    assert first.lineage != second.lineage
    assert first.lineage == State(TASK).extend(Step("b"), 0).lineage  # where, not what


def test_a_long_solution_is_read_without_recursion_errors():
    state = State(TASK)
    for i in range(5000):
        state = state.extend(Step("x", (i,)))
        assert len(state.text) == i + 1  # as a search reads it: step by step
        assert state.ids[-1] == i


# ---------------------------------------------------------------- policies


def test_complete_draws_to_the_end_and_a_failure_ends_its_branch_alone():
    class Fragile(ToyTree):
        def propose(self, states, counts, seeds):
            rows = yield from super().propose(states, counts, seeds)
            return [[Failure("engine", "lost") if s.text == "a" else s for s in row] for row in rows]

    outcomes = drain(Fragile(3, 5, seed=0).complete(State(TASK), 40, seed=1))
    lost = [o for o in outcomes if isinstance(o, Failure)]
    assert len(outcomes) == 40 and 0 < len(lost) < 40
    assert all(o.text.endswith(".") and "a" not in o.text for o in outcomes if o not in lost)


def test_forcing_is_an_ordinary_step_by_default():
    tree = ToyTree(3, 5, seed=0)
    states = [State(TASK), walk(Step("a"))]
    forced = drain(tree.force(states, [7, 8]))
    assert forced == [row[0] for row in drain(tree.propose(states, [1, 1], [7, 8]))]


def test_requirements_of_all_parts_are_joined():
    strategy = replace(baseline("dvts"), policy=StepPolicy(logprobs=True), reward=RateReward())
    assert requirements(strategy) == {
        "policy": frozenset({"generate", "logprobs"}),
        "reward": frozenset({"rate"}),
    }


# ---------------------------------------------------------------- every baseline


@each_baseline
def test_same_seed_same_result(name):
    first, again, other = (Runner(MODEL).run(baseline(name).solve(TASK, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert first.complete and first.answer is not None
    json.dumps(dict(first.diagnostics), allow_nan=False)


@each_baseline
async def test_the_driver_gets_the_same_result_however_much_runs_at_once(name):
    alone = Runner(MODEL).run(baseline(name).solve(TASK, seed=1))
    together = await Driver(Services({"policy": MODEL}), seed=9).run(baseline(name).solve(TASK, seed=1))
    assert together == alone


@each_baseline
@pytest.mark.parametrize("times", [1, 10**6])
def test_the_budget_may_end_at_any_yield(name, times):
    """In forked branches too; once, so that what was kept back can be used, or for good."""
    strategy = baseline(name)
    whole = Runner(MODEL)
    result = whole.run(strategy.solve(TASK, seed=1))
    for at in range(whole.yields):
        cut = Runner(MODEL, at, times).run(strategy.solve(TASK, seed=1))
        assert isinstance(cut, Result)
        assert cut == result or (not cut.complete and "budget" in cut.diagnostics["stopped"]), at
        assert times > 1 or cut.answer is not None  # one was found or forced


class Down(Synthetic):
    """Cannot say a word."""

    async def generate(self, request, *, seed):
        raise EngineError("the engine is down")


class Mute(Synthetic):
    """Cannot judge."""

    async def rate(self, request):
        raise EngineError("the judge is away")


@each_baseline
def test_when_every_proposal_fails_the_result_says_why(name):
    result = Runner(Down()).run(baseline(name).solve(TASK, seed=1))
    assert (result.complete, result.answer, result.candidates) == (False, None, ())
    assert "the engine is down" in result.diagnostics["stopped"]
    assert result.diagnostics["proposals"] == result.diagnostics["failed_proposals"] > 0


@pytest.mark.parametrize("name", [name for name in BASELINES if hasattr(baseline(name), "reward")])
def test_when_nothing_can_be_scored_there_is_an_answer_and_the_reason(name):
    engine = Mute(seed=3, alphabet="abc", depth=4)
    result = Runner(engine).run(baseline(name).solve(TASK, seed=1))
    assert not result.complete and result.answer is not None
    assert result.diagnostics["stopped"] == "no state could be scored: the judge is away"


class Counting(Synthetic):
    """Adds up what it served."""

    def __init__(self, **options):
        super().__init__(**options)
        self.served = Usage()

    async def generate(self, request, *, seed):
        served = await super().generate(request, seed=seed)
        self.served += served.usage
        return served

    async def rate(self, request):
        served = await super().rate(request)
        self.served += served.usage
        return served


@each_baseline
async def test_trace_ledger_search_and_engine_agree_on_every_token(name):
    engine, traced = Counting(seed=3, alphabet="abc", depth=4), []
    driver = Driver(Services({"policy": engine}), observers=[traced.append])
    result = await driver.run(baseline(name).solve(TASK, seed=1))
    assert sum((e.usage for e in traced if isinstance(e, Called)), Usage()) == engine.served
    ledger, served = driver.ledger.usage, engine.served
    assert (ledger.tokens, ledger.output_tokens, ledger.calls) == (
        served.tokens,
        served.output_tokens,
        served.calls,
    )
    spoken = sum(
        sample.n_tokens
        for event in traced
        if isinstance(event, Called) and getattr(event.request, "model", "") == "policy"
        for sample in event.reply
    )
    assert result.diagnostics["tokens"] == spoken > 0
    assert result.diagnostics["reward_passes"] == sum(
        type(event.request).__name__ == "Rate" for event in traced if isinstance(event, Called)
    )


@each_baseline
async def test_more_calls_never_exceed_the_limit_and_end_in_the_whole_result(name):
    whole = Runner(MODEL).run(baseline(name).solve(TASK, seed=1))
    complete = []
    for calls in (1, 2, 3, 5, 8, 13, 200):
        driver = Driver(Services({"policy": MODEL}), budget=Budget(calls=calls))
        result = await driver.run(baseline(name).solve(TASK, seed=1))
        assert driver.ledger.usage.calls <= calls
        assert result == whole if result.complete else "budget" in result.diagnostics["stopped"]
        complete.append(result.complete)
    assert complete[-1]
    assert all(later >= earlier for earlier, later in pairwise(complete))

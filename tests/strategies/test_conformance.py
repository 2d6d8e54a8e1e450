"""What every registered strategy must do, whoever wrote it. Registering is enough to be tested."""

import asyncio
import json
import math
import random
from dataclasses import is_dataclass, replace

import pytest

from abduce.orchestrator.codec import dumps
from abduce.orchestrator.commands.show import about
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Called, comparable, row
from abduce.serving.errors import EngineError
from abduce.serving.flow import Usage
from abduce.serving.synthetic import Synthetic
from abduce.strategies import STRATEGIES, strategy
from abduce.strategies.base import Result, Task
from abduce.strategies.policy import StepPolicy

TASK = Task("toy")
POLICY = StepPolicy(prompt="plain", answer_kind="text")
NAMES = sorted(STRATEGIES)


class Counted(Synthetic):
    """A synthetic model that counts what it serves, answers out of order, and can fail."""

    def __init__(self, *, shuffle=0, dies_after=math.inf, score=None, **parameters):
        super().__init__(**{"seed": 3, **parameters})
        self.random = random.Random(shuffle)
        self.shuffled = shuffle > 0
        self.dies_after = dies_after
        self.score = score
        self.served = Usage()
        self.calls = 0

    async def generate(self, request, *, seed):
        return await self._serve(super().generate(request, seed=seed))

    async def rate(self, request):
        served = await self._serve(super().rate(request))
        return served if self.score is None else served._replace(value=self.score)

    async def _serve(self, reply):
        self.calls += 1
        if self.calls > self.dies_after:
            reply.close()
            raise EngineError("the engine has died")
        if self.shuffled:
            await asyncio.sleep(self.random.random() * 0.002)
        served = await reply
        self.served += served.usage
        return served


def made(name, **parameters):
    """A strategy on the synthetic model's own scores, if it takes a reward at all."""
    fields = strategy(name).__dataclass_fields__
    reward = {"kind": "rate", "squash": "none"} if "reward" in fields else None
    return build(strategy=name, policy=POLICY, reward=reward, model=Synthetic(), **parameters).strategy


async def run(name, engine, *, seed=0, budget=None, observers=(), concurrency=None):
    services = Services({"policy": engine})
    driver = Driver(services, seed=seed, budget=budget, observers=observers, concurrency=concurrency)
    result = await driver.run(made(name).solve(TASK, seed=seed))
    return result, driver.ledger.usage


@pytest.mark.parametrize("name", NAMES)
async def test_it_solves_and_every_call_is_counted(name):
    engine, events = Counted(), []
    result, usage = await run(name, engine, observers=[events.append])
    assert isinstance(result, Result)
    assert result.complete and result.answer is not None
    assert result.candidates and result.text in {c.text for c in result.candidates}
    assert replace(usage, reward_passes=0) == engine.served
    traced = sum((event.usage for event in events if isinstance(event, Called)), Usage())
    assert traced == engine.served


@pytest.mark.parametrize("name", NAMES)
async def test_its_counts_are_those_of_the_ledger(name):
    result, usage = await run(name, Counted())
    facts = result.diagnostics
    if name not in ("revision", "spar"):  # whose critic is no proposal
        assert facts["tokens"] == usage.output_tokens
    assert usage.reward_passes == facts["reward_passes"]
    assert facts["nodes"] == facts["proposals"] - facts["duplicates"] - facts["failed_proposals"] + 1


@pytest.mark.parametrize("name", NAMES)
async def test_same_seed_same_trace_for_any_concurrency_and_any_order_of_replies(name):
    async def trace(seed=0, **options):
        events = []
        shuffle = options.pop("shuffle", 0)
        await run(name, Counted(shuffle=shuffle), seed=seed, observers=[events.append], **options)
        return comparable(map(row, events))

    first = await trace()
    for limit in (None, 1, 3):
        assert await trace(shuffle=7, concurrency=limit) == first
    assert await trace(seed=1) != first


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("calls", [0, 1, 2, 3, 7])
async def test_a_budget_holds_and_the_best_so_far_is_returned(name, calls):
    whole, _ = await run(name, Counted())
    result, usage = await run(name, Counted(), budget=Budget(calls=calls))
    assert usage.calls <= calls
    if not result.complete:
        assert "calls" in result.diagnostics["stopped"]
    else:
        assert result.answer == whole.answer


@pytest.mark.parametrize("name", NAMES)
async def test_tokens_overshoot_by_one_calls_output_cap_at_most(name):
    cap = POLICY.max_solution_tokens
    for tokens in (0, 10, 60, 200):
        _, usage = await run(name, Counted(), budget=Budget(output_tokens=tokens))
        assert usage.output_tokens <= tokens + cap


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_an_engine_that_dies_leaves_a_partial_result_with_the_reason(name, after):
    result, _ = await run(name, Counted(dies_after=after))
    told = json.dumps(result.diagnostics, default=str)
    if after == 0:
        assert not result.complete and result.answer is None
    assert "the engine has died" in told or result.complete


@pytest.mark.parametrize("name", NAMES)
async def test_a_reward_of_nan_is_told_and_never_made_up(name):
    if "reward" not in strategy(name).__dataclass_fields__:
        pytest.skip("takes no reward")
    result, _ = await run(name, Counted(score=math.nan))
    assert not result.complete
    assert "NaN" in result.diagnostics["stopped"]
    assert all(candidate.score in (None, 0.0) for candidate in result.candidates)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_frozen_dataclass_with_a_policy(name):
    kind = strategy(name)
    assert is_dataclass(kind) and kind.__dataclass_params__.frozen
    assert "policy" in kind.__dataclass_fields__


@pytest.mark.parametrize("name", NAMES)
async def test_its_result_is_json(name):
    result, _ = await run(name, Counted())
    assert json.loads(dumps(result))["answer"] == result.answer


@pytest.mark.parametrize("name", NAMES)
def test_its_file_tells_the_idea_and_the_source(name):
    idea, source = about(name)
    assert 20 < len(idea) < 120
    assert "arXiv" in source or name == "dvts"

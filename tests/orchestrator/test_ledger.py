"""Budgets hold under concurrency."""

import pytest
from flows import Echo, ask, chain
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.orchestrator.background import wait_for
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget, Ledger, Need
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import comparable, row
from abduce.serving.base import Served
from abduce.serving.errors import BudgetExhausted, TransientError, UsageError
from abduce.serving.flow import Fork, Generate, LogLikelihood, LogProb, Prompt, Sampling, Usage


def greedy(branch: int, cap: int):
    """Asks until it may no more."""
    calls = 0
    try:
        while True:
            [reply] = yield [ask(f"{branch}", cap)]
            if not isinstance(reply, tuple):
                return calls
            calls += 1
    except BudgetExhausted:
        return calls


def forest(branches: int, cap: int):
    [calls] = yield [Fork(tuple(greedy(b, cap) for b in range(branches)))]
    return sum(calls)


def run(budget: Budget, *, branches: int = 64, cap: int = 20, lengths=(3, 17, 9), limit=None, shuffle=0):
    engine = Echo(lambda request, seed: "x" * lengths[seed % len(lengths)], delay_s=0.001, shuffle=shuffle)
    driver = Driver(Services({"policy": engine}), budget=budget, concurrency=limit)
    calls = wait_for(driver.run(forest(branches, cap)))
    return calls, driver.ledger.usage


@settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(0, 3000),
    cap=st.integers(1, 100),
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=5),
    resource=st.sampled_from(["tokens", "output_tokens"]),
    shuffle=st.integers(0, 10),
)
def test_64_branches_overshoot_by_at_most_one_calls_output_cap(limit, cap, lengths, resource, shuffle):
    budget = Budget(**{resource: limit, "finish": 0.0})
    calls, usage = run(budget, cap=cap, lengths=lengths, shuffle=shuffle)
    spent = usage.tokens if resource == "tokens" else usage.output_tokens
    assert spent <= limit + cap
    needed = cap + (2 if resource == "tokens" else 0)  # and no branch stops while a whole call still fits
    assert spent > limit - needed or calls == 0


def test_the_bound_would_notice_a_ledger_that_does_not_reserve(monkeypatch):
    def spent_alone(self, amount):
        return all(self._used[name] < limit for name, limit in self._soft.items())

    monkeypatch.setattr(Ledger, "_fits", spent_alone)
    _, usage = run(Budget(output_tokens=100, finish=0.0), cap=20, lengths=(20,))
    assert usage.output_tokens > 100 + 20


@given(limit=st.integers(0, 200))
@settings(max_examples=20, deadline=None)
def test_calls_are_exact(limit):
    calls, usage = run(Budget(calls=limit, finish=0.0))
    assert calls == usage.calls == limit


def test_the_reserve_is_for_finalising_only():
    def flow():
        done = 0
        for phase in ("search", "finalise"):
            try:
                while True:
                    yield [ask(phase)]
                    done += 1
            except BudgetExhausted:
                done *= 1000 if phase == "search" else 1
        return done

    driver = Driver(Services({"policy": Echo()}), budget=Budget(calls=20, finish=0.1))
    assert wait_for(driver.run(flow())) == 18 * 1000 + 2


@pytest.mark.parametrize("limit", [None, 1, 3])
@pytest.mark.parametrize("shuffle", [0, 1])
def test_a_batch_is_cut_at_the_same_place_whatever_the_order_of_replies(limit, shuffle):
    def flow():
        try:
            while True:
                yield [ask(f"{i}", 30) for i in range(8)]
        except BudgetExhausted:
            return None

    def trace(**options):
        events = []
        engine = Echo(
            lambda request, seed: "x" * (seed % 30), delay_s=0.002, shuffle=options.pop("shuffle", 0)
        )
        budget = Budget(tokens=500)
        driver = Driver(Services({"policy": engine}), budget=budget, observers=[events.append], **options)
        wait_for(driver.run(flow()))
        return comparable(map(row, events))

    assert trace(concurrency=limit, shuffle=shuffle) == trace()


@settings(max_examples=40, deadline=None)
@given(
    limit=st.integers(3, 2000),
    cap=st.integers(1, 60),
    counts=st.lists(st.integers(1, 64), min_size=1, max_size=6),
    resource=st.sampled_from(["tokens", "output_tokens"]),
    shuffle=st.integers(0, 3),
)
def test_requests_of_many_samples_overshoot_by_at_most_one_sample(limit, cap, counts, resource, shuffle):
    def flow():
        return (yield [Generate(Prompt(prefix="ab"), n, Sampling(max_tokens=cap)) for n in counts])

    def drawn(shuffle):
        engine = Echo(lambda request, seed: "x" * (seed % 99), delay_s=0.001, shuffle=shuffle)
        driver = Driver(Services({"policy": engine}), budget=Budget(**{resource: limit, "finish": 0.0}))
        return wait_for(driver.run(flow())), driver.ledger.usage

    replies, usage = drawn(shuffle)
    spent = usage.tokens if resource == "tokens" else usage.output_tokens
    assert spent < limit + cap
    assert all(not isinstance(r, tuple) or 1 <= len(r) <= n for r, n in zip(replies, counts, strict=True))
    assert (replies, usage) == drawn(shuffle + 1)


def test_samples_that_use_less_than_their_cap_leave_room_for_the_others():
    def flow():
        return (yield [Generate(Prompt(prefix="ab"), 16, Sampling(max_tokens=100), seed=5)])

    seeds = []

    def say(request, seed):
        seeds.append((request.n, seed))
        return "x" * 10

    driver = Driver(Services({"policy": Echo(say)}), budget=Budget(output_tokens=400, finish=0.0))
    [reply] = wait_for(driver.run(flow()))
    assert len(reply) == 16
    assert driver.ledger.usage.output_tokens == 160
    assert seeds[0][0] == 4 and len({seed for _, seed in seeds}) == len(seeds)


@settings(max_examples=30, deadline=None)
@given(limit=st.integers(1, 40), branches=st.integers(1, 12), faults=st.integers(0, 4))
def test_retries_are_calls_within_the_budget(limit, branches, faults):
    served = 0

    def say(request, seed):
        nonlocal served
        served += 1
        if served % (faults + 1):
            raise TransientError("connection lost")
        return "ok"

    driver = Driver(
        Services({"policy": Echo(say)}), budget=Budget(calls=limit, finish=0.0), backoff_s=0.0, retries=3
    )
    wait_for(driver.run(forest(branches, 20)))
    assert driver.ledger.usage.calls == served <= limit
    assert not any(driver.ledger._reserved.values())


@pytest.mark.parametrize("given_as", [{"continuation": "x" * 30}, {"continuation_ids": (1,) * 30}])
async def test_a_continuation_to_be_scored_is_reserved(given_as):
    class Scorer(Echo):
        async def logprob(self, request):
            return Served(LogLikelihood((-1.0,)), Usage(input_tokens=32, calls=1))

    def flow():
        return (yield [LogProb(Prompt(prefix="ab"), **given_as)] * 8)

    driver = Driver(Services({"policy": Scorer()}), budget=Budget(tokens=100, finish=0.0))
    await driver.run(flow())
    assert driver.ledger.usage.tokens == 96


@pytest.mark.parametrize("swallowed", [True, False])
async def test_the_end_of_a_branch_opens_the_reserve_for_the_root(swallowed):
    def flow():
        counted = 0
        if swallowed:
            yield [Fork((greedy(0, 3), greedy(1, 3)))]
        else:
            yield [Fork((chain("a", 2),))]
        try:
            while True:
                yield [ask("finish", 3)]
                counted += 1
        except BudgetExhausted:
            return counted

    driver = Driver(Services({"policy": Echo()}), budget=Budget(calls=20, finish=0.1))
    assert await driver.run(flow()) == (2 if swallowed else 16)


async def test_a_waiting_call_that_is_cancelled_gives_its_place_back():
    import asyncio

    ledger = Ledger(Budget(output_tokens=10, finish=0.0))
    whole = Need.of(output_cap=10)
    await ledger.reserve(whole)
    waiting = asyncio.ensure_future(ledger.reserve(whole))
    third = asyncio.ensure_future(ledger.reserve(whole))
    await asyncio.sleep(0)
    waiting.cancel()
    ledger.settle(whole, Usage(output_tokens=1, calls=1))
    await asyncio.wait_for(third, 1)
    assert ledger.usage.output_tokens == 1
    assert waiting.cancelled() or (await asyncio.gather(waiting, return_exceptions=True))


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("8k tokens", {"tokens": 8000}),
        ("8k tokens, 60 s", {"tokens": 8000, "seconds": 60}),
        ("1.5k output tokens, 20 calls", {"output_tokens": 1500, "calls": 20}),
        ("0.05 usd", {"cost_usd": 0.05}),
        ("0 tokens", {"tokens": 0}),
        ("$0.05, 2 minutes", {"cost_usd": 0.05, "seconds": 120}),
        ("1.5 h", {"seconds": 5400}),
        ("60s, 8ktokens", {"seconds": 60, "tokens": 8000}),
    ],
)
def test_budgets_in_words(text, limits):
    assert Budget.parse(text).limits() == limits


@pytest.mark.parametrize("text", ["", "lots", "8k", "8k bananas", "-1 tokens", "8 tokens 9 calls"])
def test_a_budget_that_cannot_be_read_says_what_to_write(text):
    with pytest.raises(UsageError, match="8k tokens, 60 s"):
        Budget.parse(text)


def test_a_resource_is_named_once():
    with pytest.raises(UsageError, match="seconds twice"):
        Budget.parse("60 s, 5 calls, 10 seconds")


@given(
    st.builds(
        Budget,
        tokens=st.none() | st.integers(0) | st.floats(0),
        seconds=st.none() | st.floats(0),
        finish=st.floats(0, 1, exclude_max=True),
    )
)
def test_a_budget_reads_as_it_is_written(budget):
    assert eval(repr(budget)) == budget
    assert float("inf") not in budget.limits().values()
    Ledger(budget)


@pytest.mark.parametrize(
    "bad", [{"tokens": -1}, {"tokens": float("nan")}, {"calls": "many"}, {"finish": 1.0}]
)
def test_a_budget_that_makes_no_sense(bad):
    with pytest.raises(UsageError, match="Write"):
        Budget(**bad)


@pytest.mark.parametrize(
    ("budget", "met"),
    [
        (Budget(seconds=9), True),
        (Budget(seconds=9.0, calls=2), True),
        (Budget(seconds=10), False),
        (Budget(calls=9), False),
        (Budget(), False),
    ],
)
def test_a_limit_that_a_run_no_longer_has_is_not_met(budget, met):
    assert Ledger(budget).is_met_by(BudgetExhausted("seconds", 9.0)) is met

"""Laws of MAXS: exact trees, the cost of a decision, halting, and tools that are run once."""

import math
from collections import Counter
from random import Random

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import comparable, row
from abduce.serving.errors import MissingCapability, UsageError
from abduce.serving.flow import Completion, Failure, Note
from abduce.serving.scripted import Scripted
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import Policy, Step, Task
from abduce.strategies.foresight import calibrated
from abduce.strategies.glimp_router import GlimpRouter
from abduce.strategies.maxs import MAXS
from abduce.strategies.policy import StepPolicy
from abduce.strategies.search import Search
from abduce.strategies.toys import NoisyTask, ToyTree, answers, drain

from .laws import ExactTree, interrupted

TASK = Task("toy")
NEVER = -1.0


def solved(policy, *, seed=0, **parameters):
    return drain(MAXS(policy=policy, **parameters).solve(TASK, seed=seed))


def notes(policy, *, seed=0, **parameters):
    """What each decision tells, and the result."""
    flow, found, replies = MAXS(policy=policy, **parameters).solve(TASK, seed=seed), [], None
    try:
        while True:
            batch = flow.send(replies)
            found += [r.data for r in batch if isinstance(r, Note) and r.kind == "maxs"]
            replies = answers(batch)
    except StopIteration as end:
        return found, end.value


# ---------------------------------------------------------------- exact trees


class LogTrap(Policy):
    """Most go to "a", behind which all steps are unlikely; behind "b" all are nearly certain."""

    requires = {}  # noqa: RUF012

    def ways(self, state):
        if state.depth == 0:
            return {"a": 0.6, "b": 0.4}
        if state.depth == 4:
            return {".": 1.0}
        return dict.fromkeys("pqrstuvw", 1 / 8) if state.text[0] == "a" else {"x": 0.95, "y": 0.05}

    def propose(self, states, counts, seeds):
        yield [Note("toy")]
        return [
            [
                Step(text, logp=math.log(self.ways(state)[text]), n_tokens=1)
                for text in Random(seed).choices(*zip(*self.ways(state).items(), strict=True), k=n)
            ]
            for state, n, seed in zip(states, counts, seeds, strict=True)
        ]

    def terminal(self, state):
        return state.text.endswith(".")

    def answer(self, state):
        return state.text[0] if self.terminal(state) else None


def test_a_trap_is_seen_with_look_ahead_and_not_without():
    def out(**parameters):
        found = [solved(LogTrap(), seed=seed, delta=NEVER, candidates=8, **parameters) for seed in range(60)]
        return sum(result.answer == "b" for result in found)

    greedy = [
        max(LogTrap().ways(Search(TASK, LogTrap(), None, 0).root.state).items(), key=lambda way: way[1])
    ]
    assert greedy == [("a", 0.6)]
    assert out(lookahead=2) >= 57  # all but those that drew no b: 1.7 %
    assert out(lookahead=4) >= 57
    assert out(lookahead=0) <= 3  # the likeliest step, as a greedy decoder takes it


def foresight_of(tree, state, depth):
    """Mean and deviation of F over the look-ahead paths after `state`, of `depth` steps at most, exactly."""

    def below(state, steps, p):
        if tree.terminal(state) or len(steps) == depth:
            yield steps, p
            return
        for draw, (step, q) in enumerate(tree.children(state)):
            yield from below(state.extend(step, draw), [*steps, step.logp], p * q)

    paths = [(sum(steps) / len(steps), p) for steps, p in below(state, [], 1.0)]
    mean = sum(p * F for F, p in paths)
    return mean, math.sqrt(sum(p * (F - mean) ** 2 for F, p in paths))


@pytest.mark.parametrize("paths", [100, 1600])
def test_mean_foresight_converges_to_the_enumerated_expectation(paths):
    tree = ToyTree(3, 5, seed=2)
    [first, *_], _ = notes(tree, paths_per_candidate=paths, max_steps=1, lookahead=8, seed=1)
    search = Search(TASK, tree, None, 1)
    drawn = drain(search.expand([search.root], [4], score=False))[0]  # the same candidates
    for told, node in zip(first["candidates"], drawn, strict=True):
        exact, deviation = foresight_of(tree, node.state, 8)
        assert told["F"] == pytest.approx(exact, abs=4 * deviation / math.sqrt(paths))


# ---------------------------------------------------------------- what a decision costs


class Batches(ToyTree):
    """Counts the batches of proposals that are asked for."""

    asked = 0

    def propose(self, states, counts, seeds):
        self.asked += bool(states)
        return (yield from super().propose(states, counts, seeds))


@pytest.mark.parametrize(("beams", "paths"), [(1, 1), (2, 1), (1, 3)])
def test_proposals_and_batches_are_those_of_the_cost_model(beams, paths):
    for seed in range(10):
        tree = Batches(3, 6, seed=seed)
        decisions, result = notes(
            tree, seed=seed, beams=beams, paths_per_candidate=paths, delta=NEVER, lookahead=3
        )
        proposals = batches = 0
        for decision in decisions:
            if "identical" in decision:
                proposals, batches = proposals + decision["identical"], batches + 1
                continue
            ahead = [n for candidate in decision["candidates"] for n in candidate["N"]]
            proposals += len(decision["candidates"]) + sum(ahead)
            batches += 1 + max(ahead)
        assert result.diagnostics["proposals"] == proposals
        assert tree.asked == result.diagnostics["batches"] == batches
        assert all(len(d.get("candidates", [])) in (0, 4, 4 * beams) for d in decisions)


def test_identical_candidates_are_not_looked_behind():
    decisions, result = notes(ToyTree(1, 4, seed=0), delta=NEVER)
    assert {"step": 0, "identical": 4} in decisions
    assert result.complete


def test_the_rewards_of_a_decision_sum_to_one_and_the_best_is_committed():
    decisions, result = notes(ToyTree(3, 6, seed=3), delta=NEVER)
    path = result.diagnostics["path"]
    for decision in decisions:
        if candidates := decision.get("candidates"):
            assert sum(c["R"] for c in candidates) == pytest.approx(1.0)
            assert max(candidates, key=lambda c: c["R"])["node"] in path


# ---------------------------------------------------------------- halting


def test_halting_never_costs_more_tokens_than_going_on():
    for seed in range(200):
        tree = ToyTree(3, 6, seed=seed)
        on, off = (solved(tree, seed=seed, delta=delta) for delta in (0.004, NEVER))
        assert on.diagnostics["tokens"] <= off.diagnostics["tokens"]
        assert off.diagnostics["halted"] is False


def test_up_to_where_it_halts_a_run_is_the_one_without_halting():
    halted = 0
    for seed in range(40):
        tree = ToyTree(3, 6, seed=seed)
        on, result = notes(tree, seed=seed, delta=0.004)
        off, _ = notes(tree, seed=seed, delta=NEVER)
        assert on == off[: len(on)]
        halted += result.diagnostics["halted"]
    assert halted > 5


def test_below_zero_delta_never_halts_and_a_delta_that_is_not_reached_changes_nothing():
    tree = ToyTree(3, 6, seed=5)
    assert notes(tree, delta=NEVER) == notes(tree, delta=-7.0) == notes(tree, delta=0.0)


def test_a_calibrated_delta_saves_look_ahead_without_loss():
    trees = [ToyTree(2, 6, seed=seed) for seed in range(150)]

    def right(tree, result):
        likely = Counter()
        for leaf, p in tree.leaves():
            likely[tree.answer(leaf)] += p
        return result.answer == max(likely, key=likely.get)

    spreads = [x for t in trees[:50] for x in solved(t, delta=NEVER).diagnostics["variances"]]
    delta = calibrated(spreads, 0.3)
    on = [solved(t, delta=delta) for t in trees[50:]]
    off = [solved(t, delta=NEVER) for t in trees[50:]]
    saved = sum(r.diagnostics["n_ahead"] for r in off) - sum(r.diagnostics["n_ahead"] for r in on)
    gain = sum(map(right, trees[50:], on)) - sum(map(right, trees[50:], off))
    assert saved > 0.15 * sum(r.diagnostics["n_ahead"] for r in off)
    assert gain >= -1  # a point; with intervals and 1,000 trees: benchmarks/maxs.py


@pytest.mark.parametrize("reuse", [True, False])
def test_where_look_ahead_stops_the_best_candidate_is_kept_with_it_or_all_are_discarded(reuse):
    tree = ToyTree(3, 6, seed=1)
    [first], result = notes(tree, delta=1.0, reuse_lookahead=reuse)
    best = max(first["candidates"], key=lambda c: c["R"])
    assert (best["node"] in result.diagnostics["path"]) is reuse
    assert result.diagnostics["halted"] and result.complete


def test_one_candidate_is_the_plain_agent():
    for seed in range(20):
        result = solved(ToyTree(3, 6, seed=seed), candidates=1, lookahead=4, seed=seed)
        assert result.diagnostics["proposals"] == len(result.diagnostics["path"]) - 1
        assert result.diagnostics["variances"] == []


# ---------------------------------------------------------------- choice, beams, ends


def test_sampling_draws_by_the_softmax_of_rewards():
    R = [0.4, 0.3, 0.2, 0.1]
    method = MAXS(policy=ToyTree(2, 2, seed=0), select="sample")
    rng = Random(0)
    drawn = Counter(method.chosen(R, rng)[0] for _ in range(8000))
    weights = [math.exp(r / 0.6) for r in R]
    for c, weight in enumerate(weights):
        p = weight / sum(weights)
        assert drawn[c] / 8000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 8000))


@pytest.mark.parametrize("select", ["argmax", "sample"])
def test_beams_are_distinct_candidates(select):
    method = MAXS(policy=ToyTree(2, 2, seed=0), beams=3, select=select)
    for seed in range(30):
        taken = method.chosen([0.1, 0.4, 0.2, 0.3], Random(seed))
        assert len(set(taken)) == 3
    assert MAXS(policy=ToyTree(2, 2, seed=0), beams=3).chosen([0.1, 0.4, 0.2, 0.3], Random(0)) == [1, 3, 2]


def test_at_the_cap_an_answer_is_forced():
    result = solved(ToyTree(3, 9, seed=0), max_steps=1, lookahead=1, delta=NEVER)
    assert len(result.diagnostics["path"]) == 3  # root, the step, the forced one


def test_only_what_was_committed_to_is_a_candidate_of_the_result():
    for seed in range(20):
        result = solved(ToyTree(3, 5, seed=seed), seed=seed, delta=NEVER)
        assert [candidate.text for candidate in result.candidates] == [result.text]


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_a_limit_leaves_a_finished_solution_if_any_was_seen(at):
    tree = ExactTree(3, 6, seed=4)
    result = interrupted(MAXS(policy=tree, delta=NEVER).solve(TASK, seed=0), at, 1)
    assert result.answer is not None
    assert result.complete or "tokens" in result.diagnostics["stopped"]


def test_failed_draws_end_their_path_and_no_more():
    class Failing(ToyTree):
        def propose(self, states, counts, seeds):
            drawn = yield from super().propose(states, counts, seeds)
            return [
                [Failure("engine", "no") if i % 2 or s.text.endswith("b") else p for i, p in enumerate(ps)]
                for s, ps in zip(states, drawn, strict=True)
            ]

    for seed in range(20):
        result = solved(Failing(3, 5, seed=seed), seed=seed, delta=NEVER)
        assert result.diagnostics["failed_proposals"]


def test_a_policy_without_log_probs_is_told_apart_from_one_with():
    result = solved(NoisyTask(1.0, seed=0))
    assert not result.complete and "log-probabilities" in result.diagnostics["stopped"]

    class Mute(Synthetic):
        capabilities = frozenset({"generate"})

    with pytest.raises(MissingCapability, match="logprobs"):
        build(strategy="maxs", model=Mute())


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"alpha": 0.8, "beta": 0.3}, "alpha and beta"),
        ({"alpha": -0.1}, "alpha and beta"),
        ({"tau": 0.0}, "0.6"),
        ({"candidates": 0}, "at least 1"),
        ({"lookahead": -1}, "at least 0"),
        ({"select": "best"}, "argmax"),
        ({"foresight": "logp"}, "mean_logprob"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        MAXS(policy=ToyTree(2, 2, seed=0), **wrong)


async def test_two_models_that_share_a_solution_both_tell_log_probs():
    policy = GlimpRouter(policy=StepPolicy(prompt="plain", answer_kind="text"), tau=0.9)
    result = await build(strategy=MAXS(policy=policy, delta=NEVER), model=Synthetic(seed=1)).asolve("?")
    assert result.complete and result.diagnostics["variances"]


async def test_an_empty_turn_is_no_beginning_and_costs_nothing_later():
    """A model that ends its turn at once in half of its draws."""
    engine = Scripted(
        lambda request, seed: (
            ["", "The answer is 7."] if not request.prompt.prefix else [Completion("", (), (), "eos")] * 4
        )
    )
    result = await build(strategy="maxs", model=engine, policy="cot").asolve("7?")
    assert result.answer == "7"


# ---------------------------------------------------------------- one seed, one trace


async def traced(concurrency=None, budget=None, **parameters):
    events = []
    policy = StepPolicy(prompt="plain", answer_kind="text")
    engine = Synthetic(seed=2, alphabet="abcd", depth=6)
    driver = Driver(
        Services({"policy": engine}),
        seed=1,
        observers=[events.append],
        concurrency=concurrency,
        budget=budget,
    )
    result = await driver.run(MAXS(policy=policy, **parameters).solve(TASK, seed=1))
    return result, comparable(map(row, events))


@pytest.mark.parametrize("parameters", [{"delta": NEVER}, {"select": "sample", "beams": 2, "delta": NEVER}])
async def test_same_seed_same_trace_however_many_requests_are_under_way(parameters):
    assert (await traced(**parameters))[1] == (await traced(1, **parameters))[1]


async def test_a_budget_ends_a_look_ahead_with_the_best_so_far():
    result, _ = await traced(budget=Budget(calls=9), delta=NEVER)
    assert not result.complete and result.text
    assert "calls" in result.diagnostics["stopped"]

"""Laws of DVTS: subtrees are independent greedy searches, run at once, and the best of them wins."""

from contextlib import suppress

import pytest

from abduce.serving.errors import BudgetExhausted, UsageError
from abduce.serving.flow import Fork
from abduce.serving.seeds import derive
from abduce.strategies.beam import Beam
from abduce.strategies.dvts import DVTS
from abduce.strategies.search import Search
from abduce.strategies.toys import Exhaustive, ToyTree, TrapTree, drain

from .baselines import MODEL, POLICY, REWARD, TASK, Runner, Sums, Table

TREE = ToyTree(3, 5, seed=0)
GREEDY = Beam(policy=TREE, reward=TREE, width=1)


def dvts(policy=TREE, reward=TREE, **parameters) -> DVTS:
    return DVTS(policy=policy, reward=reward, **parameters)


def subtrees(n: int, seed: int, method: Beam = GREEDY) -> list[Search]:
    """The same searches, one after another."""
    parts = [Search(TASK, method.policy, method.reward, derive(seed, "subtree", k)) for k in range(n)]
    for part in parts:
        drain(method.grow(part))
    return parts


def test_the_subtrees_are_one_fork_and_wait_for_each_other_at_no_point():
    flow = dvts(subtrees=3).solve(TASK, seed=0)
    [fork] = next(flow)
    assert isinstance(fork, Fork) and fork.until is None
    assert len(fork.flows) == 3


@pytest.mark.parametrize("seed", range(5))
def test_it_is_independent_greedy_searches_and_the_best_leaf_of_all(seed):
    parts = subtrees(4, seed)
    result = drain(dvts(subtrees=4).solve(TASK, seed=seed))
    leaves = [leaf for part in parts for leaf in part.terminals]
    assert sorted(c.text for c in result.candidates) == sorted(leaf.state.text for leaf in leaves)
    assert result.text == max(leaves, key=lambda leaf: leaf.score).state.text


@pytest.mark.parametrize("seed", range(5))
def test_accounts_are_the_sums_of_the_subtrees(seed):
    parts = subtrees(3, seed)
    facts = drain(dvts(subtrees=3).solve(TASK, seed=seed)).diagnostics
    for count in ("proposals", "tokens", "expansions", "reward_passes", "duplicates"):
        assert facts[count] == sum(getattr(part.counts, count) for part in parts)
    assert facts["nodes"] == 1 + sum(len(part.nodes) - 1 for part in parts)


def test_the_order_in_which_subtrees_run_changes_nothing():
    class Backwards(Runner):
        def reply(self, request):
            if isinstance(request, Fork):
                return tuple(reversed([self.branch(flow) for flow in reversed(request.flows)]))
            return super().reply(request)

    method = dvts(POLICY, REWARD, subtrees=3, expand=2)
    assert Backwards(MODEL).run(method.solve(TASK, seed=0)) == Runner(MODEL).run(method.solve(TASK, seed=0))


def test_subtrees_keep_first_steps_apart_that_a_beam_gives_up():
    """More first steps lead to a finished solution than in one beam of equal cost."""

    def first_steps(method):
        return sum(len({c.text[0] for c in drain(method.solve(TASK, seed=s)).candidates}) for s in range(40))

    trap = TrapTree(3, 5, seed=0)
    beam = Beam(policy=trap, reward=trap, width=1, expand=8)
    assert first_steps(dvts(trap, trap, subtrees=4, expand=2)) > first_steps(beam)


@pytest.mark.parametrize("seed", range(5))
def test_with_a_perfect_value_every_subtree_finds_the_best_leaf(seed):
    toy = Sums(seed)
    result = drain(dvts(Exhaustive(toy), Table(toy.perfect), subtrees=2).solve(TASK, seed=seed))
    assert result.answer == toy.best


def test_one_subtree_out_of_budget_does_not_hold_up_the_others():
    flow = dvts(subtrees=3).solve(TASK, seed=0)
    [fork] = next(flow)
    first, *others = fork.flows
    next(first)
    with pytest.raises(StopIteration) as ended:
        first.throw(BudgetExhausted("tokens", 9))
    results = (ended.value.value, *map(drain, others))
    with pytest.raises(StopIteration) as end:
        flow.send([results])
    result = end.value.value
    leaves = [leaf for part in subtrees(3, 0)[1:] for leaf in part.terminals]
    assert result.text == max(leaves, key=lambda leaf: leaf.score).state.text
    assert (result.complete, result.diagnostics["stopped"]) == (False, "budget of 9 tokens is used up")


def test_at_the_depth_limit_the_best_prefix_of_all_is_completed():
    result = drain(dvts(subtrees=3, max_depth=1).solve(TASK, seed=0))
    parts = subtrees(3, 0, Beam(policy=TREE, reward=TREE, width=1, max_depth=1))
    best = max((node for part in parts for node in part.open), key=lambda node: node.score)
    assert result.text.startswith(best.state.text)
    assert result.complete and result.answer is not None


def test_the_path_of_the_result_leads_through_nodes_that_the_trace_knows():
    """No two subtrees give a node the same number."""
    told: list[int] = []

    def listen(flow):
        batch = next(flow)
        with suppress(StopIteration):
            while True:
                for request in batch:
                    if isinstance(request, Fork):
                        parts = tuple(map(listen, request.flows))
                    elif request.kind == "nodes":
                        told.extend(row["id"] for row in request.data["nodes"])
                forked = any(isinstance(request, Fork) for request in batch)
                batch = flow.send([parts] if forked else [None] * len(batch))

    listen(dvts(subtrees=3).solve(TASK, seed=0))
    path = drain(dvts(subtrees=3).solve(TASK, seed=0)).diagnostics["path"]
    assert len(told) == len(set(told))
    assert path[0] == 0 and set(path[1:]) <= set(told)


@pytest.mark.parametrize("wrong", ["subtrees", "expand", "max_depth"])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(UsageError, match="at least 1"):
        dvts(**{wrong: 0})

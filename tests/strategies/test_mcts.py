"""Laws of MCTS: visits and values add up, and the search is as good as its value function."""

import math
from random import Random

import pytest
from scipy import stats

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure
from abduce.serving.seeds import derive
from abduce.strategies.base import Step
from abduce.strategies.mcts import MCTS, Visits
from abduce.strategies.search import Node, Search
from abduce.strategies.toys import Exhaustive, ToyTree, drain

from .baselines import TASK, Says, Sums, Table, blind_and_majority, notes, random_value

TREE = ToyTree(3, 5, seed=0)
EVERY = Exhaustive(TREE)


def mcts(policy=TREE, reward=TREE, **parameters) -> MCTS:
    return MCTS(policy=policy, reward=reward, **parameters)


def simulated(n: int, method: MCTS, seed: int = 0) -> tuple[Search, Visits]:
    """`n` simulations from the root."""
    search, seen, rng = Search(TASK, method.policy, method.reward, seed), Visits(), Random(seed)
    for _ in range(n):
        drain(method.simulate(search, seen, search.root, rng))
    return search, seen


# ---------------------------------------------------------------- visits and values


@pytest.mark.parametrize("n", [1, 5, 40])
def test_every_simulation_is_one_visit_at_every_node_of_its_path(n):
    search, seen = simulated(n, mcts())
    assert seen.n(search.root) == n
    for node in search.nodes:
        below = sum(seen.n(child) for child in node.children)
        assert below <= seen.n(node)
        if node is search.root:
            assert below == n  # each simulation passed to, or drew, a child


def test_the_mean_value_is_that_of_what_was_backed_up():
    """With a reward of 0.5 everywhere every mean is 0.5; a child never visited has its own score."""
    search, seen = simulated(30, mcts(reward=Table(lambda text: 0.5)))
    assert all(seen.q(node) == pytest.approx(0.5) for node in search.nodes[1:])
    search, seen = simulated(10, mcts())
    assert all(seen.q(node) == node.score for node in search.nodes[1:] if not seen.n(node))


def test_the_best_new_child_is_backed_up_or_a_random_one():
    for seed in range(20):
        search, seen = simulated(1, mcts(EVERY), seed)
        assert seen.q(search.root) == max(child.score for child in search.root.children)
    worse = 0
    for seed in range(20):
        search, seen = simulated(1, mcts(EVERY, backup="random"), seed)
        scores = [child.score for child in search.root.children]
        assert seen.q(search.root) in scores
        worse += seen.q(search.root) < max(scores)
    assert 5 < worse < 20


def test_the_bonus_is_the_formula():
    search, seen = Search(TASK, EVERY, TREE, 0), Visits()
    [children] = drain(search.expand([search.root], [1]))
    for _ in range(9):
        seen.back_up([search.root, children[0]], 1.0)
    c = 1.25 + math.log((9 + 19652 + 1) / 19652)
    assert mcts().u(seen, search.root, children[0]) == pytest.approx(c * 3 / 10)
    assert mcts().u(seen, search.root, children[1]) == pytest.approx(c * 3)


def test_the_first_simulation_expands_and_values_one_new_child():
    search, seen = simulated(1, mcts(EVERY))
    [visited] = [child for child in search.root.children if seen.n(child)]
    assert len(search.root.children) == 3
    assert seen.q(search.root) == pytest.approx(visited.score, rel=1e-5)


def test_without_exploration_the_best_so_far_is_followed():
    search, seen = simulated(20, mcts(c_init=0.0, c_base=1e12))
    assert sum(seen.n(child) > 0 for child in search.root.children) <= 2


def test_with_much_exploration_children_are_visited_evenly():
    search, seen = simulated(30, mcts(EVERY, c_init=1e6))
    counts = [seen.n(child) for child in search.root.children]
    assert max(counts) - min(counts) <= 1


def test_a_finished_leaf_is_valued_again_and_nothing_is_drawn_from_it():
    method = mcts(Says(["a"]), Table({"a": 0.7}), expand=1)
    search, seen = simulated(5, method)
    assert search.counts.proposals == 1
    assert seen.n(search.nodes[1]) == 5
    assert seen.q(search.nodes[1]) == pytest.approx(0.7, rel=1e-5)


# ---------------------------------------------------------------- committing


def test_the_most_visited_child_is_committed_to_and_what_is_known_of_it_kept():
    for seed in range(5):
        method = mcts(simulations=8)
        search, seen, rng = Search(TASK, TREE, TREE, seed), Visits(), Random(derive(seed, "mcts"))
        node = search.root
        for note in notes(method.solve(TASK, seed=seed), "commit"):
            known = seen.n(node)
            for _ in range(8):
                drain(method.simulate(search, seen, node, rng))
            assert seen.n(node) == known + 8
            node = method.committed(node.children, seen, rng)
            assert note == {"node": node.id, "visits": seen.n(node)}
        assert node.terminal


def visited(*counts: int) -> tuple[list[Node], Visits]:
    """Three children of a root, visited so often."""
    search, seen = Search(TASK, EVERY, TREE, 0), Visits()
    [children] = drain(search.expand([search.root], [1]))
    for child, n in zip(children, counts, strict=True):
        for _ in range(n):
            seen.back_up([search.root, child], 0.0)
    return children, seen


def test_the_first_of_the_most_visited_wins_a_tie():
    children, seen = visited(1, 3, 3)
    assert mcts().committed(children, seen, Random(0)) is children[1]


def test_sampling_commits_in_proportion_to_visits():
    children, seen = visited(1, 3, 6)
    rng, method = Random(0), mcts(commit="sample")
    drawn = [method.committed(children, seen, rng) for _ in range(3000)]
    assert stats.chisquare([drawn.count(child) for child in children], [300, 900, 1800]).pvalue > 1e-3


def test_the_committed_path_or_the_best_of_all_is_returned():
    for seed in range(10):
        best = drain(mcts().solve(TASK, seed=seed))
        path = drain(mcts(select="path").solve(TASK, seed=seed))
        last = notes(mcts().solve(TASK, seed=seed), "commit")[-1]
        assert best.text == max(best.candidates, key=lambda c: c.score).text
        assert path.diagnostics["path"][-1] == last["node"]
        assert path.candidates == best.candidates


# ---------------------------------------------------------------- how good it is


@pytest.mark.parametrize("seed", range(10))
def test_with_a_perfect_value_it_finds_the_best_leaf(seed):
    toy = Sums(seed)
    method = mcts(Exhaustive(toy), Table(toy.perfect))
    result = drain(method.solve(TASK, seed=seed))
    assert (result.answer, result.complete) == (toy.best, True)


def test_a_perfect_value_is_worth_more_than_a_random_one():
    def found(value):
        toys = [(seed, Sums(seed)) for seed in range(60)]
        results = [drain(mcts(toy, value(toy), simulations=8).solve(TASK, seed=seed)) for seed, toy in toys]
        return sum(result.answer == toy.best for result, (_, toy) in zip(results, toys, strict=True))

    assert found(lambda toy: Table(toy.perfect)) > 2 * found(lambda toy: random_value(toy.start))


def test_with_a_random_value_it_is_not_better_than_majority_at_equal_tokens():
    blind, majority = blind_and_majority(mcts)
    assert blind < majority


# ---------------------------------------------------------------- edges


def test_it_costs_at_most_simulations_times_expand_a_step():
    for seed in range(5):
        facts = drain(mcts(simulations=4, expand=3).solve(TASK, seed=seed)).diagnostics
        assert facts["proposals"] <= 4 * 3 * 6
        assert facts["reward_passes"] <= facts["proposals"]


def test_siblings_that_say_the_same_are_one():
    search, _ = simulated(30, mcts(expand=6))
    for node in search.nodes:
        texts = [child.state.text for child in node.children]
        assert len(set(texts)) == len(texts)


def test_at_the_depth_limit_nothing_is_expanded_and_the_committed_prefix_is_completed():
    for seed in range(5):
        method = mcts(max_depth=1)
        search, _ = simulated(10, method, seed)
        assert max(node.depth for node in search.nodes) == 1
        result = drain(method.solve(TASK, seed=seed))
        assert result.complete and result.answer is not None
        assert result.diagnostics["expansions"] == 1


def test_a_node_that_cannot_be_expanded_ends_the_search_where_it_stands():
    class Stuck(ToyTree):
        def propose(self, states, counts, seeds):
            if states[0].depth:
                yield []
                return [[Failure("engine", "stuck")] * n for n in counts]
            return (yield from super().propose(states, counts, seeds))

    stuck = Stuck(3, 5, seed=0)
    result = drain(mcts(stuck, stuck).solve(TASK, seed=0))
    assert not result.complete
    assert len(result.text) == 1
    assert "stuck" in result.diagnostics["stopped"]


def test_a_step_without_alternatives_is_followed_to_its_end():
    class Chain(ToyTree):
        def children(self, state):
            return [(Step("." if state.depth == 3 else "x", n_tokens=1), 1.0)]

    chain = Chain(1, 9, seed=0)
    assert drain(mcts(chain, chain, select="path").solve(TASK, seed=0)).text == "xxx."


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"simulations": 0}, "at least 1"),
        ({"expand": 0}, "at least 1"),
        ({"max_depth": 0}, "at least 1"),
        ({"c_base": 0}, "above 0"),
        ({"c_init": -1}, "above 0"),
        ({"commit": "best"}, "'visits' or 'sample'"),
        ({"select": "visits"}, "'best' or 'path'"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        mcts(**wrong)

"""Laws of beam search: it keeps W, cuts the rest for good, and is as good as its value function."""

import pytest

from abduce.serving.errors import UnknownName, UsageError
from abduce.strategies.base import Step
from abduce.strategies.beam import VALUES, Beam
from abduce.strategies.best_of_n import BestOfN
from abduce.strategies.search import Search
from abduce.strategies.toys import Exhaustive, ToyTree, TrapTree, drain

from .baselines import TASK, Sums, Table, blind_and_majority, notes

TREE = ToyTree(3, 5, seed=0)


def beam(policy=TREE, reward=TREE, **parameters) -> Beam:
    return Beam(policy=policy, reward=reward, **parameters)


class Asked(ToyTree):
    """Remembers how much was asked of it, depth by depth."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked: list[list[int]] = []

    def propose(self, states, counts, seeds):
        self.asked.append(list(counts))
        return (yield from super().propose(states, counts, seeds))


def grown(method: Beam, seed: int = 0) -> Search:
    search = Search(TASK, method.policy, method.reward, seed)
    assert drain(method.grow(search)) is None
    return search


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize(("width", "expand"), [(1, 4), (2, 3), (4, 4)])
def test_the_first_depth_draws_as_many_as_all_others_at_most(width, expand):
    for seed in range(5):
        tree = Asked(3, 5, seed=seed)
        drain(beam(tree, tree, width=width, expand=expand).solve(TASK, seed=seed))
        first, *others = tree.asked
        assert first == [width * expand]
        assert all(counts == [expand] * len(counts) and len(counts) <= width for counts in others)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_w_best_of_each_depth_go_on_and_the_rest_is_cut(width):
    for seed in range(5):
        search = grown(beam(width=width), seed)
        for depth in range(1, 7):
            level = [node for node in search.nodes if node.depth == depth]
            best = sorted(level, key=lambda node: -node.score)[:width]
            for node in level:
                assert node.pruned == (node not in best and not node.terminal)
                assert not (node.pruned and node.children)


def test_the_best_of_all_finished_solutions_is_returned():
    for seed in range(10):
        result = drain(beam(width=2).solve(TASK, seed=seed))
        chosen = [candidate for candidate in result.candidates if candidate.text == result.text]
        assert chosen[0].score == max(candidate.score for candidate in result.candidates)


def test_what_is_cut_is_told_to_the_trace():
    method = beam(width=2)
    told = [i for note in notes(method.solve(TASK, seed=0), "prune") for i in note["nodes"]]
    assert sorted(told) == [node.id for node in grown(method).nodes if node.pruned]


def test_a_finished_beam_keeps_its_place_aside_and_frees_no_new_one():
    for seed in range(10):
        tree = Asked(3, 5, seed=seed)
        search = grown(beam(tree, tree, width=3, expand=3), seed)
        for depth, counts in enumerate(tree.asked[1:], 1):
            live = [n for n in search.nodes if n.depth == depth and not (n.pruned or n.terminal)]
            assert len(counts) == len(live)


def test_siblings_that_say_the_same_are_one_beam():
    for seed in range(5):
        search = grown(beam(width=4, expand=4), seed)
        for node in search.nodes:
            texts = [child.state.text for child in node.children]
            assert len(set(texts)) == len(texts)


def test_with_width_one_it_is_step_level_best_of_n():
    for seed in range(5):
        search = Search(TASK, TREE, TREE, seed)
        node = search.root
        while not node.terminal:
            [drawn] = drain(search.expand([node], [6], unique=True))
            node = max(drawn, key=lambda child: child.score)
        grew = grown(beam(width=1, expand=6), seed).nodes
        kept = [n.state.text for n in grew if n.children or n is grew[0]]
        assert kept == [n.state.text for n in node.path()[:-1]]


# ---------------------------------------------------------------- how good it is


@pytest.mark.parametrize("seed", range(8))
def test_with_a_perfect_value_it_finds_the_best_leaf(seed):
    toy = Sums(seed)
    result = drain(beam(Exhaustive(toy), Table(toy.perfect), width=1).solve(TASK, seed=seed))
    assert (result.answer, result.complete) == (toy.best, True)


def test_with_a_random_value_it_is_not_better_than_majority_at_equal_tokens():
    blind, majority = blind_and_majority(lambda p, r: beam(p, r, width=2, expand=4))
    assert blind < majority


def test_a_trap_that_looks_best_swallows_a_narrow_beam():
    """What is cut cannot come back: the flaw that A* and particle filters mend."""
    trap = TrapTree(3, 5, seed=0)
    narrow = beam(Exhaustive(trap), trap, width=1)
    wide = beam(Exhaustive(trap), trap, width=2)
    assert drain(narrow.solve(TASK, seed=0)).text.startswith("a")
    assert not drain(wide.solve(TASK, seed=0)).text.startswith("a")


def test_an_endless_beam_holds_everything_and_returns_the_best_leaf():
    result = drain(beam(Exhaustive(TREE), width=10**6).solve(TASK, seed=0))
    best = max((state for state, _ in TREE.leaves()), key=TREE.value)
    assert result.text == best.text
    assert len(result.candidates) == 360


def test_the_best_finished_solution_is_returned():
    for seed in range(5):
        result = drain(beam().solve(TASK, seed=seed))
        best = max(result.candidates, key=lambda c: c.score)
        assert (result.complete, result.text) == (True, best.text)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "worth"), [("last", 0.6), ("min", 0.2), ("product", 0.06), ("mean", 1.3 / 3), ("max", 0.6)]
)
def test_a_prefix_is_worth_what_its_step_scores_say(value, worth):
    scores = {"a": 0.5, "ab": 0.2, "abc": 0.6}
    method = beam(reward=Table(scores), value=value)
    search = Search(TASK, TREE, method.reward, 0)
    path = drain(search.graft(search.root, [Step(letter) for letter in "abc"]))
    assert method.worth(path[-1]) == pytest.approx(worth)
    assert method.worth(search.root) == 0


@pytest.mark.parametrize("value", VALUES)
def test_every_value_chooses_by_itself(value):
    method = beam(value=value, width=2)
    for seed in range(3):
        search = grown(method, seed)
        result = drain(method.solve(TASK, seed=seed))
        assert result.text == max(search.terminals, key=method.worth).state.text


def test_a_constant_reward_keeps_the_first():
    """Ties are broken by order, so nothing depends on chance."""
    method = beam(reward=Table(lambda text: 0.5), width=2, expand=2)
    level = [n for n in grown(method).nodes if n.depth == 1]
    assert [n.pruned for n in level] == [False] * min(2, len(level)) + [True] * (len(level) - 2)


# ---------------------------------------------------------------- edges


def test_at_the_depth_limit_the_best_live_beam_is_completed():
    leaves = {state.text for state, _ in TREE.leaves()}
    for seed in range(5):
        method = beam(max_depth=1, width=2)
        result = drain(method.solve(TASK, seed=seed))
        best = max(grown(method, seed).open, key=lambda node: node.score)
        assert result.complete and result.text in leaves
        assert result.text.startswith(best.state.text)


def test_it_costs_at_most_width_times_expand_a_depth():
    for seed in range(5):
        result = drain(beam(width=3, expand=2).solve(TASK, seed=seed))
        assert result.diagnostics["proposals"] <= 3 * 2 * 6
        assert result.diagnostics["reward_passes"] <= result.diagnostics["proposals"]


def test_one_wide_beam_with_one_step_is_best_of_n():
    """On solutions of one step, W · M draws and the best of them."""

    class Flat(ToyTree):
        def children(self, state):
            return super().children(state) if state.depth < 1 else [(Step("."), 1.0)]

        def terminal(self, state):
            return state.depth == 1

    flat = Flat(3, 5, seed=0)
    for seed in range(5):
        searched = drain(beam(flat, flat, width=2, expand=3).solve(TASK, seed=seed))
        pooled = drain(BestOfN(policy=flat, reward=flat, n=6).solve(TASK, seed=seed))
        assert searched.text == pooled.text
        assert {c.text for c in searched.candidates} == {c.text for c in pooled.candidates}


@pytest.mark.parametrize("wrong", ["width", "expand", "max_depth"])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(UsageError, match="at least 1"):
        beam(**{wrong: 0})


def test_an_unknown_value_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'product'"):
        beam(value="prod")

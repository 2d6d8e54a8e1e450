"""Laws of depth-first search: down the best step first, back for the next, and no further than promised."""

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.tot_dfs import ToTDFS, mean
from abduce.strategies.toys import Exhaustive, ToyTree, drain

from .baselines import TASK, Runner, Sums, Table, blind_and_majority, notes

TREE = ToyTree(3, 5, seed=0)


def dfs(policy=TREE, reward=None, **parameters):
    return ToTDFS(policy=policy, reward=policy if reward is None else reward, **parameters)


def grown(method, seed=0):
    """The whole store after a run."""
    from abduce.strategies.search import Search

    search = Search(TASK, method.policy, method.reward, seed)
    Runner().run(method.descend(search))
    return search


@pytest.mark.parametrize("seed", range(8))
def test_with_a_perfect_value_it_finds_the_best_leaf_at_once(seed):
    toy = Sums(seed)
    method = dfs(Exhaustive(toy), Table(toy.perfect), paths=1)
    result = drain(method.solve(TASK, seed=seed))
    assert (result.answer, result.complete) == (toy.best, True)
    assert result.diagnostics["expansions"] == toy.depth


def test_with_a_random_value_it_is_not_better_than_majority_at_equal_tokens():
    blind, majority = blind_and_majority(lambda p, r: dfs(p, r, threshold=0.0))
    assert blind < majority


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("expand", "prune", "kept"), [(5, 0.4, 3), (4, 0.4, 2), (3, 0.9, 1), (4, 0.0, 4)])
def test_of_each_expansion_the_better_part_is_kept(seed, expand, prune, kept):
    search = grown(dfs(Exhaustive(TREE), TREE, expand=expand, prune=prune, threshold=0.0), seed)
    for node in search.nodes:
        if node.children:
            left = [child for child in node.children if not child.pruned]
            assert len(left) <= max(1, int((1 - prune) * len(node.children) + 1e-9)) <= kept
            gone = [child.score for child in node.children if child.pruned]
            assert not gone or min(child.score for child in left) >= max(gone)


def test_the_best_child_is_followed_first():
    search = grown(dfs(paths=1), seed=3)
    path = search.terminals[0].path() if len(search.terminals) == 1 else None
    for node in search.nodes:
        expanded = [child for child in node.children if child.children]
        if expanded:
            assert expanded[0].score == max(child.score for child in node.children)
    assert path is None or len(path) > 1


@pytest.mark.parametrize("paths", [1, 2, 3])
def test_no_more_paths_are_completed_than_asked_for(paths):
    search = grown(dfs(Exhaustive(TREE), TREE, paths=paths, threshold=0.0, prune=0.0))
    parents = {node.parent for node in search.terminals}
    assert len(search.terminals) >= paths
    assert search.counts.expansions <= TREE.depth + paths - 1 + len(parents)


def test_what_promises_too_little_is_skipped_once_there_is_a_path():
    low = dfs(Exhaustive(TREE), Table(lambda text: 0.2), threshold=0.5)
    assert grown(low).counts.expansions <= TREE.depth + 1
    assert notes(low.solve(TASK, seed=0), "prune")


def test_the_path_of_best_mean_wins():
    result = drain(dfs(Exhaustive(TREE), TREE, threshold=0.0).solve(TASK, seed=0))
    search = grown(dfs(Exhaustive(TREE), TREE, threshold=0.0))
    assert result.text == max(search.terminals, key=mean).state.text


def test_at_the_depth_limit_an_answer_is_drawn_from_the_best():
    result = drain(dfs(max_depth=1).solve(TASK, seed=0))
    assert result.answer is not None
    assert result.diagnostics["expansions"] == 1


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [({"expand": 0}, "at least 1"), ({"paths": 0}, "at least 1"), ({"prune": 1.0}, "prune=0.4")],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        dfs(**wrong)

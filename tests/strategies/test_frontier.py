"""The frontier: order, ties, eviction."""

import random

import pytest

from abduce.strategies.base import Step, Task
from abduce.strategies.frontier import Frontier
from abduce.strategies.search import Search
from abduce.strategies.toys import ToyTree, drain

TREE = ToyTree(2, 9, seed=0)


def nodes(n):
    """A chain of unscored nodes, one deeper than the other."""
    search = Search(Task("toy"), TREE, None, 0)
    return drain(search.graft(search.root, [Step("a")] * n))


def popped(frontier):
    return [frontier.pop() for _ in range(len(frontier))]


def test_least_f_first():
    chain = nodes(50)
    f = {node: random.Random(node.id).random() for node in chain}
    frontier = Frontier()
    for node in chain:
        frontier.push(node, f[node])
    assert popped(frontier) == sorted(chain, key=f.__getitem__)


def test_ties_go_to_the_larger_score_then_the_deeper_then_the_older():
    a, b, c, d = nodes(4)
    a.score, b.score, c.score, d.score = 0.5, 0.9, 0.5, None
    frontier = Frontier()
    for node in (a, b, c, d):
        frontier.push(node, 0.3)
    assert popped(frontier) == [b, c, a, d]


def test_sums_that_differ_by_rounding_alone_tie():
    shallow, deep = nodes(2)
    frontier = Frontier()
    frontier.push(shallow, 0.3)
    frontier.push(deep, 0.1 + 0.2)
    assert frontier.top is deep


def test_the_worst_are_evicted_and_counted():
    chain = nodes(20)
    frontier = Frontier(limit=5)
    for node in chain:
        frontier.push(node, float(node.id * 7 % 20))
    assert (len(frontier), frontier.evicted) == (5, 15)
    assert [node.id * 7 % 20 for node in popped(frontier)] == [0, 1, 2, 3, 4]


def test_an_empty_frontier_has_no_top():
    frontier = Frontier()
    assert frontier.top is None and not frontier
    with pytest.raises(IndexError):
        frontier.pop()

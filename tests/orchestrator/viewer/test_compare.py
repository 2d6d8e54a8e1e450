"""Two trees laid over each other."""

from collections import Counter

import pytest

from abduce.orchestrator.viewer import picture
from abduce.orchestrator.viewer.compare import merged

PAIRS = [
    ("particle_filter", {"seed": 1}),
    ("a_star", {"k": 3}),
    ("mcts", {}),
    ("particle_gibbs", {"seed": 2}),
]


@pytest.fixture(scope="module")
def a(run_of):
    return picture.load(run_of("particle_filter").trace)


@pytest.mark.parametrize(("name", "options"), PAIRS)
def test_each_node_of_both_stands_in_one_row_below_its_parent(run_of, a, name, options):
    b = picture.load(run_of(name, **options).trace)
    rows = merged(a, b)
    assert sorted(i for i, _, _ in rows if i >= 0) == list(range(len(a.nodes)))
    assert sorted(j for _, j, _ in rows if j >= 0) == list(range(len(b.nodes)))
    row_of_a, row_of_b = ({row[k]: n for n, row in enumerate(rows) if row[k] >= 0} for k in (0, 1))
    for n, (i, j, parent) in enumerate(rows):
        assert parent < n
        if i >= 0:
            assert parent == row_of_a.get(a.nodes[i].parent, -1)
        if j >= 0:
            assert parent == row_of_b.get(b.nodes[j].parent, -1)
        if i >= 0 and j >= 0:
            assert a.nodes[i].text == b.nodes[j].text


@pytest.mark.parametrize(("name", "options"), PAIRS)
def test_as_many_meet_as_can(run_of, a, name, options):
    b = picture.load(run_of(name, **options).trace)
    first = [Counter(node.seen.text for node in each.nodes if node.parent < 0) for each in (a, b)]
    met = sum(i >= 0 and j >= 0 and parent < 0 for i, j, parent in merged(a, b))
    assert met == (first[0] & first[1]).total()


def test_a_run_meets_itself_everywhere(a):
    assert [row[:2] for row in merged(a, a)] == [(i, i) for i in range(len(a.nodes))]


def test_against_nothing_all_is_alone(a):
    assert all(j == -1 for _, j, _ in merged(a, picture.Picture()))
    assert all(i == -1 for i, _, _ in merged(picture.Picture(), a))

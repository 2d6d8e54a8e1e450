"""The latent-variable model against its formula, and on data drawn from it."""

import math
import random

import pytest

from abduce.strategies.thinksum.outlier import latent, minority

N, J, RHO = 5, 20, 0.6


def drawn(rng, wrong):
    """Statements about five items, one of them odd, as a labeller that errs tells them."""
    odd = rng.randrange(N)
    rows = []
    for _ in range(J):
        if rng.random() < RHO:
            side = rng.random() < 0.5
            truth = [side != (i == odd) for i in range(N)]
        else:
            truth = [rng.random() < 0.5 for _ in range(N)]
        rows.append([0.9 if t != (rng.random() < wrong) else 0.1 for t in truth])
    return odd, rows


@pytest.fixture(scope="module", params=[(0.1, 0.95), (0.2, 0.85)], ids=["wrong 0.1", "wrong 0.2"])
def trials(request):
    wrong, bar = request.param
    rng = random.Random(7)
    return bar, [drawn(rng, wrong) for _ in range(500)]


def test_both_find_the_planted_item(trials):
    bar, data = trials
    votes = [minority(rows) for _, rows in data]
    by_vote = sum(v.index(max(v)) == odd for v, (odd, _) in zip(votes, data, strict=True))
    found = [latent(rows) for _, rows in data]
    by_model = sum(
        f.log_posterior.index(max(f.log_posterior)) == odd for f, (odd, _) in zip(found, data, strict=True)
    )
    print(f"vote {by_vote / 500:.3f}, latent {by_model / 500:.3f}")
    assert min(by_vote, by_model) >= bar * 500


def test_the_share_of_relevant_statements_is_estimated(trials):
    bar, data = trials
    mean = math.fsum(latent(rows).rho for _, rows in data) / len(data)
    print(f"mean rho {mean:.3f}")
    if bar == 0.95:
        assert mean == pytest.approx(RHO, abs=0.05)


def test_the_posterior_is_that_of_the_formula():
    rng = random.Random(3)
    rows = [[rng.uniform(0.02, 0.98) for _ in range(4)] for _ in range(6)]
    found = latent(rows)
    p = []
    for o in range(4):
        each = 1.0
        for t in rows:
            rest = [t[i] for i in range(4) if i != o]
            relevant = (1 - t[o]) * math.prod(rest) + t[o] * math.prod(1 - x for x in rest)
            each *= found.rho / 2 * relevant + (1 - found.rho) / 16
        p.append(each)
    assert [math.exp(x) for x in found.log_posterior] == pytest.approx([x / sum(p) for x in p])
    assert all(0 <= r <= 1 for r in found.relevance)


def test_a_statement_that_splits_the_items_evenly_has_no_vote():
    assert minority([[0.9, 0.9, 0.1, 0.1]]) == [0, 0, 0, 0]
    assert minority([[0.9, 0.8, 0.9, 0.95]], threshold=0.5) == [0, 0, 0, 0]
    assert minority([[0.9, 0.8, 0.9, 0.8]]) == [0, 0, 0, 0]  # two of four are below the mean


def test_statements_that_are_certain_and_contradict_each_other_give_a_posterior_all_the_same():
    found = latent([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    assert [math.exp(x) for x in found.log_posterior] == pytest.approx([1 / 3] * 3)

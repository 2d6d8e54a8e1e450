"""Laws of the samplers: proper weights by exact enumeration and by simulation; mutants must fail."""

import math
from collections import Counter, defaultdict
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from scipy import stats

from abduce.serving.errors import UsageError
from abduce.serving.transformers import awrs

SIGMA = 4.0


# ---------------------------------------------------------------- every visiting order, with its probability


def outcomes(weigh, p, allowed):
    """All (probability, token, w, distinct checks, checks) of a sampler over its visiting orders, in
    rationals. A run asks an oracle for each next token; runs are repeated until all answers were given."""
    found, trails = [], [()]
    while trails:
        trail = trails.pop()
        taken = []
        checked = []
        probability = Fraction(1)

        def order(trail=trail, taken=taken):
            nonlocal probability
            left = [x for x in range(len(p)) if p[x] > 0]
            while left:
                place = len(taken)
                if place < len(trail):
                    x = trail[place]
                else:
                    x = left[0]
                    trails.extend((*taken, other) for other in left[1:])
                taken.append(x)
                probability *= p[x] / sum(p[y] for y in left)
                left.remove(x)
                yield x

        def check(x, checked=checked):
            checked.append(x)
            return x in allowed

        token, w = weigh(p, check, order)
        found.append((probability, token, Fraction(w), len(set(checked)), len(checked)))
    assert sum(each[0] for each in found) == 1
    return found


def is_proper(found, p, allowed):
    mean = defaultdict(Fraction)
    for probability, token, w, *_ in found:
        mean[token] += probability * w
    return all(mean[x] == (p[x] if x in allowed else 0) for x in range(len(p))) and not mean[None]


def cases(sizes, n, seed):
    rng = Random(seed)
    for size in sizes:
        for _ in range(n):
            raw = [rng.choice([0, 1, 1, 2, 5, 20]) for _ in range(size)]
            raw[rng.randrange(size)] = 3
            p = [Fraction(x, sum(raw)) for x in raw]
            yield p, {x for x in range(size) if rng.random() < rng.choice([0.2, 0.5, 0.9])}


def recursive(cap):
    return lambda p, check, orders: awrs.weigh_recursive(p, check, orders, cap)


def mutant(p, check, orders):
    """The tempting form (1 − mass(R₁)) / (|R₂| + 1)."""
    n_first = 0

    def counted(x):
        nonlocal n_first
        good = check(x)
        n_first += not good
        return good

    first = []
    x = None
    for token in orders():
        if counted(token):
            x = token
            break
        first.append(token)
    if x is None:
        return None, 0
    n_second = 0
    for token in orders():
        if token not in first:
            if check(token):
                break
            n_second += 1
    return x, (1 - sum(p[y] for y in first)) / (n_second + 1)


@pytest.mark.parametrize("weigh", [awrs.weigh_two_loop, *map(recursive, (None, 2, 3))])
def test_proper_weights_by_enumeration(weigh):
    for p, allowed in cases((2, 3, 4, 5), 12, seed=1):
        assert is_proper(outcomes(weigh, p, allowed), p, allowed)


@pytest.mark.parametrize("weigh", [awrs.weigh_two_loop, *map(recursive, (None, 2, 3))])
def test_proper_weights_by_enumeration_of_six_tokens(weigh):
    p = [Fraction(x, 21) for x in (1, 2, 3, 4, 5, 6)]
    for allowed in ({2, 5}, {0, 3, 4}, {1, 2, 3, 4}, set()):
        assert is_proper(outcomes(weigh, p, allowed), p, allowed)


def test_enumeration_tells_a_mutant():
    p, allowed = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)], {2}
    assert is_proper(outcomes(awrs.weigh_two_loop, p, allowed), p, allowed)
    assert not is_proper(outcomes(mutant, p, allowed), p, allowed)


def test_weight_is_zero_only_without_an_allowed_token_and_the_token_is_allowed():
    for weigh in (awrs.weigh_two_loop, recursive(None), awrs.weigh_first):
        for p, allowed in cases((3, 4), 10, seed=2):
            reachable = {x for x in allowed if p[x] > 0}
            for _, token, w, *_ in outcomes(weigh, p, allowed):
                assert (w == 0) == (not reachable)
                assert w == 0 or token in reachable


def test_the_token_of_two_loops_and_of_the_improper_form_is_an_exact_draw():
    for weigh in (awrs.weigh_two_loop, awrs.weigh_first):
        for p, allowed in cases((4, 5), 8, seed=3):
            mass = sum(p[x] for x in allowed)
            law = defaultdict(Fraction)
            for probability, token, *_ in outcomes(weigh, p, allowed):
                law[token] += probability
            assert all(law[x] == p[x] / mass for x in allowed if mass)


def test_variance_is_below_that_of_a_coin_flip():
    for p, allowed in cases((4, 5), 40, seed=4):
        mass = sum(p[x] for x in allowed)
        coin = mass * (1 - mass)
        two_loop, one_loop = (
            sum(each[0] * each[2] ** 2 for each in outcomes(weigh, p, allowed)) - mass**2
            for weigh in (awrs.weigh_two_loop, recursive(None))
        )
        assert two_loop <= coin / 2
        assert one_loop <= Fraction(67, 100) * coin
        if len({x for x in allowed if p[x] > 0}) == 1:
            assert one_loop == 0


def test_expected_checks_are_bounded_by_the_inverse_of_the_accepted_mass():
    for p, allowed in cases((4, 5), 40, seed=5):
        mass = sum(p[x] for x in allowed)
        n_positive = sum(x > 0 for x in p)
        two_loop = outcomes(awrs.weigh_two_loop, p, allowed)
        one_loop = outcomes(recursive(None), p, allowed)
        assert all(each[3] <= n_positive for each in two_loop + one_loop)
        assert all(each[4] <= 2 * n_positive for each in two_loop)
        if mass:
            assert sum(each[0] * each[4] for each in two_loop) <= 2 / mass
            assert sum(each[0] * each[4] for each in one_loop) <= 1 / mass + 1


# ---------------------------------------------------------------- by simulation

P = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
ALLOWED = {1, 3, 5}
N = 8_000


def deviation(draw, p=P, allowed=ALLOWED, n=N, seed=0):
    """The largest |mean weight − p c| over the tokens, in standard errors."""
    rng = np.random.default_rng(seed)
    w = np.zeros((n, len(p)))
    for i in range(n):
        token, log_w, _ = draw(np.log(p), allowed.__contains__, rng)
        if token is not None:
            w[i, token] = math.exp(log_w)
    target = np.array([p[x] if x in allowed else 0.0 for x in range(len(p))])
    error = w.std(axis=0) / math.sqrt(n)
    assert np.all(w.mean(axis=0)[error == 0] == pytest.approx(target[error == 0]))
    return float(np.max(np.abs(w.mean(axis=0) - target)[error > 0] / error[error > 0]))


@pytest.mark.parametrize(("accepts", "rejects"), [(2, None), (4, None), (2, 3), (3, 4)])
def test_the_geometric_form_is_properly_weighted(accepts, rejects):
    def draw(log_p, check, rng):
        return awrs.geometric(log_p, check, rng, max_accepts=accepts, max_rejects=rejects)

    assert deviation(draw) < SIGMA


def test_simulation_tells_a_wrong_weight():
    def draw(log_p, check, rng):  # counts the accepted draws once too often
        token, log_w, n = awrs.geometric(log_p, check, rng, max_accepts=2)
        return token, log_w if token is None else -math.log(1 + 1 / math.exp(log_w)), n

    assert deviation(draw) > 2 * SIGMA


FORMS = [awrs.two_loop, awrs.recursive, awrs.geometric, awrs.adaptive]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [0.01, 2.0])
def test_an_unnormalised_p_enters_the_weight(form, scale):
    assert deviation(form, p=P * scale, n=3000) < SIGMA


@pytest.mark.parametrize("form", FORMS)
def test_pruned_tokens_enter_the_weight(form):
    """The constraint's vocabulary lacks tokens 0 and 2; cut off first, they change no mean weight."""

    def draw(log_p, check, rng):
        log_p = log_p.copy()
        log_p[[0, 2]] = -np.inf
        return form(log_p, check, rng)

    assert deviation(draw, n=3000) < SIGMA


@pytest.mark.parametrize("form", FORMS)
def test_another_proposal_gives_the_same_means(form):
    g = np.log(np.array([0.05, 0.1, 0.2, 0.3, 0.2, 0.3]))
    assert deviation(lambda log_p, check, rng: form(log_p, check, rng, proposal=g), n=4000) < SIGMA


def test_a_proposal_must_cover_the_model():
    g = np.log(P)
    g[1] = -np.inf
    with pytest.raises(UsageError, match="wherever the model"):
        awrs.recursive(np.log(P), ALLOWED.__contains__, np.random.default_rng(0), proposal=g)


@pytest.mark.parametrize("form", [awrs.two_loop, awrs.improper])
def test_the_law_of_the_token_by_chi_square(form):
    rng = np.random.default_rng(3)
    counts = Counter(form(np.log(P), ALLOWED.__contains__, rng).token for _ in range(N))
    expected = np.array([P[x] for x in sorted(ALLOWED)])
    observed = [counts[x] for x in sorted(ALLOWED)]
    assert sum(observed) == N
    assert stats.chisquare(observed, expected / expected.sum() * N).pvalue > 1e-4


def test_more_accepts_lower_the_variance():
    def variance(a):
        rng = np.random.default_rng(5)
        drawn = [awrs.geometric(np.log(P), ALLOWED.__contains__, rng, max_accepts=a) for _ in range(4000)]
        return np.var([math.exp(each.log_weight) for each in drawn])

    assert variance(2) > variance(4) > variance(8)


@pytest.mark.parametrize("form", [*FORMS, awrs.improper])
def test_a_dead_end_has_weight_zero_and_does_not_raise(form):
    drawn = form(np.log(P), lambda x: False, np.random.default_rng(0))
    assert drawn == (None, -math.inf, 6)
    nothing = np.full(4, -np.inf)
    assert form(nothing, lambda x: True, np.random.default_rng(0)) == (None, -math.inf, 0)


def test_one_check_for_each_token():
    for form in FORMS:
        checked = []
        form(np.log(P), lambda x, checked=checked: checked.append(x) or x == 5, np.random.default_rng(2))
        assert len(checked) == len(set(checked))


def test_the_same_seed_draws_the_same():
    for form in FORMS:
        a, b = (form(np.log(P), ALLOWED.__contains__, np.random.default_rng(9)) for _ in range(2))
        assert a == b


def test_orders_are_draws_without_replacement_also_beyond_the_head():
    p = np.full(600, 1 / 600)
    p[7] = 0.0
    with np.errstate(divide="ignore"):
        order = list(awrs.gumbel_order(np.log(p), np.random.default_rng(0)))
    assert sorted(order) == [x for x in range(600) if x != 7]
    rng = np.random.default_rng(1)
    firsts = Counter(next(awrs.gumbel_order(np.log(P), rng)) for _ in range(N))
    assert stats.chisquare([firsts[x] for x in range(6)], P * N).pvalue > 1e-4


@pytest.mark.parametrize("cap", [0, 1])
def test_caps_below_two_are_refused(cap):
    for form in (awrs.recursive, awrs.geometric):
        with pytest.raises(UsageError, match="max_rejects"):
            form(np.log(P), ALLOWED.__contains__, np.random.default_rng(0), max_rejects=cap)
    with pytest.raises(UsageError, match="max_accepts"):
        awrs.geometric(np.log(P), ALLOWED.__contains__, np.random.default_rng(0), max_accepts=cap)

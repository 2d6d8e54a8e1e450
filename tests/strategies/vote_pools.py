"""A synthetic pool of votes with known signals in length and hedging, and what each vote is worth on it."""

from dataclasses import replace
from math import exp, log
from random import Random
from statistics import fmean

from abduce.strategies.vote_calibration import Labelled, accuracy
from abduce.strategies.vote_weights import Coefficients, Features, reweighted
from abduce.strategies.voting import Poll, poll

N = 8
LENGTH = Coefficients(0.5, 0.0, 0.0, 0.0)

ORDER = {
    1.0: {"single": 0.46, "majority": 0.585, "length": 0.562, "hedge": 0.70, "shortest": 0.47, "short": 0.50},
    1.4: {"single": 0.44, "majority": 0.570, "length": 0.666, "hedge": 0.76, "shortest": 0.65, "short": 0.67,
          "share": 0.65},
    2.0: {"single": 0.43, "majority": 0.582, "length": 0.742, "hedge": 0.84, "shortest": 0.81, "short": 0.78,
          "share": 0.61},
}  # fmt: skip
"""What the specification found, by r, the length of wrong chains over that of right ones."""


def pools(r: float, *, questions: int, seed: int = 0) -> list[Labelled]:
    """p(right) ~ U(0.15, 0.75); wrong answers 0.6, 0.25, 0.15; log-normal lengths, hedges Poisson 6 and 9."""
    rng = Random(seed)
    found = []
    for _ in range(questions):
        p, median = rng.uniform(0.15, 0.75), exp(rng.gauss(log(1000), 0.4))
        answers, features = [], []
        for _ in range(N):
            right = rng.random() < p
            answers.append("right" if right else rng.choices("xyz", [0.6, 0.25, 0.15])[0])
            length = median * exp(rng.gauss(0, 0.5)) * (1 if right else r)
            features.append(Features(log(length), float(_poisson(rng, 6 if right else 9))))
        found.append(Labelled(tuple(answers), tuple(features), "right"))
    return found


def measured(drawn: list[Labelled]) -> tuple[dict[str, float], float]:
    """Accuracy of each vote, and the share of the tokens that short-3@8 needs."""
    hedge = replace(LENGTH, hedging=0.5)
    right, share = short_m(drawn, 3)
    return {
        "single": accuracy(drawn, lambda p: poll(p.answers[:1])),
        "majority": accuracy(drawn, lambda p: poll(p.answers)),
        "length": accuracy(drawn, lambda p: reweighted(p.answers, p.features, LENGTH, "weights", 0.5)),
        "hedge": accuracy(drawn, lambda p: reweighted(p.answers, p.features, hedge, "weights", 0.5)),
        "shortest": accuracy(drawn, shortest),
        "short": right,
    }, share


def shortest(pool: Labelled) -> Poll:
    """The answer of the shortest chain."""
    return poll([pool.answers[min(range(N), key=lambda i: pool.features[i].length)]])


def short_m(drawn: list[Labelled], m: int) -> tuple[float, float]:
    """Accuracy of the vote of the m shortest, and the tokens as a share of all: every chain runs until the
    m-th ends."""

    def vote(pool: Labelled) -> Poll:
        first = sorted(range(N), key=lambda i: pool.features[i].length)[:m]
        return poll([pool.answers[i] for i in first], lengths=[pool.features[i].length for i in first])

    shares = []
    for pool in drawn:
        lengths = sorted(exp(f.length) for f in pool.features)
        shares.append(sum(min(length, lengths[m - 1]) for length in lengths) / sum(lengths))
    return accuracy(drawn, vote), fmean(shares)


def _poisson(rng: Random, mean: float) -> int:
    product, k = rng.random(), 0
    while product > exp(-mean):
        product *= rng.random()
        k += 1
    return k

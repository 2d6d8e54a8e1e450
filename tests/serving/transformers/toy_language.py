"""A language small enough to enumerate, and a driver of decoding programs over it: no torch needed."""

import math
from itertools import product

import numpy as np

from abduce.serving.constraints import Check, Critic
from abduce.serving.flow import Sampling
from abduce.serving.transformers.awrs_smc import log_mean, particles
from abduce.serving.transformers.decoding import Turn
from abduce.serving.transformers.matchers import Vocabulary
from abduce.serving.transformers.potentials import potential

TOKENS = (b"a", b"b", b"c", b"")
END = 3
PROMPT = (7,)
MAX_TOKENS = 5  # the end included


def next_token(ids):
    """p of the next token: uneven, and dependent on the last two tokens and the length."""
    table = np.array([[5, 2, 1, 1], [1, 4, 2, 2], [2, 1, 3, 4], [3, 3, 2, 1]], float)
    p = table[ids[-1] if ids else 3] + table[ids[-2] if len(ids) > 1 else 0][::-1] * 0.5
    p[END] += 0.6 * len(ids)
    return p / p.sum()


def trap(ids):
    """`a` is likely at first and then hardly ever leads to an `a`, which the constraint wants next."""
    if not ids:
        return np.array([0.8, 0.2 - 1e-9, 5e-10, 5e-10])
    if ids[0] == 0:
        return np.array([0.02, 0.97, 0.005, 0.005]) if len(ids) == 1 else np.array([0.05, 0.05, 0.05, 0.85])
    return np.array([0.9, 0.05, 0.02, 0.03]) if len(ids) == 1 else np.array([0.05, 0.05, 0.05, 0.85])


def run(program, law=next_token):
    """Carry a program out. Returns its value and the number of rows fed."""
    rows, n_rows, reply = [], 0, None
    try:
        while True:
            feeds = program.send(reply)
            rows = [(() if f.parent is None else rows[f.parent]) + f.tokens for f in feeds]
            n_rows += len(rows)
            reply = [np.log(law(row[len(PROMPT) :])) for row in rows]
    except StopIteration as end:
        return end.value, n_rows


def texts(law=next_token, max_tokens=MAX_TOKENS):
    """Every text of at most `max_tokens` tokens with its end, and its probability."""
    found = {}
    for length in range(max_tokens):
        for ids in product(range(END), repeat=length):
            p = 1.0
            for i, x in enumerate((*ids, END)):
                p *= law(ids[:i])[x]
            found["".join(TOKENS[x].decode() for x in ids)] = p
    return found


EVEN = Check(
    lambda text: text.count("a") <= 2 and not text.startswith("c"),
    lambda text: text.count("a") == 2 and not text.startswith("c"),
)
"""Exactly two a's, no c at first: `prefix` passes many texts that no text of the language ends."""

GUESS = Critic(
    lambda text: 0.8 * text.count("b") - 0.3 * text.count("c"),
    lambda text: math.log(0.1 + text.count("b")) if not text.endswith("b") else -math.inf,
)


def weight(text, critic):
    return (EVEN.complete(text)) * (math.exp(critic.complete(text)) if critic else 1.0)


def population(seed, n, *, resample_below=0.0, critic=None, law=next_token, constraint=EVEN, **more):
    constraint = constraint * critic if critic else constraint
    turn = Turn(PROMPT, TOKENS, (END,), Sampling(temperature=1.0, max_tokens=MAX_TOKENS))
    asked = potential(constraint, Vocabulary(TOKENS), timed=Direct())
    seeds = [seed * 1000 + i for i in range(n)]
    return run(particles(turn, asked, seeds, resample_below=resample_below, **more), law)[0]


def evidence(cloud):
    return math.exp(log_mean([each.log_weight for each in cloud]))


class Direct:
    """Calls without a thread, for the many calls of a simulation."""

    def call(self, function, argument):
        return function(argument)

"""Scores of puzzles with several test outputs and several attempts, and what a memory had to do with them.

    official  = Σ_puzzles mean_tests [some counted attempt has this test right]
    strict    = the same, of attempts that have every training pair and every test right
    oracle@k  = Σ_puzzles mean_tests (1 − C(n−c, k) / C(n, k)),   c of n runs have the test right

An attempt's answer is the text of `puzzle.outputs`. Only here are test outputs looked at.

Source: the evaluation of ArcMemo, arXiv 2509.04439; the estimator is that of pass@k, arXiv 2107.03374.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import comb
from typing import Any

from .puzzle import Grid, Labels, grid


@dataclass(frozen=True)
class Row:
    """One attempt at a puzzle: which of its tests it has right, and whether all training pairs."""

    tests: tuple[bool, ...]
    train: bool = True


def right(answer: Any, labels: Labels) -> tuple[bool, ...]:
    """Which test outputs an answer has right; none where it is no answer."""
    found: list[Grid | None] = []
    with suppress(TypeError, ValueError):
        found = [None if each is None else grid(each) for each in json.loads(answer)]
    found += [None] * (len(labels) - len(found))
    return tuple(mine == wanted for mine, wanted in zip(found, labels, strict=False))


def rows(attempts: Iterable[Any], labels: Labels) -> tuple[Row, ...]:
    """The attempts of a result (its candidates) as rows."""
    return tuple(Row(right(each.answer, labels), each.score == 1.0) for each in attempts)


def official(attempts: Mapping[str, Sequence[Row]]) -> float:
    """The official score: puzzles, with parts of them."""
    return sum(
        _mean(any(row.tests[i] for row in rows) for i in range(_n(rows))) for rows in attempts.values()
    )


def strict(attempts: Mapping[str, Sequence[Row]]) -> float:
    """The score of attempts that have everything right."""
    return official({name: [_whole(row) for row in rows] for name, rows in attempts.items()})


def oracle(runs: Mapping[str, Sequence[Row]], k: int) -> float:
    """oracle@k of n independent runs: what the best of k of them would score, on average over all subsets."""
    total = 0.0
    for rows in runs.values():
        n = len(rows)
        if not 1 <= k <= n:
            raise ValueError(f"k must be from 1 to the number of runs, {n}, got {k}")
        right_in = [sum(row.tests[i] for row in rows) for i in range(_n(rows))]
        total += _mean(1 - comb(n - c, k) / comb(n, k) for c in right_in)
    return total


def attributed(text: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that a solution uses: that occur in it, whatever joins their words.

    >>> attributed("grid = keep_rows_by_rule(grid, is_red)", ["keep rows by rule", "flip"])
    ('keep rows by rule',)
    """
    words = _joined(text)
    return tuple(name for name in names if _joined(name) in words)


def _joined(text: str) -> str:
    return f"_{'_'.join(re.findall(_WORD, text.casefold()))}_"


_WORD = r"[^\W_]+"


def _n(rows: Sequence[Row]) -> int:
    return len(rows[0].tests) if rows else 0


def _whole(row: Row) -> Row:
    return row if row.train and all(row.tests) else Row((False,) * len(row.tests), row.train)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0

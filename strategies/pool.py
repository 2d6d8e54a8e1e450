"""From a weighted pool of particles to one result.

Finished particles compete by score, by weight, by lot, by vote, or by a second reward that judges
complete answers. A search that ended before any particle finished is asked for an answer at once.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, Literal, TypeAlias

from ..serving.errors import RewardUnavailable, SearchEnded, demand
from ..serving.flow import Failure, Flow, Note
from ..serving.seeds import derive
from .base import Result, Reward, scores_of
from .search import Node, Search
from .smc import Population
from .voting import weighted_vote

Select: TypeAlias = Literal["vote", "argmax_score", "argmax_weight", "sample", "orm"]
Weighted: TypeAlias = tuple[Node, float]


def check_select(select: Select, outcome: Reward | None) -> None:
    """Refuse an unknown way to select, or "orm" without a reward for it."""
    known = ("vote", "argmax_score", "argmax_weight", "sample", "orm")
    demand(select in known, "select", select, f"write one of {', '.join(known)}")
    demand(
        select != "orm" or outcome is not None, "select", select, "give outcome=, a reward for whole answers"
    )


def conclude(
    search: Search,
    pool: Sequence[Weighted],
    *,
    select: Select,
    outcome: Reward | None = None,
    stopped: SearchEnded | str | None = None,
    **diagnostics: Any,
) -> Flow[Result]:
    """Choose from the finished particles; failing those, from any finished solution, or force some."""
    finished = [(node, w) for node, w in pool if node.terminal] or [(node, 1.0) for node in search.terminals]
    if not finished:
        select = "vote"  # forced answers are not scored: they stand for their particle's weight
        finished = yield from _forced(search, pool)
        diagnostics["forced"] = len(finished)
    if not finished:
        best = max(pool, key=lambda particle: particle[1])[0]
        return search.result(best, stopped=stopped, pool=(), **diagnostics)
    finished = _normalised(finished)
    try:
        best = yield from _choose(search, finished, select, outcome)
    except SearchEnded as end:
        stopped = stopped or end
        best = _argmax_score(finished)
    candidates = [search.candidate(node, w) for node, w in finished]
    return search.result(best, stopped=stopped, pool=candidates, **diagnostics)


def why_stopped(search: Search, populations: Sequence[Population]) -> SearchEnded | str | None:
    """What ended the run early: a limit, or particles whose proposals failed to the end."""
    for population in populations:
        if population.stopped is not None:
            return population.stopped
    return search.failures[-1] if search.failures and any(populations[-1].failed) else None


def _choose(
    search: Search, finished: Sequence[Weighted], select: Select, outcome: Reward | None
) -> Flow[Node]:
    if select == "argmax_weight":
        return max(finished, key=lambda particle: particle[1])[0]
    if select == "sample":
        rng = Random(derive(search.seed, "select"))
        nodes, weights = zip(*finished, strict=True)
        chosen: Node = rng.choices(nodes, weights)[0]
        return chosen
    if select == "orm" and outcome is not None:
        return (yield from _best_outcome(search, finished, outcome))
    if select == "vote":
        answers = [search.policy.answer(node.state) for node, _ in finished]
        winner = weighted_vote(answers, [w for _, w in finished])
        if winner is not None:
            backers = [p for p, answer in zip(finished, answers, strict=True) if answer == winner]
            return _argmax_score(backers)
    return _argmax_score(finished)


def _argmax_score(finished: Sequence[Weighted]) -> Node:
    """The best last score; where scores are equal or missing the heavier, then the earlier particle."""
    return max(finished, key=lambda p: (-1.0 if p[0].score is None else p[0].score, p[1]))[0]


def _best_outcome(search: Search, finished: Sequence[Weighted], outcome: Reward) -> Flow[Node]:
    distinct = {node.state.text: node for node, _ in finished}
    scores = yield from scores_of(outcome, [node.state for node in distinct.values()])
    yield [Note("outcomes", {}, reward_passes=len(distinct))]
    if all(isinstance(score, Failure) for score in scores):
        raise RewardUnavailable(f"no outcome could be scored: {scores[0]}")
    judged = zip(distinct.values(), map(search.checked, scores), strict=True)
    return max(judged, key=lambda row: row[1])[0]


def _forced(search: Search, pool: Sequence[Weighted]) -> Flow[list[Weighted]]:
    """An answer now from every distinct particle; none if there is not even budget for that."""
    weights: dict[Node, float] = {}
    for node, w in pool:
        weights[node] = weights.get(node, 0.0) + w
    try:
        answers = yield from search.force(list(weights), score=False)
    except SearchEnded:
        return []
    return [(node, weights[node.parent]) for node in answers if node.parent is not None]


def _normalised(pool: Sequence[Weighted]) -> list[Weighted]:
    total = sum(w for _, w in pool)
    if total <= 0.0:
        return [(node, 1.0 / len(pool)) for node, _ in pool]
    return [(node, w / total) for node, w in pool]

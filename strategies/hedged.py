"""Hedged sampling: one greedy answer as a safety net, the others drawn at the temperature of the language.

The higher the temperature the better the best answer of a pool, and the worse its worst; languages other
than English lose earlier. A greedy sample bounds the loss, whoever then chooses. Here the most frequent
answer is chosen; `chops` and `x_mbr` choose from the same pool where answers cannot be counted.

    Y = {greedy} ∪ {y_2 … y_N ~ p_τ},   p_τ(v) ∝ exp(logit_v / τ),  dropped where p_τ(v) < min_p · max p_τ
    y* = argmax_a Σ_i 1[a_i = a]                                   the greedy answer first among equals

Source: When Life Gives You Samples, arXiv 2506.20544; min-p sampling, arXiv 2407.01082. Deviates: τ by
language is a table of ours; samples in another language than asked for are left out only while they are
fewer than half, since a pool that is mostly in another language was likely asked for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Completion, Failure, Flow, Fork, Generate, Note, Sampling
from ..serving.seeds import derive
from .base import Outcome, Policy, Result, Task
from .languages import UNKNOWN, detect
from .markers import answer_part
from .search import Node, Search
from .voting import poll

LOW_RESOURCE = 0.5
"""The temperature of a language that the model is not declared for."""


class Choice(NamedTuple):
    """A solution of the pool, and what is to be told of the choosing."""

    node: Node | None
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Hedged:
    """N = `n` solutions, the most frequent answer. Cost: N generations.

    `temperatures`: τ by language code, "*" for all others. `languages`: those the model is declared for;
    where given, any other is drawn at 0.5. The language is `language`, else `metadata["language"]` of the
    task, else detected from the question. `ladder`: temperatures in place of the language's; the pool is
    split over them, the remainder to the lower ones. `greedy: false` leaves out the safety net: plain
    sampling at one temperature, or on the ladder. `min_p`: 0.1 is usual; hosted APIs may refuse it.
    """

    policy: Policy
    n: int = 5
    greedy: bool = True
    temperatures: Mapping[str, float] = field(default_factory=lambda: {"en": 0.9, "*": 0.7})
    ladder: tuple[float, ...] = ()
    min_p: float = 0.0
    language: str = ""
    languages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"n must be at least 1, got {self.n}.")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min_p must be from 0 to 1, got {self.min_p}. Write min_p=0.1.")
        if "*" not in self.temperatures:
            raise UsageError('temperatures has no entry for all other languages. Write {"*": 0.7}.')
        for tau in (*self.temperatures.values(), *self.ladder):
            if not 0 < tau <= 10:
                raise UsageError(
                    f"A temperature must be above 0 and at most 10, got {tau}. Greedy is greedy=True."
                )

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draw the pool, leave out what is in the wrong language, choose."""
        search = Search(task, self.policy, None, seed)
        language = self.language_of(task)
        stopped, chosen = None, Choice(None, {})
        drawn_at: dict[Node, float] = {}
        try:
            drawn_at = yield from self.draw(search, language)
            pool = list(drawn_at)
            fit = pool if task.in_one_piece else in_language(pool, language)
            if fit:
                chosen = yield from self.choose(search, fit, language)
            chosen.facts["wrong_language"] = len(pool) - len(fit)
            node = None if chosen.node is None else chosen.node.id
            yield [Note("chosen", {"node": node, **chosen.facts})]
        except SearchEnded as end:
            stopped = end
        best = chosen.node or (yield from search.finalise(search.root if stopped else None))
        facts = {"language": language, **chosen.facts}
        if best in drawn_at:
            facts["chosen"], facts["temperature"] = list(drawn_at).index(best), drawn_at[best]
        unjudged = facts.pop("stopped", None)
        stopped = stopped or unjudged
        return search.result(best, stopped=stopped, **facts)

    def choose(self, search: Search, pool: Sequence[Node], language: str) -> Flow[Choice]:
        """One solution of the pool, which is not empty; here of the most frequent answer."""
        answers = [self.policy.answer(node.state) for node in pool]
        votes = poll(answers)
        counted = {str(answer): count for answer, count in votes.votes.items()}
        facts = {"votes": counted, "tied": len(votes.tied)}
        yield [Note("vote", facts)]
        return Choice(pool[answers.index(votes.winner)], facts)

    # ------------------------------------------------------------ the pool

    def plan(self, language: str) -> list[tuple[float, int]]:
        """Temperatures, and how many solutions to draw at each.

        >>> from .policy import StepPolicy
        >>> Hedged(policy=StepPolicy(), n=5).plan("en"), Hedged(policy=StepPolicy(), n=1).plan("sw")
        ([(0.0, 1), (0.9, 4)], [(0.0, 1)])
        >>> Hedged(policy=StepPolicy(), n=5, greedy=False, ladder=(0.3, 1.1)).plan("en")
        [(0.3, 3), (1.1, 2)]
        """
        greedy = [(0.0, 1)] if self.greedy else []
        left = self.n - len(greedy)
        ladder = sorted(self.ladder) or [self.temperature(language)]
        shares = [left // len(ladder) + (i < left % len(ladder)) for i in range(len(ladder))]
        return greedy + [(tau, share) for tau, share in zip(ladder, shares, strict=True) if share]

    def temperature(self, language: str) -> float:
        """τ of a language."""
        if language in self.temperatures:
            return self.temperatures[language]
        if self.languages and language != UNKNOWN and language not in self.languages:
            return LOW_RESOURCE
        return self.temperatures["*"]

    def language_of(self, task: Task) -> str:
        """The language the answer is to be in; "und" where nobody knows."""
        return self.language or str(task.metadata.get("language", "")) or detect(task.question).language

    def draw(self, search: Search, language: str) -> Flow[dict[Node, float]]:
        """The pool, all of it at once, and the temperature of each solution; the greedy one is the first."""
        root, flows, plan = search.root, [], self.plan(language)
        for i, (tau, count) in enumerate(plan):
            policy = tempered(self.policy, tau, self.min_p)
            seed = derive(search.seed, "pool", i)
            flows.append(policy.complete(root.state, count, seed=seed, first_draw=root.draws))
            root.draws += count
        [drawn] = yield [Fork(tuple(flows))]
        ended: list[Outcome] = []
        for outcomes, (_, count) in zip(drawn, plan, strict=True):
            ended += [outcomes] * count if isinstance(outcomes, Failure) else outcomes
        taus = [tau for tau, count in plan for _ in range(count)]
        had = [tau for tau, outcome in zip(taus, ended, strict=True) if not isinstance(outcome, Failure)]
        return dict(zip((yield from search.take(root, ended, score=False)), had, strict=True))


def tempered(policy: Policy, temperature: float, min_p: float = 0.0) -> Policy:
    """The policy at another temperature. One that is around another passes it on."""
    changes: dict[str, Any] = {}
    sampling, inner = getattr(policy, "sampling", None), getattr(policy, "policy", None)
    if isinstance(sampling, Sampling):
        changes["sampling"] = replace(sampling, temperature=temperature, min_p=min_p)
    elif isinstance(inner, Policy):
        changes["policy"] = tempered(inner, temperature, min_p)
    if not is_dataclass(policy) or not changes.keys() <= {f.name for f in fields(policy)} or not changes:
        raise UsageError(
            f"The policy {type(policy).__name__} has no sampling whose temperature could be set. Write a "
            "preset such as cot."
        )
    return replace(policy, **changes)


def in_language(pool: Sequence[Node], language: str) -> list[Node]:
    """The solutions that are not clearly in another language; all, if that leaves not more than half."""
    if language == UNKNOWN:
        return list(pool)
    fit = [node for node in pool if not _elsewhere(answer_part(node.state.text), language)]
    return fit if 2 * len(fit) > len(pool) else list(pool)


def _elsewhere(text: str, language: str) -> bool:
    said, sure = detect(text)
    long_enough = sum(c.isalpha() for c in text) >= _FEWEST_LETTERS
    return said not in (language, UNKNOWN) and sure > _SURE and long_enough


_SURE = 0.9  # of the specification
_FEWEST_LETTERS = 20  # a name or a word is at home in many languages


def ask(search: Search, requests: Sequence[Generate]) -> Flow[list[tuple[Completion, ...] | Failure]]:
    """The replies of a model that chooses; its tokens are added to those of the search, its failures told."""
    replies = yield requests
    for reply in replies:
        if isinstance(reply, Failure):
            tell_failure(search, reply)
        else:
            search.counts.tokens += sum(sample.n_tokens for sample in reply)
    return list(replies)


def tell_failure(search: Search, failure: Failure) -> None:
    """Put a call that failed, and was no proposal, into what the search tells."""
    if failure.kind == "budget":
        search.ended = search.ended or SearchEnded(failure.message)
    if failure.message not in search.failures:
        search.failures.append(failure.message)


def likeliest(pool: Sequence[Node]) -> Node:
    """The solution of highest log-probability per token; the first where any has none."""

    def mean(node: Node) -> float:
        logp = node.state.logp
        return logp / max(1, node.state.n_tokens) if logp is not None else 0.0

    return pool[0] if any(node.state.logp is None for node in pool) else max(pool, key=mean)


def unjudged(search: Search, pool: Sequence[Node]) -> Choice:
    """What is chosen where the judge cannot be had."""
    stopped = str(search.ended or search.failures[-1])
    return Choice(likeliest(pool), {"fallback": "likeliest", "stopped": stopped})


class Spread(NamedTuple):
    """What a pool could gain over the greedy answer with a perfect choice, and lose with the worst one."""

    hope: float
    risk: float


def spread(greedy: float, qualities: Sequence[float], *, relative: bool = True) -> Spread:
    """hope = (max q − q_g) / q_g,  risk = (min q − q_g) / q_g;  differences where not relative, or q_g is 0.

    >>> spread(0.5, [0.25, 0.75]), spread(1.0, [0.0, 1.0], relative=False)
    (Spread(hope=0.5, risk=-0.5), Spread(hope=0.0, risk=-1.0))
    """
    unit = greedy if relative and greedy else 1.0
    return Spread((max(qualities) - greedy) / unit, (min(qualities) - greedy) / unit)

"""What is learnt: rows of what was tried, the sums over them, and the choice that follows.

    Attempt ──learned──► Router ──decide──► Decision ──(the arm is tried)──► Attempt

    r = y − λ_c · tokens / ref_tokens        y ∈ {0, 1};  weight w = the verifier's confidence c

A router is a fold over rows and nothing else. Without forgetting the rows may come in any order, and the
routers of two logs add up.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from random import Random
from statistics import median
from typing import Any, Literal, get_args

from ...serving.errors import UsageError, demand
from .bandit import Chooser, Regression

Learn = Literal["first_only", "all"]
_KEPT = 101  # token counts an arm, for its median
_OTHER_MODEL = 0.2  # what was learnt with another model weighs so much
_HISTORY = 0.5  # an attempt that saw others fail says less of its arm alone


@dataclass(frozen=True)
class Learning:
    """How rows become sums. `learn`: from first attempts only, or from "all", which is biased: those that
    follow are made on problems where another arm has failed. `cost` is λ_c; `gamma` forgets, 1 does not."""

    learn: Learn = "first_only"
    lam: float = 1.0
    cost: float = 0.05
    gamma: float = 1.0

    def __post_init__(self) -> None:
        demand(self.learn in get_args(Learn), "learn", self.learn, "write first_only or all")
        demand(self.lam > 0, "lam", self.lam, "write a number above 0, such as 1.0")
        demand(self.cost >= 0, "cost", self.cost, "write 0 or more, such as 0.05")
        demand(0 < self.gamma <= 1, "gamma", self.gamma, "write at most 1, such as 0.999")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One arm tried on one problem, with all that the choice was made from.

    `y`: right, wrong, or None where nobody has said; `kind` is who said it, `c` how sure. `mask` are arms
    that could not be had. `full`: all arms were run, whatever was chosen. `r` and `w`: as learnt.
    """

    arm: str
    phi: tuple[float, ...]
    signature: str
    arms: tuple[str, ...]
    pi: Mapping[str, float]
    propensity: float
    question: str = ""
    prompt: str = ""  # hash of the question
    task: str = ""  # its tag
    mask: tuple[str, ...] = ()
    attempt: int = 1
    estimated: bool = False
    history: bool = False
    full: bool = False
    y: int | None = None
    kind: str = ""
    c: float = 0.0
    tokens: int = 0
    answer: Any = None
    text: str = ""
    trace: str = ""
    model: str = ""
    version: int = 0
    seed: int = 0
    ts: float = 0.0
    r: float | None = None
    w: float | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any], **told: Any) -> "Attempt":
        """From JSON, with what is `told` besides. Raises TypeError for what is no attempt."""
        lists: dict[str, Any] = {key: tuple(data[key]) for key in ("phi", "arms", "mask") if key in data}
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in {**data, **lists, **told}.items() if key in known})


@dataclass(frozen=True)
class Decision:
    """A choice among the arms that could be had, with its whole distribution."""

    arm: str
    pi: Mapping[str, float]
    q: Mapping[str, float]
    u: Mapping[str, float]
    cold: bool

    @property
    def propensity(self) -> float:
        """π of what was chosen."""
        return self.pi[self.arm]


@dataclass(frozen=True)
class Router:
    """The sums of each arm, and what else a choice needs. `version` counts the rows seen."""

    signature: str
    d: int
    learning: Learning = Learning()
    sums: Mapping[str, Regression] = field(default_factory=dict)
    pulls: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    model: str = ""
    version: int = 0

    # ------------------------------------------------------------ reading

    def arm(self, name: str) -> Regression:
        """An arm's sums; those of one never seen are empty."""
        return self.sums.get(name) or Regression.empty(self.d, self.learning.lam)

    def expected_tokens(self, arm: str) -> float | None:
        """The median of an arm's attempts; None before the first."""
        return median(self.tokens[arm]) if self.tokens.get(arm) else None

    @property
    def ref_tokens(self) -> float:
        """The median over arms."""
        found = [value for arm in self.tokens if (value := self.expected_tokens(arm))]
        return median(found) if found else 1.0

    def decide(self, phi: Sequence[float], arms: Sequence[str], chooser: Chooser, rng: Random) -> Decision:
        """Choose among `arms`, the masked ones left out before."""
        if not arms:
            raise UsageError("No arm is left to choose from. Give the run the tools its arms need.")
        q = {arm: self.arm(arm).q(phi) for arm in arms}
        u = {arm: self.arm(arm).u(phi) for arm in arms}
        cold = sum(self.pulls.values()) < chooser.n0 * len(arms)
        pi = chooser.pi(q, u, cold=cold, rng=rng)
        [arm] = rng.choices(list(pi), list(pi.values()))
        return Decision(arm, pi, q, u, cold)

    # ------------------------------------------------------------ learning

    def judged(self, row: Attempt) -> Attempt:
        """The row with the r and w it is learnt with; those that it has stay. Weight 0 teaches nothing."""
        if row.w is not None:
            return row
        if row.y is None:
            return replace(row, r=0.0, w=0.0)
        first = row.attempt == 1 or row.full
        w = row.c if first else 0.0 if self.learning.learn == "first_only" else row.c * _weight(row)
        return replace(row, r=row.y - self.learning.cost * row.tokens / self._reference(row), w=w)

    def learned(self, row: Attempt) -> "Router":
        """After one more row. Raises UsageError for a row of another context."""
        if row.signature != self.signature or len(row.phi) != self.d:
            raise UsageError(
                f"The row's features are {row.signature} with {len(row.phi)} numbers, the router's "
                f"{self.signature} with {self.d}. Rebuild it from rows that hold their questions."
            )
        row = self.judged(row)
        assert row.r is not None and row.w is not None
        sums = dict(self.sums)
        if self.model and row.model and row.model != self.model:
            sums = {arm: each.scaled(_OTHER_MODEL) for arm, each in sums.items()}
        if row.w > 0:
            if self.learning.gamma < 1:
                sums = {arm: each.scaled(self.learning.gamma) for arm, each in sums.items()}
            sums[row.arm] = sums.get(row.arm, self.arm(row.arm)).updated(row.phi, row.r, row.w)
        first = row.attempt == 1 and row.y is not None
        kept = (
            (*self.tokens.get(row.arm, ()), row.tokens)[-_KEPT:]
            if row.tokens
            else self.tokens.get(row.arm, ())
        )
        return replace(
            self,
            sums=sums,
            pulls={**self.pulls, row.arm: self.pulls.get(row.arm, 0) + first},
            tokens={**self.tokens, row.arm: kept},
            model=row.model or self.model,
            version=self.version + 1,
        )

    def fold(self, rows: Iterable[Attempt]) -> "Router":
        """After all rows, in their order."""
        router = self
        for row in rows:
            router = router.learned(row)
        return router

    def __add__(self, other: "Router") -> "Router":
        """The router of both logs. Raises UsageError where the order of rows matters."""
        if (self.signature, self.learning) != (other.signature, other.learning) or self.learning.gamma < 1:
            raise UsageError(
                "Routers add up if features and learning are the same and nothing is forgotten (gamma: 1). "
                "Replay both logs in the order of time instead."
            )
        arms = [*dict.fromkeys((*self.pulls, *other.pulls))]
        return replace(
            self,
            sums={arm: self.arm(arm) + other.arm(arm) for arm in arms},
            pulls={arm: self.pulls.get(arm, 0) + other.pulls.get(arm, 0) for arm in arms},
            tokens={arm: (*self.tokens.get(arm, ()), *other.tokens.get(arm, ()))[-_KEPT:] for arm in arms},
            version=self.version + other.version,
        )

    def _reference(self, row: Attempt) -> float:
        return self.ref_tokens if any(self.tokens.values()) else max(1.0, float(row.tokens))


def _weight(row: Attempt) -> float:
    return _HISTORY if row.history else 1.0


def rest(pi: Mapping[str, float], tried: Collection[str]) -> dict[str, float]:
    """π over the arms that have not been tried, made to sum to 1; even where it is 0 everywhere."""
    left = {arm: share for arm, share in pi.items() if arm not in tried}
    total = sum(left.values())
    return {arm: share / total if total else 1 / len(left) for arm, share in left.items()}

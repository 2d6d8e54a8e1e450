"""The contracts of search: task, state, policy, reward, strategy, result.

A *policy* proposes steps, a *reward* scores partial solutions, a *strategy* decides which to draw, keep
and return. All three are flows (`serving/flow.py`): they ask, and the driver does.

    state ──propose──► steps ──extend──► states ──score──► numbers in [0, 1] ──strategy──► Result
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

from ..serving.base import Capability
from ..serving.constraints import Constraint
from ..serving.errors import UsageError
from ..serving.flow import Failure, Flow, Fork, Message, ToolSpec, Usage
from ..serving.seeds import derive


@dataclass(frozen=True, slots=True)
class Check:
    """A verifiable demand on the answer, by id: `Check("numeric", {"value": 56})`."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be solved.

    `messages` is the whole conversation where there is more of it than the question, which then is the text
    of its last user message. `offers` are tools of the caller's: the model may ask for them, we never run
    them. `tools` are those we run, by name until the run fills in what there is to know of them (`specs`).
    `constraint` holds for the final answer, which ends before any text of `stop` and after `max_tokens`
    tokens. `extra` are further fields for the engine's server.
    """

    question: str
    choices: tuple[str, ...] = ()
    tools: tuple[str | ToolSpec, ...] = ()
    checks: tuple[Check, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    offers: tuple[ToolSpec, ...] = ()
    constraint: Constraint | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """The tools that a strategy may call."""
        return tuple(tool for tool in self.tools if isinstance(tool, ToolSpec))

    @property
    def in_one_piece(self) -> bool:
        """Whether the answer has a form that is lost where it is cut into steps."""
        return self.constraint is not None or bool(self.offers)


@dataclass(frozen=True, slots=True)
class Step:
    """One reasoning unit. `kind` is "text", "tool:<name>", "result:<name>", or "version": a whole solution in
    the place of all steps before it. `last` says that the model ended its turn with it, `cut` that it ran
    into its length limit; `logp` is the policy's log-probability of the step, where known."""

    text: str
    ids: tuple[int, ...] = ()
    logp: float | None = None
    n_tokens: int = 0
    kind: str = "text"
    last: bool = False
    cut: bool = False


@dataclass(frozen=True, eq=False)
class State:
    """A partial solution: a linked list of steps, so that copying one is copying a pointer.

    `lineage` names the draws that led here. Seeds derive from it, so what is drawn from a state does
    not depend on when it is drawn or what is batched with it. States compare by identity: two draws
    of the same text are two states; `text` tells whether they say the same.
    """

    task: Task
    parent: "State | None" = None
    step: Step | None = None
    depth: int = 0
    lineage: int = 0

    def extend(self, step: Step, draw: int = 0) -> "State":
        """The state after `step`, the `draw`-th one drawn from this state."""
        return State(self.task, self, step, self.depth + 1, derive(self.lineage, draw))

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, first to last; from the last version on, if there is one."""
        found: list[Step] = []
        state: State | None = self
        while state is not None and state.step is not None:
            found.append(state.step)
            state = state.parent if state.step.kind != "version" else None
        return tuple(reversed(found))

    @cached_property
    def text(self) -> str:
        """Everything written so far."""
        if self.parent is None or self.step is None:
            return ""
        return self.step.text if self.step.kind == "version" else self.parent.text + self.step.text

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Token ids of `text`; empty where any step lacks them."""
        if self.parent is None or self.step is None:
            return ()
        if self.step.kind == "version":
            return self.step.ids
        if not self.step.ids or (self.parent.depth and not self.parent.ids):
            return ()
        return self.parent.ids + self.step.ids

    @property
    def n_tokens(self) -> int:
        """Tokens of all steps."""
        return sum(step.n_tokens for step in self.steps)

    @property
    def logp(self) -> float | None:
        """log p(text | task) under the policy; None where any step lacks it."""
        known = [step.logp for step in self.steps]
        return None if None in known else sum(x for x in known if x is not None)


EMPTY_STEPS = 3  # so many in a row end a solution


def stalled(state: State) -> bool:
    """Whether the last steps were empty, as many as end a solution."""
    here: State | None = state
    for _ in range(EMPTY_STEPS):
        if here is None or here.step is None or here.step.text.strip():
            return False
        here = here.parent
    return True


Proposal: TypeAlias = Step | Failure
Score: TypeAlias = float | Failure


def unscored(failure: Failure) -> Failure:
    """What a reward says of a call that failed. One that the budget refused stays as it is: it tells the
    search that it was cut short."""
    return failure if failure.kind == "budget" else Failure("reward", failure.message)


class Policy:
    """Draws the next steps of partial solutions. Subclasses define `propose`, `terminal`, `answer`."""

    requires: Mapping[str, frozenset[Capability]] = {"policy": frozenset({"generate"})}

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """`counts[i]` independent draws of the step after `states[i]`, one batch; duplicates are returned as
        drawn, failed draws as `Failure`. One step where no other can follow, such as a tool's result."""
        raise NotImplementedError

    def terminal(self, state: State) -> bool:
        """Whether the solution is finished. Nothing is proposed from such a state."""
        raise NotImplementedError

    def answer(self, state: State) -> Hashable | None:
        """The canonical answer of a finished solution, for voting; None where it holds none."""
        raise NotImplementedError

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        """One last step each, that gives an answer now. By default an ordinary step."""
        drawn = yield from self.propose(states, [1] * len(states), seeds)
        return [proposals[0] for proposals in drawn]

    def complete(self, state: State, n: int, *, seed: int, first_draw: int = 0) -> "Flow[list[Outcome]]":
        """`n` independent finished solutions from `state`, each at its own pace."""
        [proposals] = yield from self.propose([state], [n], [derive(seed, state.lineage, first_draw)])
        branches = [self._to_end(state, p, first_draw + i, seed) for i, p in enumerate(proposals)]
        [ended] = yield [Fork(tuple(branches))]
        return list(ended)

    def _to_end(self, state: State, proposal: Proposal, draw: int, seed: int) -> "Flow[Outcome]":
        while not isinstance(proposal, Failure):
            state = state.extend(proposal, draw)
            if self.terminal(state):
                return state
            [[proposal]] = yield from self.propose([state], [1], [derive(seed, state.lineage, 0)])
            draw = 0
        return proposal


Outcome: TypeAlias = State | Failure


@runtime_checkable
class Reward(Protocol):
    """Scores partial and finished solutions in [0, 1]; the same text gets the same score.

    A state that cannot be scored gets a `Failure` that says why, never a made-up number. What the task
    lacks for any scoring at all (no checks, say) is a `UsageError`.
    """

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """One score for each state, in order."""
        ...


def scores_of(reward: Reward, states: Sequence[State]) -> Flow[list[Score]]:
    """What a reward says of states, as floats. What a reward of somebody's own does wrong is a UsageError."""
    whose, flow = type(reward).__name__, reward.score(states)
    if not isinstance(flow, Generator):
        raise UsageError(
            f"score(states) of {whose} must be a flow: a generator that yields requests and returns the "
            "scores. One that asks nothing begins with: yield from ()"
        )
    scores = yield from flow
    if not isinstance(scores, Iterable):
        raise UsageError(
            f"score(states) of {whose} returned {scores!r:.80}, and must return a list of scores."
        )
    scores = list(scores)
    for score in scores:
        if not isinstance(score, Failure) and (isinstance(score, str) or not hasattr(score, "__float__")):
            raise UsageError(f"A score is a number in [0, 1] or a Failure; {whose} gave {score!r:.80}.")
    if len(scores) != len(states):
        raise UsageError(f"{whose} gave {len(scores)} scores for {len(states)} states. One each is wanted.")
    return [score if isinstance(score, Failure) else float(score) for score in scores]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished solution of the pool a result was chosen from."""

    answer: Hashable | None
    text: str
    score: float | None = None
    weight: float | None = None  # normalised, for methods that weigh their pool


@dataclass(frozen=True, slots=True)
class Result:
    """What every strategy returns: the answer, and the evidence for it.

    `complete` is false where a limit, a failing engine or an interrupt ended the search early;
    `diagnostics["stopped"]` then says what did. `usage` counts every call of the run.
    """

    answer: Hashable | None
    text: str
    candidates: tuple[Candidate, ...] = ()
    complete: bool = True
    usage: Usage = field(default_factory=Usage)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from .notebook import html

        return html(self)


class Strategy(Protocol):
    """A frozen dataclass with its parameters."""

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Solve the task; catches `SearchEnded` and returns the best so far."""
        ...


def requirements(part: Any) -> dict[str, frozenset[Capability]]:
    """What a strategy with all its parts (policy, reward, inner strategies) needs, role by role."""
    needed: dict[str, frozenset[Capability]] = {}
    for owner in _parts(part):
        for role, capabilities in getattr(owner, "requires", {}).items():
            needed[role] = needed.get(role, frozenset()) | capabilities
    return needed


def _parts(part: Any) -> Iterator[Any]:
    yield part
    if is_dataclass(part):
        for f in fields(part):
            value = getattr(part, f.name)
            if is_dataclass(value) or isinstance(value, Policy):
                yield from _parts(value)

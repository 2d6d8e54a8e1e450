"""The strategy: read the question, choose a way, answer in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from ...serving import settings
from ...serving.base import Capability
from ...serving.errors import SearchEnded, UnknownName, UsageError, demand
from ...serving.flow import Flow, Note
from ..base import Policy, Result, Step, Task
from ..policy import StepPolicy
from ..search import Counts, Node, Search
from .collect import truncated
from .features import Reading, layout, read, read_beside_reference
from .file import load
from .modes import MODES, Mode, digest, in_mode, limited, plain
from .probe import Probe, Signature
from .training import chosen


@dataclass(frozen=True)
class Choice:
    """A way to answer, and why: "probe", "unsure" (below τ), "asked" (by the caller), "no_probe", "empty"
    (no question), "failed" (its state could not be had), "not_finite", or "stopped" (the budget ended first).
    All but "probe" and "asked" choose the normal way."""

    mode: Mode
    why: str
    probabilities: tuple[float, ...] = ()
    n_tokens: int = 0  # drawn to choose
    warnings: tuple[str, ...] = ()

    def told(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "mode": self.mode.name,
            "why": self.why,
            "probabilities": [round(d, 6) for d in self.probabilities],
            "confidence": round(max(self.probabilities), 6) if self.probabilities else None,
            "fallback": self.why not in ("probe", "asked"),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, kw_only=True)
class DiffAdapt:
    """One solution, in a way that suits the question. Cost: one generation, and the prompts of the question
    and of a short reference question read once more; with a probe on text features, a draft of 32 tokens.

    `probe`: the file of one, or the probe; without one every question is answered normally. `mode`: "auto",
    or the name of the way to take. `modes`: the ways, among them "normal". `tau`: in place of the probe's
    own. `rescue`: an easy question whose answer ran into its limit is gone on with normally, once. `key_env`
    names the environment variable with the key that the probe's file must be sealed with.

    A probe that was trained on another prompt, other modes or another model is refused; with `allow_mismatch`
    it is used, and every run says so.
    """

    policy: Policy
    probe: str | Probe = ""
    mode: str = "auto"
    modes: tuple[Mode | Mapping[str, Any], ...] = MODES
    tau: float | None = None
    rescue: bool = False
    key_env: str = ""
    allow_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("auto", *self.ways):
            raise UnknownName("mode", self.mode, ["auto", *self.ways])
        demand(self.tau is None or 0 <= self.tau <= 1, "tau", self.tau, "write a probability, such as 0.5")
        if isinstance(self.policy, StepPolicy) and self.loaded is not None:
            self.fitting(self.loaded, self.loaded.signature.reference)

    @cached_property
    def ways(self) -> dict[str, Mode]:
        """The modes by name, checked."""
        ways = [Mode.checked(spec) for spec in self.modes]
        names = [mode.name for mode in ways]
        if len(set(names)) != len(names) or "normal" not in names:
            raise UsageError(f"modes need different names, one of them normal, got: {', '.join(names)}.")
        return dict(zip(names, ways, strict=True))

    @cached_property
    def loaded(self) -> Probe | None:
        """The probe, its file read and its seal checked."""
        if isinstance(self.probe, Probe) or not self.probe:
            return self.probe or None
        key = settings.secret(self.key_env) if self.key_env else None
        if self.key_env and not key:
            raise UsageError(f"The environment variable {self.key_env} is not set: key_env names the key.")
        return load(self.probe, key=key)

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """What the probe reads."""
        if self.loaded is None or self.mode != "auto":
            return {}
        needs: Capability = "hidden" if self.loaded.signature.kind == "hidden" else "top_logprobs"
        return {"policy": frozenset({needs})}

    # ------------------------------------------------------------ solving

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Choose, answer, and say what was chosen and why."""
        choice, best = Choice(self.ways["normal"], "stopped"), None
        stopped: SearchEnded | str | None = None
        try:
            choice = yield from self.choose(task)
            yield [Note("diffadapt", choice.told())]
        except SearchEnded as end:
            stopped = end
        search = self.search(task, choice.mode, seed)
        search.counts.tokens += choice.n_tokens
        try:
            if stopped is None:
                best = search.best((yield from search.complete(search.root, 1)))
            if best is not None and self.rescue and choice.mode.name == "easy" and self.cut(best):
                search, best = yield from self.rescued(task, search, best)
        except SearchEnded as end:
            stopped = end
        best = search.root if best is None and stopped is not None else best
        cut = best is not None and self.cut(best)
        if best is not None and not cut and not search.answered(best):
            best = yield from search.forced(best)
        facts = {**choice.told(), "limit": search.task.max_tokens, "truncated": cut}
        yield [Note("diffadapt", {"used": search.counts.tokens, **facts})]
        if cut and stopped is None:
            stopped = f"no answer within {search.task.max_tokens} tokens ({choice.mode.name})"
        result = search.result(best, stopped=stopped, **facts)
        return replace(result, answer=None) if cut else result

    def choose(self, task: Task) -> Flow[Choice]:
        """The way to answer a task."""
        normal, probe = self.ways["normal"], self.loaded
        if self.mode != "auto":
            return Choice(self.ways[self.mode], "asked")
        if probe is None:
            return Choice(normal, "no_probe", warnings=(_NO_PROBE,))
        if not task.question.strip():
            return Choice(normal, "empty")
        kind = probe.signature.kind
        if kind == "hidden":
            mine, reference = yield from read_beside_reference(self.policy, task)
        else:
            mine, reference = (yield from read(self.policy, task, kind)), Reading()
        if (failed := mine.failure or reference.failure) is not None:
            warnings: tuple[str, ...] = (f"the question could not be read: {failed.message}",)
            return Choice(normal, "failed", warnings=warnings)
        features, n_tokens = mine.values, mine.n_tokens
        warnings = self.fitting(probe, reference.values)
        if not all(map(math.isfinite, features)):
            warnings = (*warnings, "the question's state is not finite")
            return Choice(normal, "not_finite", n_tokens=n_tokens, warnings=warnings)
        d = probe(features)
        tau = probe.tau if self.tau is None else self.tau
        name = chosen(probe.classes, d, tau)
        return Choice(self.ways[name], "probe" if max(d) >= tau else "unsure", d, n_tokens, warnings)

    def fitting(self, probe: Probe, reference: Sequence[float]) -> tuple[str, ...]:
        """What speaks against the probe here. Raises UsageError unless that is allowed and it can be used."""
        kind = probe.signature.kind
        here = Signature(kind, layout(self.policy, kind), digest(tuple(self.ways.values())), tuple(reference))
        told = probe.signature.differences(here)
        unknown = set(probe.classes) - set(self.ways)
        if told and (not self.allow_mismatch or unknown or len(reference) != len(probe.signature.reference)):
            raise UsageError(
                f"The probe does not fit: {'; '.join(told)}. Make one for this recipe with: abduce diffadapt "
                "fit; or write allow_mismatch: true to use it all the same."
            )
        return tuple(f"the probe does not fit: {reason}" for reason in told)

    # ------------------------------------------------------------ parts

    def search(self, task: Task, mode: Mode, seed: int, first_id: int = 0) -> Search:
        """An empty search for one way of answering."""
        policy = in_mode(self.policy, mode)
        return Search(limited(self.policy, task, mode), policy, None, seed, first_id=first_id)

    def cut(self, node: Node) -> bool:
        """Whether a solution ran into its limit without an answer."""
        return truncated(plain(self.policy), node.state)

    def rescued(self, task: Task, easy: Search, node: Node) -> Flow[tuple[Search, Node | None]]:
        """The solution gone on with in the normal way, within its limit; what was spent before counts."""
        search = self.search(task, self.ways["normal"], easy.seed, first_id=len(easy.nodes))
        steps: list[Step] = [replace(step, last=False) for step in node.state.steps]
        last = (yield from search.graft(search.root, steps))[-1]
        for f in fields(Counts):
            setattr(search.counts, f.name, getattr(search.counts, f.name) + getattr(easy.counts, f.name))
        if last.terminal:  # nothing is left of the normal limit
            return search, last
        return search, search.best((yield from search.complete(last, 1))) or last


_NO_PROBE = "No probe is given, so every question is answered normally. Make one with: abduce diffadapt fit"

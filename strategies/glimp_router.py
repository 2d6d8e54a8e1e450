"""GlimpRouter: a small model writes the easy steps, a large one the hard steps.

Before each step the small model is asked for one token. How uncertain it is about it, the entropy

    H = − Σ pᵥ ln pᵥ   over its top m tokens, renormalised, at temperature 1, in nats

says who writes the step: the small model if H < τ, else the large one. Nothing that is drafted is thrown
away but a single token, and with the fused probe not even that one is where the small model goes on.

Source: "GlimpRouter: Efficient Collaborative Inference by Glimpsing One Token of Thoughts", arXiv 2601.05110.
Deviations: a step that ran into its length limit is gone on with by the same model, without a new probe and
without a separator; the end of a turn ends the solution; an unknown H sends the step to the large model.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from ..serving.base import Capability
from ..serving.errors import UnknownName, UsageError, demand
from ..serving.flow import Completion, Failure, Flow, Generate, Note, Prompt
from ..serving.seeds import derive
from .base import Policy, Proposal, State, Step
from .policy import StepPolicy, policy
from .routes import RoutedStep, Writer, unread

Reply: TypeAlias = tuple[Completion, ...] | Failure

_WARM = 8  # entropies that a quantile needs before it is used in the place of tau


def entropy(top_logprobs: Sequence[float]) -> float:
    """Entropy of the best tokens, in nats, renormalised among themselves: 0 to ln(their number).

    >>> round(entropy([-3.0, -3.0]) / math.log(2), 9)
    1.0
    """
    best = max(top_logprobs)
    weights = [math.exp(x - best) for x in top_logprobs]
    total = math.fsum(weights)
    return max(0.0, math.log(total) - math.fsum(w * math.log(w) for w in weights if w) / total)


def threshold(entropies: Iterable[float], rate: float) -> float:
    """The tau that sends at most the share `rate` of these entropies to the large model, as near to it as
    can be; infinite if that is none of them.

    >>> threshold([0.1, 0.5, 0.9, 2.0], 0.25)
    2.0
    """
    known = sorted(entropies)
    place = math.ceil((1 - rate) * len(known) - 1e-9)
    return known[place] if place < len(known) else math.inf


@dataclass(frozen=True, kw_only=True)
class GlimpRouter(Policy):
    """Any search's policy, written by two models: the roles "policy", the small one, and "large".

    `policy` has the prompts, the delimiter, the sampling and the answers. `tau` in nats: at 0 or below the
    large model writes everything, above ln `top` the small one does, and no probe is sent. With
    `intervention_rate` tau is the running quantile of the entropies of the solution's own earlier steps,
    once there are eight, so that about that share of its steps goes to the large model. The first
    `first_large` steps go there without a probe.

    `probe`: "fused" draws the first token as the step's own and keeps it where the small model goes on;
    "two_call" draws it greedily and throws it away, as the official program does. A token is kept by its
    id while all that is written is the small model's, else by its text, which the model then reads
    tokenised anew: tokenisers differ, so what goes from one model to the other is text.

    A solution ends as the policy says, after `budget_tokens`, when a step repeats the one before it, or
    after two empty steps; an answer on demand is the large model's. Each draw's `Note`, of kind "route",
    tells who wrote what, and why.
    """

    policy: StepPolicy = field(default_factory=StepPolicy)
    tau: float = 1.0  # the official program's own default
    intervention_rate: float | None = None
    top: int = 20
    probe: Literal["fused", "two_call"] = "fused"
    first_large: int = 0
    budget_tokens: int = 8192

    def __post_init__(self) -> None:
        rate = self.intervention_rate
        demand(rate is None or 0 <= rate <= 1, "intervention_rate", rate, "write a share, such as 0.25")
        demand(not math.isnan(self.tau), "tau", self.tau, "write nats, such as 1.0")
        demand(self.top >= 2, "top", self.top, "write at least 2, such as 20")
        demand(self.probe in ("fused", "two_call"), "probe", self.probe, 'write "fused" or "two_call"')
        demand(self.first_large >= 0, "first_large", self.first_large, "write 0 or more")
        demand(self.budget_tokens >= 1, "budget_tokens", self.budget_tokens, "write at least 1, such as 8192")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:  # type: ignore[override]
        """What the engines of the two roles must be able to do."""
        large = self.policy.requires["policy"]
        probes: set[Capability] = {"top_logprobs"} if self._settled(self.tau) is None else set()
        return {"policy": large | probes, "large": large}

    # ------------------------------------------------------------ drawing

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """As the policy's, each state's draws by one writer."""
        inner = self.policy.propose(states, counts, seeds)
        asked = [(state, n) for state, n in zip(states, counts, strict=True) if n]
        if not asked:
            return [[] for _ in states]
        requests = [request for request in next(inner) if isinstance(request, Generate)]
        routed = yield from self._routed([state for state, _ in asked], requests)
        try:
            inner.send([each.reply for each in routed])
        except StopIteration as end:
            rows = iter(routed)
            return [next(rows).labelled(drawn) if drawn else [] for drawn in end.value]
        raise UsageError("GlimpRouter needs a policy that draws its steps in one batch, as StepPolicy does.")

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        """The policy's, by the large model."""
        inner = self.policy.force(states, seeds)
        try:
            batch = next(inner)
            while True:
                batch = inner.send((yield [_by_large(r) if isinstance(r, Generate) else r for r in batch]))
        except StopIteration as end:
            return [_labelled(proposal, "large", None) for proposal in end.value]

    # ------------------------------------------------------------ reading

    def terminal(self, state: State) -> bool:
        """Whether the policy says so, the budget is used up, or the solution repeats itself."""
        if self.policy.terminal(state) or state.n_tokens >= self.budget_tokens:
            return True
        before = state.parent.step if state.parent is not None else None
        if state.step is None or before is None or state.step.text.strip() != before.text.strip():
            return False
        return state.depth > 2 or not before.text.strip()

    def answer(self, state: State) -> Hashable | None:
        """The policy's."""
        return self.policy.answer(state)

    # ------------------------------------------------------------ routing

    def tau_at(self, state: State) -> float:
        """The tau of the step after a state: the number given, or the quantile of what led there."""
        if self.intervention_rate is None:
            return self.tau
        known = [step.entropy for step in state.steps if isinstance(step, RoutedStep)]
        measured = [h for h in known if h is not None]
        return threshold(measured, self.intervention_rate) if len(measured) >= _WARM else self.tau

    def _settled(self, tau: float) -> Writer | None:
        """The writer, where no entropy can change it."""
        if self.intervention_rate is not None:
            return None
        return "large" if tau <= 0 else "small" if tau > math.log(self.top) else None

    def _routed(self, states: Sequence[State], requests: Sequence[Generate]) -> "Flow[list[_Routed]]":
        plans = [self._plan(state) for state in states]
        asked = [i for i, plan in enumerate(plans) if plan.why == "entropy"]
        heard: Sequence[Any] = (yield [self._glimpse(requests[i]) for i in asked]) if asked else ()
        for i, reply in zip(asked, heard, strict=True):
            plans[i] = self._decided(self.tau_at(states[i]), requests[i], reply)
        calls = [_calls(plan, request) for plan, request in zip(plans, requests, strict=True)]
        batch = [call for row in calls for call in row]
        told = iter((yield batch) if batch else ())
        rows = zip(states, plans, requests, calls, strict=True)
        routed = [_gathered(s, plan, r, [next(told) for _ in row]) for s, plan, r, row in rows]
        told_of = zip(states, routed, strict=True)
        yield [Note("route", each.told | {"tau": self._finite_tau(state)}) for state, each in told_of]
        return routed

    def _plan(self, state: State) -> "_Plan":
        step = state.step
        if step is not None and step.cut:
            return _Plan(step.writer if isinstance(step, RoutedStep) else "small", "cut")
        if state.depth < self.first_large:
            return _Plan("large", "first")
        settled = self._settled(self.tau)
        return _Plan(settled, "tau") if settled else _Plan("large", "entropy")

    def _glimpse(self, request: Generate) -> Generate:
        if self._fused(request):
            return replace(request, sampling=replace(request.sampling, max_tokens=1), top_logprobs=self.top)
        sampling = replace(request.sampling, temperature=0.0, max_tokens=1)
        return replace(request, n=1, sampling=sampling, top_logprobs=self.top, logprobs=False)

    def _fused(self, request: Generate) -> bool:
        """A constraint holds for a whole turn, and few engines go on within one."""
        return self.probe == "fused" and request.constraint is None

    def _decided(self, tau: float, request: Generate, reply: Reply) -> "_Plan":
        """The writer, from the reply to the probe."""
        if isinstance(reply, Failure):
            return _Plan("large", "failed", refused=None if reply.kind == "engine" else reply)
        drawn = tuple(reply)
        spent = sum(c.n_tokens or len(c.ids) for c in drawn)
        best = next((c.top_logprobs[0] for c in drawn if c.top_logprobs and c.top_logprobs[0]), None)
        if best is None:  # engines tell nothing of an end of turn
            silent = bool(drawn) and all(c.finish == "eos" for c in drawn)
            return _Plan("large", "ended" if silent else "missing", n_probe=spent)
        h = entropy(best[: self.top])
        if h >= tau:
            return _Plan("large", "entropy", h, n_probe=spent)
        if not self._fused(request):
            return _Plan("small", "entropy", h, n_probe=spent)
        kept = tuple(replace(c, top_logprobs=c.top_logprobs if request.top_logprobs else ()) for c in drawn)
        wasted = sum(c.n_tokens or len(c.ids) for c in kept if _onward(request, c) is None)
        return _Plan("small", "entropy", h, kept, wasted)

    def _finite_tau(self, state: State) -> float | None:
        tau = self.tau_at(state)
        return tau if math.isfinite(tau) else None


def glimp_router(params: Mapping[str, Any]) -> GlimpRouter:
    """A router from its fields, `policy` as `policy.policy` takes it. Raises UnknownName for other fields."""
    words = dict(params)
    inner = policy(words.pop("policy", "cot"))
    known = {f.name for f in fields(GlimpRouter)}
    for key in words:
        if key not in known:
            raise UnknownName("parameter of the policy glimp_router", key, known)
    if not isinstance(inner, StepPolicy):
        raise UsageError("A router is around one policy. Write policy: cot, or another preset.")
    return GlimpRouter(policy=inner, **words)


class _Plan(NamedTuple):
    """Who writes the steps after a state, and why: "entropy", "tau", "first", "cut", "ended" (the small
    model would end its turn), and counted as errors "missing" (no log-probs) and "failed"."""

    writer: Writer
    why: str
    entropy: float | None = None
    kept: tuple[Completion, ...] = ()  # first tokens that belong to the steps
    n_probe: int = 0  # tokens drawn for a probe and thrown away
    refused: Failure | None = None


class _Routed(NamedTuple):
    """A reply put together for the policy, and what is told of it."""

    plan: _Plan
    reply: Reply
    failures: tuple[Failure, ...]  # of single draws, which the reply lacks
    told: dict[str, Any]

    def labelled(self, proposals: list[Proposal]) -> list[Proposal]:
        drawn = 0 if isinstance(self.reply, Failure) else len(self.reply)
        whole = [*proposals[:drawn], *self.failures, *proposals[drawn + len(self.failures) :]]
        return [_labelled(p, self.plan.writer, self.plan.entropy) for p in whole]


def _labelled(proposal: Proposal, writer: Writer, h: float | None) -> Proposal:
    """The step with its writer; ids of the large model mean nothing to the small one."""
    if isinstance(proposal, Failure):
        return proposal
    words = {f.name: getattr(proposal, f.name) for f in fields(Step)}
    return RoutedStep(**(words | ({"ids": ()} if writer == "large" else {})), writer=writer, entropy=h)


def _by_large(request: Generate) -> Generate:
    return replace(request, model="large", prompt=replace(request.prompt, prefix_ids=()))


def _finished(request: Generate, first: Completion) -> bool:
    return first.finish != "length" or request.sampling.max_tokens <= 1


def _onward(request: Generate, first: Completion) -> Prompt | None:
    """The prompt of what follows a first token, or None where the token is half a character: neither its
    text nor that of the rest would be right, and the step is drawn anew."""
    prompt = request.prompt
    if not _finished(request, first) and (not first.text or "\ufffd" in first.text):
        return None
    ids = prompt.prefix_ids + first.ids if first.ids and (prompt.prefix_ids or not prompt.prefix) else ()
    return replace(prompt, prefix=prompt.prefix + first.text, prefix_ids=ids)


def _calls(plan: _Plan, request: Generate) -> list[Generate]:
    """What is asked for once it is decided who writes."""
    if plan.refused is not None:
        return []
    if plan.writer == "large":
        return [_by_large(request)]
    if not plan.kept:
        return [request]
    calls = []
    left = replace(request.sampling, max_tokens=request.sampling.max_tokens - 1)
    for i, first in enumerate(plan.kept):
        if not _finished(request, first):
            seed = derive(request.seed or 0, "after the glimpse", i)
            onward = _onward(request, first)
            if onward is None:
                calls.append(replace(request, n=1, seed=seed))
            else:
                calls.append(replace(request, n=1, seed=seed, prompt=onward, sampling=left))
    return calls


def _gathered(state: State, plan: _Plan, request: Generate, replies: Sequence[Reply]) -> _Routed:
    """The reply that the policy would have got from one model."""
    failures: list[Failure] = []
    reply: Reply
    if plan.refused is not None:
        reply = plan.refused
    elif not plan.kept:
        [reply] = replies
        if plan.writer == "large" and not isinstance(reply, Failure):
            reply = tuple(replace(c, ids=()) for c in reply)
    else:
        rest = iter(replies)
        whole = []
        for first in plan.kept:
            after = () if _finished(request, first) else next(rest)
            if isinstance(after, Failure):
                failures.append(after)
            elif not after:
                whole.append(first)
            else:
                kept = _onward(request, first) is not None
                whole.append(_joined(first, after[0], request.sampling.stop) if kept else after[0])
        reply = tuple(whole) if whole else failures[0]
    lost = tuple(failures) if isinstance(reply, tuple) else ()
    return _Routed(plan, reply, lost, _told(state, plan, reply))


def _joined(first: Completion, rest: Completion, stops: Sequence[str]) -> Completion:
    """One completion of two. A stop mark across the seam, which the engine could not see, ends it."""
    text = first.text + rest.text
    ends = [(text.find(stop) + len(stop), stop) for stop in stops if 0 <= text.find(stop) < len(first.text)]
    n = (first.n_tokens or len(first.ids)) + (rest.n_tokens or len(rest.ids))
    if ends:
        end, stop = min(ends)
        if end < len(text):  # its ids would reach beyond the mark
            return Completion(text[:end], finish="stop", stop=stop, n_tokens=n)
        rest = replace(rest, finish="stop", stop=stop)
    told = {
        name: getattr(first, name) + getattr(rest, name)
        for name in ("ids", "logprobs", "top_logprobs")
        if getattr(first, name) and (getattr(rest, name) or not rest.text)
    }
    return Completion(text, finish=rest.finish, stop=rest.stop, n_tokens=n, **told)


def _told(state: State, plan: _Plan, reply: Reply) -> dict[str, Any]:
    last = state.step.writer if isinstance(state.step, RoutedStep) else None
    probed = plan.entropy is not None or plan.n_probe > 0
    return {
        "step": state.depth + 1,
        "writer": plan.writer,
        "why": plan.why,
        "entropy": plan.entropy,
        "tokens": [] if isinstance(reply, Failure) else [c.n_tokens or len(c.ids) for c in reply],
        "probe_tokens": plan.n_probe,
        "switch": last not in (None, plan.writer),
        "refilled_small": unread(state, "small") if probed or plan.writer == "small" else 0,
        "refilled_large": unread(state, "large") if plan.writer == "large" else 0,
    }

"""What a probe is trained on: the features of a question, and solutions of it in several modes."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...serving.base import Capability
from ...serving.errors import EngineError
from ...serving.flow import Failure, Flow, Fork, Generate
from ...serving.seeds import derive
from ..answers import stated
from ..base import Policy, State, Task
from .entropy import mean
from .features import TOP, Kind, read
from .modes import InMode, Mode, in_mode, limited

NEEDS: dict[Kind, frozenset[Capability]] = {
    "hidden": frozenset({"hidden", "top_logprobs"}),
    "text": frozenset({"top_logprobs"}),
}
"""What an engine must give for training on these features; entropies are of the best log-probs."""


@dataclass(frozen=True)
class Sample:
    """One solution, not yet judged. `entropy`: mean over its tokens, from below, by the best 20 log-probs."""

    answer: Hashable | None
    text: str
    n_tokens: int
    entropy: float | None = None


def observe(
    policy: Policy, task: Task, counts: Mapping[Mode, int], *, kind: Kind, seed: int
) -> Flow[tuple[tuple[float, ...], dict[str, list[Sample]]]]:
    """Features of a question, and so many solutions in each mode. Raises EngineError where one fails."""
    reading = yield from read(policy, task, kind)
    if reading.failure is not None:
        raise EngineError(f"{task.question[:80]!r} could not be read: {reading.failure.message}")
    modes = [mode for mode, n in counts.items() if n]
    [drawn] = yield [Fork(tuple(_drawn(policy, task, mode, counts[mode], seed) for mode in modes))]
    for each in drawn:
        if isinstance(each, Failure):
            raise EngineError(f"{task.question[:80]!r} could not be answered: {each.message}")
    return reading.values, {mode.name: each for mode, each in zip(modes, drawn, strict=True)}


def _drawn(policy: Policy, task: Task, mode: Mode, n: int, seed: int) -> Flow[list[Sample]]:
    """The policy's own request with the best log-probs asked for as well."""
    writer = in_mode(policy, mode)
    state = State(limited(policy, task, mode), lineage=derive(seed, "root"))
    flow = writer.complete(state, n, seed=seed)
    [request] = next(flow)
    assert isinstance(request, Generate)
    [reply] = yield [replace(request, top_logprobs=TOP)]
    if isinstance(reply, Failure):
        raise EngineError(reply.message)
    try:
        flow.send([reply])
    except StopIteration as end:
        rows = zip(end.value, reply, strict=False)
        return [_sample(writer, ended, drawn) for ended, drawn in rows if isinstance(ended, State)]
    raise AssertionError("a step policy completes in one request")


def _sample(policy: InMode, state: State, drawn: Any) -> Sample:
    answer = None if truncated(policy, state) else policy.answer(state)
    return Sample(answer, state.text, state.n_tokens, mean(drawn.top_logprobs))


def truncated(policy: InMode, state: State) -> bool:
    """Whether a solution ran into its limit before it stated an answer. Plain text has no other answer than
    itself, and is never truncated."""
    step = state.step
    kind = policy.answer_kind
    return step is not None and step.cut and kind != "text" and not stated(kind, state.text)

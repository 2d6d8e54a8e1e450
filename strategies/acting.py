"""A policy that acts: its steps may call the task's tools, and what these return is read by the next step.

    s_t ~ p(· | q, s_1, o_1, …, s_{t−1}, o_{t−1}),    o_t = tool(s_t) where s_t is a call

A call and its result are steps of their own: the policy draws the call, `observe` has it run. In between the
search decides: of a branch that may be dropped only calls without effects are run, the others wait until the
step is committed to. A chat model is offered the tools and sees results as messages; without a chat the
examples of the policy show how calls are written, and results stand in the text.

Source: ReAct: Synergizing Reasoning and Acting in Language Models, arXiv 2210.03629. Deviates: as `react.py`.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..serving import tool_calls
from ..serving.base import Capability
from ..serving.flow import CallTool, Flow, Generate, Message, ToolCall, ToolResult, ToolSpec
from .base import Policy, Proposal, State, Step
from .calls import REFUSED, key, quoted, request, run, shown
from .conversation import turns
from .policy import StepPolicy

T = TypeVar("T")

CALL, RESULT = "tool:", "result:"
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_ACTION, _OBSERVATION = "Action:", "Observation:"


@dataclass(frozen=True, kw_only=True)
class Acting(Policy):
    """Steps of `policy`, for tasks with tools. The model sees `observation_chars` of each result.

    A step is a call if it ends one, in any form that `tool_calls.read` knows; if it looks like the end of one
    and none can be read, its result says so. A call of a tool of the caller's ends the solution. A result of
    the model's own making is left out. Results are no steps of the policy's: they have no log-probability and
    do not count towards `max_steps`.
    """

    policy: StepPolicy
    observation_chars: int = 1000

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:  # type: ignore[override]
        """As the policy's."""
        return self.policy.requires

    @property
    def _made_up(self) -> str:
        """What begins a result that the model makes up. In a chat the word may also begin a thought."""
        return f"\n{_OBSERVATION}" if self.policy.chat else _OBSERVATION

    # ------------------------------------------------------------ drawing

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """As the policy's. Nothing may be proposed from a state that waits for a result."""
        drawn = yield from self._offering(states, self.policy.propose(self._turns(states), counts, seeds))
        return [[self._read(state, p) for p in row] for state, row in zip(states, drawn, strict=True)]

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        """As the policy's."""
        return (yield from self._offering(states, self.policy.force(self._turns(states), seeds)))

    def observe(self, states: Sequence[State], *, speculative: bool) -> Flow[list[list[Step]]]:
        """The results that each state waits for, one step each; all calls at the same time. None of a state
        that waits for nothing, or whose call has effects while it is `speculative`."""
        rows: list[list[tuple[ToolCall, CallTool | ToolResult]]] = [
            [] if speculative and not harmless(state) else list(self._requests(state, speculative))
            for state in states
        ]
        results = iter((yield from run([asked for row in rows for _, asked in row])))
        told = zip(states, rows, strict=True)
        return [[self._result(state, call, next(results)) for call, _ in row] for state, row in told]

    # ------------------------------------------------------------ reading

    def terminal(self, state: State) -> bool:
        """Whether the policy says so; not where a result is awaited, or has only just come."""
        most = state.task.max_tokens
        if sum(not step.kind.startswith(RESULT) for step in state.steps) >= self.policy.max_steps:
            return True
        if most is not None and state.n_tokens >= most:
            return True
        said = state.step is not None and state.step.kind == "text"
        return said and self.policy.terminal(_after_results(state, replace(state.task, max_tokens=None)))

    def answer(self, state: State) -> Hashable | None:
        """The policy's, of what was said since the last result."""
        return self.policy.answer(_after_results(state, replace(state.task, tools=())))

    # ------------------------------------------------------------ parts

    def _turns(self, states: Sequence[State]) -> list[State]:
        return [self._turn(state) for state in states]

    def _turn(self, state: State) -> State:
        """The state as the policy sees it: in a chat the conversation so far, and the steps after it."""
        if not self.policy.chat:
            return state
        said = list(turns(state.task, state.task.question))
        n_tokens, n_calls = 0, 0
        for text, results in _exchanges(state):
            n_tokens += sum(step.n_tokens for step in text)
            rest, calls = _calls("".join(step.text for step in text), state.task.specs)
            named = tuple(replace(call, id=f"call_{n_calls + i}") for i, call in enumerate(calls))
            n_calls += len(named)
            said.append(Message("assistant", rest, tool_calls=named))
            told = [Message("tool", _bare(step.text)) for step in results]
            answered = zip(told, named, strict=False)
            said += [replace(message, tool_call_id=call.id) for message, call in answered] if named else told
        most = state.task.max_tokens
        left = None if most is None else max(1, most - n_tokens)
        return _after_results(state, replace(state.task, messages=tuple(said), tools=(), max_tokens=left))

    def _offering(self, states: Sequence[State], flow: Flow[T]) -> Flow[T]:
        """The policy's flow, each request with the tools, and ended where a call ends."""
        specs = states[0].task.specs if states and self.policy.chat else ()
        try:
            batch = next(flow)
            while True:
                batch = flow.send((yield [_offered(each, specs, self._made_up) for each in batch]))
        except StopIteration as end:
            found: T = end.value
            return found

    def _read(self, state: State, proposal: Proposal) -> Proposal:
        """The proposal as a call, if it is one."""
        if not isinstance(proposal, Step):
            return proposal
        text, made_up, _ = proposal.text.partition(self._made_up)
        step = proposal
        if made_up:
            step = replace(proposal, text=f"{text.rstrip()}\n" if text.strip() else "", ids=(), last=False)
        said = "".join(each.text for each in _since(state)) + step.text
        if step.cut or (not step.last and _CLOSE not in said and _OPEN in said):
            return step  # the rest of the call is still to come
        calls = self._wanted(state, said)
        misspelt = _CLOSE in step.text or (made_up and _ACTION in said)
        if not calls and not misspelt:
            return step
        if {call.name for call in calls} & {offer.name for offer in state.task.offers}:
            return replace(step, last=True)  # for the caller to carry out
        return replace(step, kind=f"{CALL}{calls[0].name if calls else '?'}", last=False)

    def _wanted(self, state: State, text: str) -> tuple[ToolCall, ...]:
        """What a text calls. A call outside of a block that a tool's words held is a quotation."""
        _, blocks = tool_calls.read(text)
        if blocks:
            return blocks
        calls = _calls(text, state.task.specs)[1]
        return tuple(call for call in calls if key(call) not in _quoted(state)) if calls else ()

    def _requests(self, state: State, speculative: bool) -> Iterator[tuple[ToolCall, CallTool | ToolResult]]:
        if not waits(state):
            return
        calls = self._wanted(state, "".join(step.text for step in _since(state)))
        if not calls:
            yield ToolCall("", "?"), UNREADABLE if self.policy.chat else UNREADABLE_LINE
        specs = {spec.name: spec for spec in state.task.specs}
        forbidden = _quoted(state)
        for call in calls:
            if call.name not in specs:
                yield call, ToolResult(f"No tool named {call.name!r}. Known: {', '.join(specs)}.", ok=False)
            elif key(call) in forbidden:
                yield call, REFUSED
            else:
                asked = request(call, speculative=speculative)
                yield call, _in_its_state(asked, specs[call.name], state)

    def _result(self, state: State, call: ToolCall, result: ToolResult) -> Step:
        new_line = "" if state.text.endswith("\n") else "\n"
        told = shown(result, self.observation_chars).rstrip()
        return Step(f"{new_line}{_OBSERVATION} {told}\n", kind=f"{RESULT}{call.name}")


def waits(state: State) -> bool:
    """Whether the last step is a call without its result."""
    return state.step is not None and state.step.kind.startswith(CALL)


def harmless(state: State) -> bool:
    """Whether what the last step calls changes nothing."""
    effects = {spec.name: spec.effect for spec in state.task.specs}
    _, calls = _calls("".join(step.text for step in _since(state)), state.task.specs)
    return all(effects.get(call.name, "pure") == "pure" for call in calls)


UNREADABLE = ToolResult(
    'This call cannot be read. Write {"name": ..., "arguments": {...}} between <tool_call> and </tool_call>.',
    ok=False,
)
UNREADABLE_LINE = ToolResult("This call cannot be read. Write Action: name[argument].", ok=False)


# ---------------------------------------------------------------- steps to turns


def _since(state: State) -> list[Step]:
    """The steps after the last result."""
    found: list[Step] = []
    here: State | None = state
    while here is not None and here.step is not None and not here.step.kind.startswith(RESULT):
        found.append(here.step)
        here = here.parent
    return found[::-1]


def _exchanges(state: State) -> Iterator[tuple[list[Step], list[Step]]]:
    """What was said up to each call, and the results of the call."""
    text: list[Step] = []
    results: list[Step] = []
    for step in state.steps:
        if step.kind.startswith(RESULT):
            results.append(step)
            continue
        if results:
            yield text, results
            text, results = [], []
        text.append(step)
    if results:
        yield text, results


def _after_results(state: State, task: Any) -> State:
    """A state of `task` with the steps after the last result only."""
    here = State(task, lineage=state.lineage)
    for step in _since(state):
        here = here.extend(step)
    return here


def _bare(text: str) -> str:
    return text.strip().removeprefix(_OBSERVATION).strip()


def _calls(text: str, specs: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
    rest, calls = tool_calls.read(text)
    return (rest, calls) if calls else tool_calls.read(text, specs)


def _quoted(state: State) -> set[tuple[str, str]]:
    """The calls that tools told of on the way to a state."""
    specs = state.task.specs
    told = [spec.description for spec in specs]
    told += [step.text for step in state.steps if step.kind.startswith(RESULT)]
    return set().union(*(quoted(text, specs) for text in told))


def _offered(each: Any, specs: Sequence[ToolSpec], made_up: str) -> Any:
    if not isinstance(each, Generate):
        return each
    stop = (*each.sampling.stop, _CLOSE, made_up)
    return replace(
        each,
        prompt=replace(each.prompt, tools=(*specs, *each.prompt.tools)),
        sampling=replace(each.sampling, stop=stop),
    )


def _in_its_state(asked: CallTool | ToolResult, spec: ToolSpec, state: State) -> CallTool | ToolResult:
    """A call of a tool that keeps a state for each branch, with what the branch has called it with before."""
    if not spec.history or isinstance(asked, ToolResult):
        return asked
    first = next(iter(spec.parameters.get("properties", ())), "")
    before, refused = [], _quoted(state)
    for text, _ in _exchanges(state):
        for call in _calls("".join(step.text for step in text), state.task.specs)[1]:
            earlier = request(call)
            if call.name != spec.name or key(call) in refused:
                continue
            if isinstance(earlier, CallTool) and first in earlier.arguments:
                before.append(earlier.arguments[first])
    return replace(asked, arguments={**asked.arguments, spec.history: before}) if before else asked

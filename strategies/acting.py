"""A policy that acts: its steps may call the task's tools, and what these return is read by the next step.

    s_t ~ p(· | q, s_1, o_1, …, s_{t−1}, o_{t−1}),    o_t = tool(s_t) where s_t is a call

A call and its result are steps of their own: the policy draws the call, and what is drawn from there is its
result. Since a search may drop any branch, only calls without effects are run so. A search that commits to
its steps may `observe` results itself, and have the others run then. A tool that keeps a state, as a Python
interpreter does, has one for each branch: a step sees what its ancestors left there. A chat model is offered
the tools and sees results as messages; without a chat the examples of the policy show how calls are written,
and results stand in the text.

Source: ReAct: Synergizing Reasoning and Acting in Language Models, arXiv 2210.03629. Deviates: as `react.py`.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from ..serving import tool_calls
from ..serving.base import Capability
from ..serving.errors import UnknownName, UsageError, demand
from ..serving.flow import CallTool, Failure, Flow, Fork, Generate, Message, ToolCall, ToolResult, ToolSpec
from .base import Policy, Proposal, State, Step
from .calls import REFUSED, in_state, key, quoted, request, run, shown
from .conversation import turns
from .policy import StepPolicy, policy

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

    def __post_init__(self) -> None:
        demand(self.observation_chars >= 1, "observation_chars", self.observation_chars, "write at least 1")

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
        """As the policy's. From a state that waits for a result there is but one step, whatever its count:
        the result, which is that of every draw."""
        rows = [*zip(states, counts, seeds, strict=True)]
        waiting = [self._next(state) if n else None for state, n, _ in rows]
        asked = [(row[0], *call) for row, call in zip(rows, waiting, strict=True) if call is not None]
        going = [row for row, call in zip(rows, waiting, strict=True) if call is None]
        if not asked:
            return (yield from self._drawn(going))
        if not going:
            return (yield from self._told(asked))
        both = yield [Fork((self._told(asked), self._drawn(going)))]  # a slow tool delays no drawing
        told, drawn = both[0]
        if isinstance(told, Failure):  # the budget ended it
            told = [[told] for _ in asked]
        if isinstance(drawn, Failure):
            drawn = [[drawn] * n for _, n, _ in going]
        first, second = iter(told), iter(drawn)
        return [next(second) if call is None else next(first) for call in waiting]

    def _told(
        self, asked: Sequence[tuple[State, ToolCall, CallTool | ToolResult]]
    ) -> Flow[list[list[Proposal]]]:
        results = yield from run([request for _, _, request in asked])
        rows = zip(asked, results, strict=True)
        return [[self._result(state, call, result)] for (state, call, _), result in rows]

    def _drawn(self, rows: Sequence[tuple[State, int, int]]) -> Flow[list[list[Proposal]]]:
        states = [state for state, _, _ in rows]
        counts, seeds = [n for _, n, _ in rows], [seed for _, _, seed in rows]
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

    def _next(self, state: State) -> tuple[ToolCall, CallTool | ToolResult] | None:
        """The first call that a state has no result of yet, if any; refused if it changes anything."""
        here, n = state, 0
        while here.parent is not None and here.step is not None and here.step.kind.startswith(RESULT):
            here, n = here.parent, n + 1
        left = [*self._requests(here, speculative=True)][n:]
        if not left:
            return None
        call, asked = left[0]
        effects = {spec.name: spec.effect for spec in state.task.specs}
        if isinstance(asked, CallTool) and effects[call.name] != "pure":
            asked = ToolResult(MAY_BE_DROPPED.format(call.name), ok=False)
        return call, asked

    def _requests(self, state: State, speculative: bool) -> Iterator[tuple[ToolCall, CallTool | ToolResult]]:
        if not waits(state):
            return
        calls = self._wanted(state, "".join(step.text for step in _since(state)))
        if not calls:
            yield ToolCall("", "?"), UNREADABLE if self.policy.chat else UNREADABLE_LINE
        specs = {spec.name: spec for spec in state.task.specs}
        forbidden = _quoted(state)
        before = [*_made(state, forbidden)]
        for call in calls:
            if call.name not in specs:
                yield call, ToolResult(f"No tool named {call.name!r}. Known: {', '.join(specs)}.", ok=False)
            elif key(call) in forbidden:
                yield call, REFUSED
            else:
                asked = request(call, speculative=speculative)
                if isinstance(asked, CallTool):
                    asked = in_state(asked, specs[call.name], before)
                yield call, asked
                before.append(asked)

    def _result(self, state: State, call: ToolCall, result: ToolResult) -> Step:
        new_line = "" if state.text.endswith("\n") else "\n"
        told = shown(result, self.observation_chars).rstrip()
        return Step(f"{new_line}{_OBSERVATION} {told}\n", kind=f"{RESULT}{call.name}")


def acting(params: Mapping[str, Any]) -> Acting:
    """Acting from its fields, `policy` as `policy.policy` takes it. Raises UnknownName for other fields."""
    words = dict(params)
    inner = policy(words.pop("policy", "cot"))
    known = {f.name for f in fields(Acting)}
    for name in words:
        if name not in known:
            raise UnknownName("parameter of the policy acting", name, known)
    if not isinstance(inner, StepPolicy):
        raise UsageError("Only a preset that writes its own steps can act. Write policy: cot, or another.")
    return Acting(policy=inner, **words)


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
MAY_BE_DROPPED = (
    "The tool {} changes something, and this attempt may be dropped. Call only tools without effects."
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


def _made(state: State, refused: set[tuple[str, str]]) -> Iterator[CallTool | ToolResult]:
    """The calls that have results on the way to a state."""
    for text, _ in _exchanges(state):
        for call in _calls("".join(step.text for step in text), state.task.specs)[1]:
            if key(call) not in refused:
                yield request(call)

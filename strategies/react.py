"""ReAct: the plain agent, which calls tools one turn after another until it answers.

The model is offered the tools and continues a conversation; what it calls is run, and the results are the
next message. One path is followed to its end, so tools with effects may be called.

    y_t ~ p(· | q, y_1, o_1, …, y_{t−1}, o_{t−1}),   o_t = tool(y_t);   the first y_t without a call answers

Source: ReAct: Synergizing Reasoning and Acting in Language Models, arXiv 2210.03629. Deviates: calls in the
form of the model's own training (`serving/tool_calls.py`) beside the paper's, several in a turn, and none
that a tool's description or result held word for word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..serving import tool_calls
from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import CallTool, Failure, Flow, Message, ToolCall, ToolResult, ToolSpec
from ..serving.seeds import derive
from .base import Candidate, Policy, Result, State, Step, Task
from .calls import REFUSED, in_state, key, quoted, request, run, shown
from .conversation import turns
from .search import Node, Search


@dataclass(frozen=True, kw_only=True)
class ReAct:
    """At most `max_turns` generations, the last of them without tools, so that it must answer. The model
    sees `observation_chars` of each result. Cost: one generation more than there are turns with calls."""

    policy: Policy
    max_turns: int = 8
    observation_chars: int = 4000

    def __post_init__(self) -> None:
        if self.max_turns < 1 or self.observation_chars < 1:
            raise UsageError("max_turns and observation_chars must be at least 1.")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Generate and call until there is an answer."""
        search = Search(task, self.policy, None, seed)
        path = _Path(self, task, search, search.root)
        stopped = None
        try:
            yield from path.followed()
        except SearchEnded as end:
            stopped = end
        if not path.asked:
            best: Node | None = path.node
            if path.answer is None:
                best = yield from search.finalise(search.root if stopped else None)
            elif not search.answered(path.node):
                best = yield from search.forced(path.node)
            return search.result(best, stopped=stopped, tool_calls=0)
        pool = [] if path.answer is None else [path.candidate()]
        found = search.result(path.node, stopped=stopped, pool=pool, tool_calls=path.calls)
        if path.answer is None:
            return replace(found, answer=None, complete=False)
        return replace(found, answer=pool[0].answer, text=pool[0].text)


@dataclass
class _Path:
    """The conversation so far, and the same as nodes of the search."""

    of: ReAct
    task: Task
    search: Search
    node: Node
    asked: bool = False  # the model has called something, even if that could not be run
    calls: int = 0
    made: list[CallTool | ToolResult] = field(default_factory=list)
    answer: State | None = None
    quoted: set[tuple[str, str]] = field(default_factory=set)  # calls that tools told of

    def __post_init__(self) -> None:
        for spec in self.task.specs:
            self.quoted |= quoted(spec.description, self.task.specs)

    def followed(self) -> Flow[None]:
        """Turn after turn, until one calls nothing."""
        said: tuple[Message, ...] = turns(self.task, self.task.question)
        specs = self.task.specs
        for turn in range(self.of.max_turns):
            offered = specs if turn + 1 < self.of.max_turns else ()
            asked = replace(
                self.task,
                messages=said if turn or self.task.messages else (),
                offers=(*offered, *self.task.offers),
            )
            start = State(asked, lineage=derive(self.search.seed, "turn", turn) if turn else 0)
            [outcome] = yield from self.of.policy.complete(start, 1, seed=self.search.seed)
            calls = () if isinstance(outcome, Failure) else self._calls(outcome.text, offered)
            children = yield from self.search.record(self.node, [_step(outcome, last=not calls)])
            if not children or isinstance(outcome, Failure):
                return
            self.node = children[0]
            if not calls:
                self.answer = outcome
                return
            said = yield from self._called(said, outcome.text, calls, turn)

    def _called(
        self, said: tuple[Message, ...], text: str, calls: tuple[ToolCall, ...], turn: int
    ) -> Flow[tuple[Message, ...]]:
        """The conversation with these calls and what came of them."""
        rest, _ = tool_calls.read(text, self.task.specs)
        named = tuple(replace(call, id=f"call_{turn}_{i}") for i, call in enumerate(calls))
        requests = [self._request(call) for call in named]
        results = yield from run(requests)
        self.asked = True
        self.calls += sum(isinstance(each, CallTool) for each in requests)
        texts = [shown(result, self.of.observation_chars) for result in results]
        for text in texts:
            self.quoted |= quoted(text, self.task.specs)
        observed = [
            Step(f"\n{text}\n", kind=f"result:{call.name}") for call, text in zip(named, texts, strict=True)
        ]
        self.node = (yield from self.search.graft(self.node, observed))[-1]
        answers = [
            Message("tool", text, tool_call_id=call.id) for call, text in zip(named, texts, strict=True)
        ]
        return (*said, Message("assistant", rest, tool_calls=named), *answers)

    def _request(self, call: ToolCall) -> CallTool | ToolResult:
        if key(call) in self.quoted:
            return REFUSED
        asked = request(call)
        spec = next((spec for spec in self.task.specs if spec.name == call.name), None)
        if spec is not None and isinstance(asked, CallTool):
            asked = in_state(asked, spec, self.made)
        self.made.append(asked)
        return asked

    def _calls(self, text: str, offered: Sequence[ToolSpec]) -> tuple[ToolCall, ...]:
        """What a turn calls, unless it calls what only the caller can run. A bare call that a tool's words
        held is a quotation; in a block it will be refused, so that the model learns why it was not made."""
        _, blocks = tool_calls.read(text)
        theirs = {spec.name for spec in self.task.offers}
        if not offered or any(call.name in theirs for call in blocks):
            return ()
        if blocks:
            return blocks
        _, calls = tool_calls.read(text, (*offered, *self.task.offers))
        if any(call.name in theirs for call in calls):
            return ()
        return tuple(call for call in calls if key(call) not in self.quoted)

    def candidate(self) -> Candidate:
        """The answer, from the last turn alone."""
        assert self.answer is not None
        plain = replace(self.answer, task=replace(self.answer.task, offers=self.task.offers))
        words = self.answer.text.strip() or None  # a question for tools need not be one for a number
        return Candidate(self.of.policy.answer(plain) or words, self.answer.text)


def _step(outcome: State | Failure, *, last: bool) -> Step | Failure:
    if isinstance(outcome, Failure):
        return outcome
    cut = outcome.step is not None and outcome.step.cut
    return Step(outcome.text, outcome.ids, n_tokens=outcome.n_tokens, last=last, cut=cut)

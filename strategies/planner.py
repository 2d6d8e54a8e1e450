"""LLMCompiler: a plan of tool calls, run in parallel as they become ready, then joined into an answer.

A planner writes all calls at once, with references to each other's results (`tools/plans.py`); they run as a
graph (`tools/dag.py`); a joiner answers from what they returned, or asks for another plan. Two requests to
the model where an agent that calls one tool after another needs one more than there are calls.

    plan ~ p(· | q, tools),   o_j = tool_j(o_i : i → j),   Finish(y) or Replan(why) ~ p(· | q, o)

Source: An LLM Compiler for Parallel Function Calling, arXiv 2312.04511; TinyAgent, arXiv 2409.00608.
Deviates: see `tools/plans.py` and `tools/dag.py`; calls with effects keep the order of the plan; without
tools it is a chain of thought.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from ..serving.base import Capability
from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import (
    CallTool,
    Completion,
    Failure,
    Flow,
    Fork,
    Generate,
    Note,
    Prompt,
    Sampling,
    ToolResult,
    ToolSpec,
)
from ..serving.seeds import derive
from ..serving.tool_calls import inert
from ..tools import logistic
from ..tools.dag import CANCELLED, SKIPPED, Dag, Node, OnError
from ..tools.plans import END_OF_PLAN, Action, PlanReader, signature, substituted
from ..tools.retrieval import Example, Retriever
from .base import Policy, Result, Step, Task
from .calls import in_state
from .conversation import told
from .search import Search

Retrieval: TypeAlias = Literal["neighbours", "logistic"]

_SAMPLING = Sampling(temperature=0, max_tokens=512)  # temperature of both papers


@dataclass(frozen=True, kw_only=True)
class Planner:
    """At most `max_plans` plans of `max_actions` calls, `max_parallel` of these at once. With `stream` a call
    starts as soon as its line is written, at the price of one request for each line.

    `examples` are mappings of a `question`, its `tools` and its `plan`: the nearest are shown, and of many
    tools only those that they suggest are offered: by the votes of the most similar questions, or by a
    logistic regression trained on all (`retrieval`: neighbours, logistic). `on_error`: what needs a failed
    call is skipped, or is run on the error's text (propagate), or the rest of the plan is called off
    (cancel_plan). The joiner sees `observation_chars` of each result. `planner` and `joiner` are roles; the
    policy's own model plays them unless the run names others. Cost: 2 requests a plan, and one more for a
    plan that has to be mended.
    """

    policy: Policy
    max_plans: int = 2
    max_parallel: int = 16
    max_actions: int = 32
    on_error: OnError = "skip"
    stream: bool = False
    examples: tuple[Mapping[str, Any], ...] = ()
    retrieval: Retrieval = "neighbours"
    observation_chars: int = 2000
    planner: str = "planner"
    joiner: str = "joiner"
    sampling: Sampling = _SAMPLING

    def __post_init__(self) -> None:
        if min(self.max_plans, self.max_parallel, self.max_actions, self.observation_chars) < 1:
            raise UsageError("max_plans, max_parallel, max_actions and observation_chars must be at least 1.")
        if self.on_error not in get_args(OnError):
            known = ", ".join(map(repr, get_args(OnError)))
            raise UsageError(f"on_error must be one of {known}, got {self.on_error!r}.")
        if self.retrieval not in get_args(Retrieval):
            raise UsageError(f"retrieval must be 'neighbours' or 'logistic', got {self.retrieval!r}.")
        for example in self.examples:
            if not isinstance(example, Mapping) or not {"question", "tools"} <= example.keys():
                raise UsageError(f"An example has a question, tools and a plan, got {example!r:.200}.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """Planner and joiner write text."""
        return {self.planner: frozenset({"generate"}), self.joiner: frozenset({"generate"})}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Plan, run and join until the joiner has an answer or the plans are over."""
        search = Search(task, self.policy, None, seed)
        work = _Work(self, task, seed)
        stopped, best = None, None
        try:
            if task.specs:
                answer = yield from work.answer()
                if answer is not None:
                    [best] = yield from search.record(search.root, [answer])
            else:
                best = search.best((yield from search.complete(search.root, 1)))
        except SearchEnded as end:
            stopped = end
        if best is None:
            search.failures += work.failures
            best = yield from search.finalise(search.root)
        elif not search.answered(best):
            best = yield from search.forced(best)
        failed = next(iter(work.failures), None)  # an answer without what was to be called
        return search.result(best, stopped=stopped or failed, **work.facts())


@dataclass
class _Work:
    """One run of the planner: everything that was planned and observed."""

    of: Planner
    task: Task
    seed: int
    plans: list[list[Action]] = field(default_factory=list)
    outputs: dict[int, ToolResult] = field(default_factory=dict)
    thoughts: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    made: dict[int, CallTool] = field(default_factory=dict)  # the calls that were carried out, by action
    unread: str = ""  # what is wrong with the last plan

    def answer(self) -> Flow[Step | None]:
        """The answer as one step, or None with the reason in `failures`."""
        retriever = self._retriever()
        question = told(self.task)
        for round in range(self.of.max_plans):
            tools = retriever.choose(question, widened=round) if self.of.examples else list(self.task.specs)
            shown = retriever.shown(question, tools)
            actions = yield from self._planned(self._prompt(question, tools, shown), tools, round)
            if actions is None:
                return None
            yield [Note("observations", {str(a.id): self._line(a) for a in actions})]
            joined = yield from self._joined(question, last=round == self.of.max_plans - 1)
            if joined is None or isinstance(joined, Step):
                return joined
            self.thoughts.append(joined)
        return None

    def _retriever(self) -> Retriever:
        examples = tuple(_example(row) for row in self.of.examples)
        if self.of.retrieval == "neighbours" or not any(example.tools for example in examples):
            return Retriever(self.task.specs, examples)
        return Retriever(
            self.task.specs, examples, scorer=logistic.trained(examples), threshold=logistic.THRESHOLD
        )

    def facts(self) -> dict[str, Any]:
        """For the result's diagnostics."""
        actions = [action for plan in self.plans for action in plan]
        failed = sum(not self.outputs[action.id].ok for action in actions if action.id in self.outputs)
        facts: dict[str, Any] = {"plans": len(self.plans), "actions": len(actions), "failed_actions": failed}
        return facts | ({"plan_errors": self.errors} if self.errors else {})

    # ------------------------------------------------------------ plan and run

    def _planned(self, prompt: Prompt, tools: Sequence[ToolSpec], round: int) -> Flow[list[Action] | None]:
        """The calls of a plan, carried out."""
        reader, reply = self._reader(tools), None
        dag = Dag(max_parallel=self.of.max_parallel, on_error=self.of.on_error)
        if self.of.stream:
            reply = yield from self._streamed(prompt, reader, dag, round, "", 0)
        else:
            reply = yield from self._written(prompt, reader, derive(self.seed, "plan", round))
            if reader.error and not isinstance(reply, Failure):  # once
                self.errors.append(reader.error)
                wrong = (
                    f"{reply}\n\nThis plan cannot be carried out. {reader.error}\nWrite the whole plan again."
                )
                again = replace(prompt, messages=(*prompt.messages[:-1], _more(prompt, wrong)))
                reader = self._reader(tools)
                reply = yield from self._written(again, reader, derive(self.seed, "plan", round, "again"))
        if isinstance(reply, Failure):
            self.failures.append(reply.message)
            if not dag.results:
                return None
        actions = [] if reader.error and not self.of.stream else reader.actions
        self.unread = reader.error
        if reader.error:
            self.errors.append(reader.error)
        self.plans.append(actions)
        yield [Note("plan", {"round": round, "calls": [str(action) for action in actions]})]
        if not self.of.stream:
            yield from dag.run(self._nodes(actions))
        self.outputs |= {a.id: _observed(dag.results[a.id]) for a in actions if a.id in dag.results}
        return actions

    def _reader(self, tools: Sequence[ToolSpec]) -> PlanReader:
        good = [id for id, output in self.outputs.items() if output.ok]
        first = 1 + max((a.id for plan in self.plans for a in plan), default=0)
        return PlanReader(tools, first=first, known=good, most=self.of.max_actions)

    def _written(self, prompt: Prompt, reader: PlanReader, seed: int) -> Flow[str | Failure]:
        """A whole plan in one request, read."""
        sampling = replace(self.of.sampling, stop=(END_OF_PLAN,))
        [reply] = yield [Generate(prompt, 1, sampling, seed, model=self.of.planner)]
        if isinstance(reply, Failure):
            return reply
        drawn: Completion = reply[0]
        reader.feed(drawn.text)
        reader.close(whole=drawn.finish != "length")
        return drawn.text

    def _streamed(
        self, prompt: Prompt, reader: PlanReader, dag: Dag, round: int, said: str, n_lines: int
    ) -> Flow[str | Failure]:
        """A plan line by line. From the first call on, each runs while the rest is being written."""
        sampling = replace(self.of.sampling, stop=("\n", END_OF_PLAN))
        while not reader.finished and n_lines < 2 * self.of.max_actions:
            here = derive(self.seed, "plan", round, n_lines)
            [reply] = yield [Generate(replace(prompt, prefix=said), 1, sampling, here, model=self.of.planner)]
            if isinstance(reply, Failure):
                return reply
            drawn: Completion = reply[0]
            said, n_lines = said + drawn.text, n_lines + 1
            actions = reader.feed(drawn.text)
            if drawn.stop != "\n":
                actions += reader.close(whole=drawn.finish != "length")
            if actions:
                [node] = self._nodes(actions, reader.actions[: -len(actions)])
                rest = self._streamed(prompt, reader, dag, round, said, n_lines)
                [(_, written)] = yield [Fork((dag.branch(node), rest), dag.over)]
                called_off = isinstance(written, Failure) and written.kind == CANCELLED
                found: str | Failure = said if called_off else written
                return found
        reader.close(whole=False)
        return said

    def _nodes(self, actions: Sequence[Action], earlier: Sequence[Action] = ()) -> list[Node]:
        """One node for each call; those with effects behind the last of such before them, `earlier` ones of
        the same plan included."""
        last = next((action.id for action in reversed(earlier) if self._writes(action)), None)
        of = {action.id: action.parents for action in (*earlier, *actions)}
        nodes = []
        for action in actions:
            changes = self._writes(action)
            behind = (last,) if changes and last is not None else ()
            after = tuple(parent for parent in action.parents if parent not in self.outputs)
            nodes.append(Node(action.id, _Call(self, action, _ancestors(action.id, of)), after, behind))
            last = action.id if changes else last
        return nodes

    def _writes(self, action: Action) -> bool:
        return next((t.effect for t in self.task.specs if t.name == action.tool), "once") != "pure"

    # ------------------------------------------------------------ join

    def _joined(self, question: str, *, last: bool) -> Flow[Step | str | None]:
        """The answer, or why another plan is needed."""
        system = JOIN_LAST if last else JOIN
        lines = "\n".join(self._lines()) or "(nothing was called)"
        prompt = Prompt.user(f"Question: {question}\n\n{lines}\n", system=system)
        sampling = replace(self.of.sampling, stop=("\nQuestion:",))
        seed = derive(self.seed, "join", len(self.plans))
        [reply] = yield [Generate(prompt, 1, sampling, seed, model=self.of.joiner)]
        if isinstance(reply, Failure):
            self.failures.append(reply.message)
            return None
        drawn: Completion = reply[0]
        kind, said = decision(drawn.content)
        if kind == "Replan" and not last:
            return said or "another plan is needed"
        return Step(said, n_tokens=drawn.n_tokens, last=True, cut=drawn.finish == "length")

    def _lines(self) -> Iterable[str]:
        """Everything that was called, in the order of its numbers whatever ended first."""
        for i, plan in enumerate(self.plans):
            for action in plan:
                yield self._line(action)
            if i < len(self.thoughts):
                yield f"Thought: {self.thoughts[i]}"
        if self.unread:
            yield f"The plan could not be read: {self.unread}"

    def _line(self, action: Action) -> str:
        """A call with what came of it, on one line: what a tool returned cannot pass for another call."""
        output = self.outputs.get(action.id, ToolResult("it was not run", ok=False))
        said, most = inert(output.text.removeprefix("Error: ")), self.of.observation_chars
        if len(said) > most:
            said = f"{said[:most]} [{len(said)} characters; the first {most} are shown]"
        thought = f"Thought: {action.thought}\n" if action.thought else ""
        kind = "Observation" if output.ok else "Error"
        return f"{thought}{action}\n{kind}: {json.dumps(said, ensure_ascii=False)}"

    def _prompt(self, question: str, tools: Sequence[ToolSpec], shown: Sequence[Example]) -> Prompt:
        listed = "\n".join(f"- {signature(tool)}" for tool in tools)
        examples = "".join(f"\nQuestion: {e.question}\n{e.plan.strip()}\n###\n" for e in shown)
        system = PLAN.replace("{tools}", listed) + (f"\nExamples:\n{examples}" if examples else "")
        asked = f"Question: {question}"
        if self.plans:
            first = 1 + max((a.id for plan in self.plans for a in plan), default=0)
            asked += REPLAN.replace("{lines}", "\n".join(self._lines())).replace("{first}", str(first))
        return Prompt.user(asked, system=system)


@dataclass(frozen=True)
class _Call:
    """A call, once the results it needs are there. What its ancestors left in a tool that keeps a state is
    there too; calls that do not need each other do not see each other's."""

    of: _Work
    action: Action
    ancestors: frozenset[int]

    def __call__(self, parents: Mapping[Any, Any]) -> Flow[Any]:
        of, action = self.of, self.action
        outputs = {**of.outputs, **{id: _observed(result) for id, result in parents.items()}}
        asked = CallTool(action.tool, substituted(action.arguments, outputs))
        spec = next((spec for spec in of.task.specs if spec.name == action.tool), None)
        if spec is not None:
            before = [
                call for id, call in sorted(of.made.items()) if id in self.ancestors or id in of.outputs
            ]
            asked = in_state(asked, spec, before)
        [reply] = yield [asked]
        of.made[action.id] = asked
        return reply if isinstance(reply, Failure) or reply.ok else Failure("tool", reply.text)


def _ancestors(action: int, parents: Mapping[int, Iterable[int]]) -> frozenset[int]:
    """All that an action needs, however far."""
    found: set[int] = set()
    waiting = [action]
    while waiting:
        new = set(parents.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return frozenset(found)


def _observed(result: Any) -> ToolResult:
    if isinstance(result, Failure):
        prefix = "skipped: " if result.kind in (SKIPPED, CANCELLED) else "Error: "
        return ToolResult(f"{prefix}{result.message}", ok=False)
    found: ToolResult = result
    return found


def _example(row: Mapping[str, Any]) -> Example:
    return Example(str(row["question"]), frozenset(map(str, row["tools"])), str(row.get("plan", "")))


def _more(prompt: Prompt, said: str) -> Any:
    return replace(prompt.messages[-1], content=f"{prompt.messages[-1].content}\n\n{said}")


def decision(text: str) -> tuple[str, str]:
    """What the joiner decided: "Finish" or "Replan", and what stands between the brackets. A text without
    such a line is the answer.

    >>> decision("Thought: 2 is more.\\nAction: Finish(Oslo (Norway))"), decision("Oslo")
    (('Finish', 'Oslo (Norway)'), ('Finish', 'Oslo'))
    """
    found = list(_ACTION.finditer(text))
    if not found:
        return "Finish", text.strip()
    said = text[found[-1].end() :]
    inside = said[: said.rindex(")")] if ")" in said else said
    return found[-1][1].capitalize(), inside.strip().strip("\"'")


_ACTION = re.compile(r"^[ \t*]*(?:Action:[ \t*]*)?(Finish|Replan)\(", re.MULTILINE | re.IGNORECASE)


# ---------------------------------------------------------------- prompts

PLAN = """\
Plan the tool calls that answer the question, as many as possible in parallel. The tools:
{tools}
- join()
   Always last: answers from all results, or asks for another plan.

One call a line: <number>. <tool>(<arguments>), with increasing numbers. Arguments are constants, or \
$<number> for what an earlier call returned. Write only calls. If none helps, or nothing more can be planned \
yet, call join(). Then write <END_OF_PLAN>.
"""
REPLAN = """

What was called so far:
{lines}

Make another plan with what was learned. Never repeat a call. Begin with a line "Thought: " about the \
strategy. Numbers go on from {first}; earlier results may be referred to."""
JOIN_LAST = """\
Answer from what the tools returned, in two lines:
Thought: <what follows from it>
Action: Finish(<the answer, as short as possible>)"""
JOIN = JOIN_LAST + "\nIf it is not enough: Action: Replan(<what is missing>)"

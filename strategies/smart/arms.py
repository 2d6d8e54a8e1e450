"""The arms: least-to-most and program of thought as strategies of their own, and any other by its name.

    arm("pot", policy)                                        a named one
    arm({"strategy": "self_consistency", "n": 8}, policy)     any registered strategy, with parameters
    arm({"strategy": "cot", "policy": "few_shot"}, policy)    either, with a policy of its own

Sources: Least-to-Most Prompting Enables Complex Reasoning in Large Language Models, arXiv 2205.10625; Program
of Thoughts Prompting, arXiv 2211.12588; PAL, arXiv 2211.10435.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from ...serving.errors import SearchEnded, UnknownName, UsageError
from ...serving.flow import CallTool, Failure, Flow
from ...serving.seeds import derive
from .. import STRATEGIES, strategy
from ..base import Policy, Result, State, Step, Strategy, Task
from ..chain_of_thought import ChainOfThought
from ..conversation import told
from ..policy import StepPolicy
from ..policy import policy as policy_of
from ..rewards import reward as reward_of
from ..search import Node, Search

_MAX_PARTS = 6  # sub-questions that are answered; a model that lists more repeats itself


@dataclass(frozen=True, kw_only=True)
class LeastToMost:
    """Sub-questions from the simple to the whole, answered in order, each with the answers before it in view.

    `one_call`: questions and answers in one text, at the cost of one solution; else one call for the list and
    one for each question, the last of which is the task's own.
    """

    policy: Policy
    one_call: bool = False

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Ask, then answer."""
        if self.one_call:
            writer = adapted(self.policy, "l2m", LEAST_TO_MOST, _LEAST_TO_MOST_SHOTS)
            return (yield from ChainOfThought(policy=writer).solve(task, seed=seed))
        search = Search(task, self.policy, None, seed)
        best, stopped = search.root, None
        try:
            parts = yield from self.parts(search)
            best = yield from self.answered(search, parts)
        except SearchEnded as end:
            stopped = end
        if best.terminal and not search.answered(best):
            best = yield from search.forced(best)
        return search.result(best, stopped=stopped, parts=len(search.terminals))

    def parts(self, search: Search) -> Flow[list[str]]:
        """The sub-questions, the task's own last."""
        asked = replace(search.task, question=_filled(DECOMPOSE, question=told(search.task)), messages=())
        lister = replace(_steps(self.policy, "l2m"), prompt="plain", examples=(), answer_kind="text")
        drawn = yield from self.drawn(search, asked, lister, "parts")
        lines = (
            [re.sub(r"^\W*\d*[.):]?\s*", "", line).strip() for line in drawn.state.text.splitlines()]
            if drawn
            else []
        )
        listed = [line for line in lines if line.endswith("?") and line != search.task.question.strip()]
        return [*dict.fromkeys(listed[: _MAX_PARTS - 1]), search.task.question]

    def answered(self, search: Search, parts: list[str]) -> Flow[Node]:
        """The answer to the last question."""
        done: list[str] = []
        node: Node | None = None
        for i, part in enumerate(parts):
            known = "\n\n".join(done)
            last = i == len(parts) - 1
            words = _filled(
                GO_ON if done else "{part}", question=search.task.question, known=known, part=part
            )
            task = replace(search.task, question=words)
            if not last:
                task = replace(task, constraint=None, offers=())
            node = yield from self.drawn(search, task, self.policy, i)
            if node is None:
                return search.root
            done.append(f"{part}\n{node.state.text.strip()}")
        assert node is not None
        return node

    def drawn(self, search: Search, task: Task, policy: Policy, name: str | int) -> Flow[Node | None]:
        """One text, to a question of ours, as a finished solution in the store."""
        state = State(task, lineage=derive(search.seed, "least to most", name))
        outcomes = yield from policy.complete(state, 1, seed=search.seed)
        nodes = yield from search.record(search.root, [_whole(outcome) for outcome in outcomes])
        return nodes[0] if nodes else None


@dataclass(frozen=True, kw_only=True)
class ProgramOfThought:
    """A program that computes the answer, run by the tool `python`; its value is the answer.

    A program that fails or prints nothing has no answer. A text without any program is read as it is.
    """

    policy: Policy
    needs = ("python",)

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Write, then run."""
        writer = adapted(self.policy, "pot", PROGRAM, _PROGRAM_SHOTS)
        whole = replace(
            writer, delimiter=None, sampling=replace(writer.sampling, max_tokens=writer.max_solution_tokens)
        )
        search = Search(task, whole, None, seed)
        best, stopped, error = search.root, None, ""
        drafts: list[Node] = []
        try:
            drafts = yield from search.complete(search.root, 1, score=False)
            if drafts:
                best = drafts[0]
                if code := program(best.state.text):
                    best, error = yield from self.run(search, best, code)
        except SearchEnded as end:
            stopped = end
        written = drafts[0].state.text if drafts else ""
        result = search.result(best, stopped=stopped, program_error=error, written=written)
        return replace(result, answer=None) if error else result

    def run(self, search: Search, draft: Node, code: str) -> Flow[tuple[Node, str]]:
        """The draft with what its program printed behind it, and what was wrong with it."""
        [reply] = yield [CallTool("python", {"code": code})]
        text = reply.message if isinstance(reply, Failure) else reply.text.strip()
        if isinstance(reply, Failure) or not reply.ok or not text:
            return draft, text[-200:] or "it printed nothing"
        value = text.splitlines()[-1].strip()
        said = f"{draft.state.text.rstrip()}\n{_stated(search.policy, value)}"
        before = draft.state.step
        step = Step(said, n_tokens=before.n_tokens if before else 0, kind="version", last=True)
        [node] = yield from search.graft(draft, [step], score=False)
        search.counts.proposals += 1  # the printed value, so that every node is one
        return node, ""


@dataclass(frozen=True, kw_only=True)
class SelfChosen:
    """The model names a strategy and solves by it, as it learns to from exported records; a program that it
    writes under "pot" is run. For a model that was tuned so: others name none."""

    policy: Policy
    arms: tuple[str, ...] = ("cot", "l2m", "pot")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Write, read the name, run what is to be run."""
        system = SYSTEM.format(arms=", ".join(sorted(self.arms)))
        writer = replace(_steps(self.policy, "self"), system=system, prompt="plain", chat=True, examples=())
        search = Search(task, writer, None, seed)
        best, stopped, error, chosen = search.root, None, "", ""
        try:
            drafts = yield from search.complete(search.root, 1, score=False)
            if drafts:
                best = drafts[0]
                named = TAG.match(best.state.text.strip())
                chosen = named[1] if named and named[1] in self.arms else ""
                code = program(best.state.text.strip()[named.end() :].strip()) if named else ""
                if chosen == "pot" and code:
                    best, error = yield from ProgramOfThought(policy=writer).run(search, best, code)
        except SearchEnded as end:
            stopped = end
        result = search.result(best, stopped=stopped, program_error=error, chosen=chosen)
        return replace(result, answer=None) if error else result


TAG = re.compile(r"<strategy>([\w-]+)</strategy>")
_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def program(text: str) -> str:
    """The program in a text, with a last line that prints its value; empty if there is none.

    >>> print(program("def solution():\\n    return 6 * 7"))
    def solution():
        return 6 * 7
    print(solution())
    """
    fenced = _FENCE.findall(text)
    code: str = (fenced[-1] if fenced else text).rstrip()
    if re.search(r"^def solution\(", code, re.MULTILINE) and not re.search(r"^print\(", code, re.MULTILINE):
        return f"{code}\nprint(solution())"
    return code if re.search(r"^\s*print\(|^def |^import |^from \w+ import ", code, re.MULTILINE) else ""


def adapted(policy: Policy, arm: str, prompt: str, shots: tuple[tuple[str, str], ...]) -> StepPolicy:
    """The policy with an arm's words, and with its examples where the policy goes by examples. A prompt or
    examples that already are the arm's own stay: those whose solutions hold a program, or sub-questions."""
    writer = _steps(policy, arm)
    marks = {"pot": ("def ", "print("), "l2m": ("?",)}[arm]
    if writer.examples and all(any(mark in solution for mark in marks) for _, solution in writer.examples):
        return writer
    if writer.chat:
        return replace(writer, prompt=prompt, examples=())
    return replace(writer, prompt="few_shot", examples=shots, separator="\n\n", stop=("Question:",))


def _steps(policy: Policy, arm: str) -> StepPolicy:
    if isinstance(policy, StepPolicy):
        return policy
    raise UsageError(f"The arm {arm} needs a policy such as cot, got {type(policy).__name__}.")


def _stated(policy: Policy, value: str) -> str:
    """A value as the policy reads answers."""
    writer = _steps(policy, "pot")
    if writer.answer_kind == "text":
        return value
    return f"{writer.cue.lstrip()} {value}{ {'{': '}', '(': ')'}.get(writer.cue[-1:], '.') }"


def _whole(outcome: State | Failure) -> Step | Failure:
    if isinstance(outcome, Failure):
        return outcome
    cut = outcome.step is not None and outcome.step.cut
    return Step(outcome.text, outcome.ids, n_tokens=outcome.n_tokens, last=True, cut=cut)


def _filled(template: str, **words: str) -> str:
    return re.sub(r"\{(question|known|part)\}", lambda place: words[place[1]], template)


# ---------------------------------------------------------------- by name

OWN: Mapping[str, type] = {
    "cot": ChainOfThought, "l2m": LeastToMost, "pot": ProgramOfThought, "self": SelfChosen
}  # fmt: skip
"""The paper's three, by its names, and the model's own choice."""

NO_RECIPE = (
    "A recipe is no arm, and neither is a pipeline: arms are strategies. Write {strategy: name, …} with the "
    "parameters, the policy and the reward of the step that solves. Steps around it stand in smart's own "
    "recipe: pipeline: [{solve: {strategy: smart, …}}, {verify: …}]; several ways through them are a step "
    "`route`."
)
_OF_RECIPES = frozenset({"recipe", "include", "pipeline", "nodes", "solve", "steps"})


def arm(spec: Any, policy: Policy) -> Strategy:
    """An arm from its name, a mapping `{strategy: …, policy: …, reward: …, parameter: …}`, or itself."""
    if hasattr(spec, "asolve") or (isinstance(spec, Mapping) and _OF_RECIPES & set(spec)):
        raise UsageError(NO_RECIPE)
    if hasattr(spec, "solve"):
        made: Strategy = spec
        return made
    words = {"strategy": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = words.pop("strategy", None)
    if not isinstance(name, str):
        raise UsageError(f"An arm is a name or {{strategy: name, …}}, got {spec!r:.200}.")
    try:
        kind = OWN[name] if name in OWN else strategy(name)
    except UnknownName:
        raise UnknownName("arm", name, [*OWN, *STRATEGIES]) from None
    known = {f.name: f for f in fields(kind)}
    for key, value in words.items():
        if key not in known:
            raise UnknownName(f"parameter of the arm {name}", key, known)
        if isinstance(value, Mapping) and is_dataclass(default := known[key].default):
            words[key] = _replaced(default, value, f"{key} of the arm {name}")
        elif isinstance(value, list):
            words[key] = tuple(value)
    if (own := words.pop("policy", None)) is not None:
        policy = own if isinstance(own, Policy) else policy_of(own)
    if "reward" in known:
        given = words.pop("reward", "self_eval")
        words["reward"] = reward_of(given, policy=policy) if isinstance(given, (str, Mapping)) else given
    try:
        made = kind(policy=policy, **words)
    except TypeError as error:
        raise UsageError(f"The arm {name} cannot be made: {error}.") from None
    return made


def _replaced(default: Any, changes: Mapping[str, Any], what: str) -> Any:
    """A part, such as sampling, with some of its fields replaced."""
    known = {f.name for f in fields(default)}
    for key in changes:
        if key not in known:
            raise UnknownName(what, key, known)
    return replace(default, **changes)


# ---------------------------------------------------------------- prompts

SYSTEM = "Strategies: {arms}. First name the strategy that suits the problem, then solve the problem by it."
LEAST_TO_MOST = (
    "{question}\n\nFirst list the smaller questions that must be answered, from the simplest to the whole. "
    "Then answer them in that order, with a blank line between them. "
    "Write the last line as: The answer is <answer>."
)
PROGRAM = (
    "{question}\n\nWrite a Python function solution() without arguments that computes the answer and returns "
    "it. Write the code only."
)
DECOMPOSE = (
    "{question}\n\nTo answer this, which smaller questions must be answered first? List them from the "
    "simplest on, one a line, each ending with a question mark. Do not answer them."
)
GO_ON = "{question}\n\n{known}\n\n{part}"

_QUESTIONS = (
    "A box holds 6 pens. How many pens are in 4 boxes?",
    "Mia had 20 dollars. She bought 3 books at 4 dollars each. How much is left?",
    "Tom runs 5 km a day. How far does he run in 2 weeks?",
    "What is 14 + 25 + 8?",
)
_LEAST_TO_MOST_SHOTS = tuple(
    zip(
        _QUESTIONS,
        (
            "How many pens are in one box? 6.\nHow many pens are in 4 boxes? 4 * 6 = 24.\nThe answer is 24.",
            "How much do the books cost? 3 * 4 = 12.\nHow much is left? 20 - 12 = 8.\nThe answer is 8.",
            "How many days are 2 weeks? 2 * 7 = 14.\nHow far does he run in 14 days? 14 * 5 = 70.\n"
            "The answer is 70.",
            "What is 14 + 25? 39.\nWhat is 39 + 8? 47.\nThe answer is 47.",
        ),
        strict=True,
    )
)
_PROGRAM_SHOTS = tuple(
    zip(
        _QUESTIONS,
        (
            "def solution():\n    pens = 6\n    boxes = 4\n    return pens * boxes",
            "def solution():\n    money = 20\n    cost = 3 * 4\n    return money - cost",
            "def solution():\n    days = 2 * 7\n    return days * 5",
            "def solution():\n    return 14 + 25 + 8",
        ),
        strict=True,
    )
)

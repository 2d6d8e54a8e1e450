"""Hogwild! inference: workers of one model write side by side, each reads the others as they write.

How the work is split is not fixed beforehand: the workers see the question, all finished steps, and each
other's unfinished steps down to the last token, and plan, divide, correct and give way in words. No token of
theirs is read twice: in the engine all attend to one cache, each in its own order.

    worker w sees   question │ finished steps │ the others' unfinished steps │ its own unfinished step
    a step          "**Alice [3]:** …", to a blank line behind a whole sentence; then it is a finished step
    the end         a finished step that states the answer; else `calls` tokens a worker, a forced answer

Source: Hogwild! Inference: Parallel LLM Generation via Concurrent Attention, arXiv 2504.06261. Deviates: the
prompts are written anew; a blank line ends a step that states the answer whatever stands before it; marks
have no space behind them; the answer is read as the policy reads it, not only from a box.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from ..serving.base import Capability
from ..serving.errors import SearchEnded, UsageError, demand
from ..serving.flow import Completion, Failure, Flow, Generate, Message, Prompt, Sampling
from ..serving.seeds import derive
from ..serving.workers import Layout, Workers
from .base import Policy, Proposal, Result, State, Step, Task
from .policy import StepPolicy
from .search import Node, Search


@dataclass(frozen=True, kw_only=True)
class Hogwild:
    """`workers` of them, at most `calls` tokens each. Cost: their tokens, of which one a worker is computed
    in each call of the model, and 16 for an answer where none was given.

    `layout`: what they see of each other (`serving/workers.py`). Each time they have written more than
    `hint_every` tokens, the next to begin a step is made to ask whether its work is redundant. Answers are
    read as the policy reads them; its prompt and sampling are used, its steps and marks are not. `openings`:
    what each begins with, else texts of this file; with () nothing, which suits small models, who would greet
    for ever.
    """

    policy: Policy
    workers: int = 2
    calls: int = 512
    layout: Layout = "combined"
    hint_every: int = 1024
    openings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        demand(
            1 <= self.workers <= len(NAMES), "workers", self.workers, f"write 1 to {len(NAMES)}, such as 2"
        )
        demand(self.calls >= 1, "calls", self.calls, "write a number of tokens a worker, such as 512")
        layouts = get_args(Layout)
        demand(self.layout in layouts, "layout", self.layout, f"write one of {', '.join(layouts)}")
        fit = self.openings is None or len(self.openings) in (0, self.workers)
        demand(fit, "openings", self.openings, "write one for each worker, or none: openings: []")
        demand(self.hint_every >= 1, "hint_every", self.hint_every, "write a number of tokens, such as 1024")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """The engine lets them write side by side."""
        return {"policy": frozenset({"generate", "workers"})}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Let them write; force an answer where they gave none."""
        if task.in_one_piece:
            raise UsageError(
                "Workers write prose, no call and no demanded form. Use another strategy for it."
            )
        search = Search(task, self.policy, None, seed)
        stopped = None
        node: Node | None = None
        try:
            [reply] = yield [self.request(task, seed)]
            for node in (yield from search.record(search.root, [self.step(reply)])):
                if not node.terminal:
                    node = yield from self.forced(search, node, seed)
        except SearchEnded as end:
            stopped = end
        calls = -(-(node.state.steps[0].n_tokens if node else 0) // self.workers)
        return search.result(node, stopped=stopped, calls_per_worker=calls)

    # ------------------------------------------------------------ the group

    def group(self) -> Workers:
        """Who they are."""
        usual = (FIRST_OPENING, *[OPENING] * (self.workers - 1))
        return Workers(
            names=NAMES[: self.workers],
            openings=usual if self.openings is None else tuple(self.openings),
            layout=self.layout,
            past=PAST,
            others=OTHERS,
            own=OWN,
            hint=HINT,
            hint_every=self.hint_every,
            until=UNTIL[self.shape.answer_kind],
        )

    @property
    def shape(self) -> StepPolicy:
        """The policy. Raises UsageError where it is not one model's."""
        if not isinstance(self.policy, StepPolicy):
            raise UsageError(
                "Hogwild asks one model by its policy's prompt, and cannot by that of "
                f"{type(self.policy).__name__}. Write policy: math, or another preset."
            )
        return self.policy

    def request(self, task: Task, seed: int) -> Generate:
        """One transcript of the group."""
        most = self.calls * self.workers
        most = most if task.max_tokens is None else max(1, min(most, task.max_tokens))
        sampling = replace(self.shape.sampling, stop=(), max_tokens=most)
        here = derive(seed, "group")
        return Generate(self.prompt(task), 1, sampling, here, extra=task.extra, workers=self.group())

    def prompt(self, task: Task, behind: str = "") -> Prompt:
        """The policy's, with the rules of working together before the question; `behind` goes on from it."""
        asked = self.shape.prompt_for(State(task))
        names = ", ".join(NAMES[: self.workers])
        rules = RULES.replace("{names}", names).replace("{n}", str(self.workers))
        if not asked.messages:
            return replace(asked, prefix=f"{rules}\n\n{asked.prefix}{behind}")
        *before, last = asked.messages
        whole = Message(last.role, f"{rules}\n\n{last.content}")
        return replace(asked, messages=(*before, whole), prefix=behind)

    def step(self, reply: tuple[Completion, ...] | Failure) -> Proposal:
        """A transcript as one step; the last, if it states an answer."""
        if isinstance(reply, Failure):
            return reply
        if not reply:
            return Failure("budget", "a transcript was asked for, none could be had")
        [drawn] = reply
        cut = drawn.finish == "length"
        last = not cut or self.shape.answer_kind == "text"
        return Step(drawn.text, n_tokens=drawn.n_tokens, last=last, cut=cut)

    def forced(self, search: Search, node: Node, seed: int) -> Flow[Node]:
        """An answer after the transcript, from the same model without the group."""
        task = search.task
        left = FORCED_TOKENS if task.max_tokens is None else task.max_tokens - node.state.n_tokens
        if left < 1:
            return node
        gap = "" if node.state.text.endswith("\n") else "\n\n"
        cue = f"{gap}{TIME_IS_UP}{self.shape.cue}"
        greedy = Sampling(temperature=0.0, max_tokens=min(left, FORCED_TOKENS), stop=("\n",))
        prompt = self.prompt(task, PAST + node.state.text + cue)
        [reply] = yield [Generate(prompt, 1, greedy, derive(seed, "forced"), extra=task.extra)]
        step = self.step(reply)
        if isinstance(step, Step):
            step = replace(step, text=cue + step.text, last=True)
        leaves = yield from search.record(node, [step])
        return leaves[0] if leaves else node


FORCED_TOKENS = 16
NAMES = ("Alice", "Bob", "Carol", "David", "Eve", "Frank", "Grace", "Henry")
UNTIL: dict[str, tuple[str, ...]] = {
    "number": ("\\boxed{", "he answer is"),
    "boxed": ("\\boxed{",),
    "words": ("\\boxed{", "he answer is"),
    "choice": ("he answer is",),
    "final": ("inal answer is",),
    "text": (),
}
"""What a step that states an answer of each kind has in it."""

# ---------------------------------------------------------------- prompts

PAST = "### Past steps\n\n"
OTHERS = "\n\n### Work in progress (others)\n\n"
OWN = "\n\n### Work in progress (own)\n\n"
RULES = (
    "{n} assistants ({names}) solve the problem below together. They write at the same time, and each sees "
    "what the others write while they write it.\n\nPast steps, finished by anyone, come first. Then come the "
    "steps that the others are still writing, each of which ends in <...>, as it is not finished. Your own "
    "step comes last. Write short steps, with a blank line after each.\n\nSplit the work. Read what the "
    "others write, answer their suggestions, and use their results instead of finding them again. If your "
    "step does what another is doing, stop it and do something else. Whoever knows the final answer gives "
    "it, once."
)
FIRST_OPENING = " Hi, this is how we can split the work:"
OPENING = " Hi, I read what you write."
HINT = " Am I doing what someone else is doing (yes or no)?"
TIME_IS_UP = "Time is up: the final answer must be given now."

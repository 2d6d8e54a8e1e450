"""What the readers share: their settings, searching, and calls whose prompt is made to fit the model's
window."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ...serving.base import Capability
from ...serving.constraints import Constraint
from ...serving.errors import SearchEnded, UsageError, demand
from ...serving.flow import CallTool, Completion, Failure, Flow, Generate, Message, Note, Prompt, Sampling
from ...serving.seeds import derive
from ..base import Candidate, Outcome, Policy, Proposal, Result, State, Step, Task
from ..conversation import told
from ..search import Node, Search
from .demonstrations import Demonstration, chosen, load
from .documents import Document, documents, found, merged, ordered
from .lines import read
from .metrics import error_class

_SAMPLING = Sampling(temperature=0, max_tokens=64)  # answers of the paper have fewer than 10 tokens


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Settings of a reader.

    `k` documents for the question and for each of `m` demonstrations (None: all there are). `demos`: a file
    of them (`demonstrations.py`), or rows; `choose`: the same ones for every question, by `demo_seed`, or the
    nearest by words. `retriever`: a tool that takes `query` and `k` and returns rows `{id, title, text}`,
    best first. Documents are cut after `doc_tokens` words. `chat`: as messages; without, as one text to go on
    with. `window`: tokens of a prompt, taken as 3 characters each; what is too long for it, or for the
    engine, loses demonstrations, the last first, then documents, the lowest rank first.
    """

    policy: Policy
    k: int = 10
    m: int | None = None
    demos: str | tuple[Mapping[str, Any], ...] = ()
    choose: Literal["seed", "nearest"] = "seed"
    demo_seed: int = 0
    retriever: str = "search"
    doc_tokens: int = 1024
    order: Literal["reverse", "forward"] = "reverse"
    chat: bool = True
    window: int | None = None
    sampling: Sampling = _SAMPLING

    def __post_init__(self) -> None:
        demand(0 <= self.k <= 1000, "k", self.k, "write 0 to 1000, such as 10")
        demand(self.m is None or self.m >= 0, "m", self.m, "write 0 or more, or null for all")
        demand(self.doc_tokens >= 1, "doc_tokens", self.doc_tokens, "write at least 1, such as 1024")
        demand(
            self.window is None or self.window >= 64, "window", self.window, "write at least 64, such as 2048"
        )
        if self.choose not in ("seed", "nearest") or self.order not in ("reverse", "forward"):
            raise UsageError("choose is seed or nearest, and order is reverse or forward.")
        if len(self.shots) < (self.m or 0):
            there_are = f"there are {len(self.shots)} demonstrations"
            raise UsageError(f"m is {self.m}, and {there_are}. Give more in demos, or a lower m.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """It writes text."""
        return {"policy": frozenset({"generate"})}

    @cached_property
    def shots(self) -> tuple[Demonstration, ...]:
        """All demonstrations."""
        return load(self.demos)


def refuse_calls(task: Task) -> None:
    """Raise UsageError for a task with tools of the caller's: a reader would never call them."""
    if task.offers:
        raise UsageError("Readers of documents answer, and call no tools. Use another strategy for them.")


class Lines(Policy):
    """A policy whose solutions may be a reader's lines; else it is `of`."""

    def __init__(self, of: Policy) -> None:
        self.of = of
        self.answers: list[tuple[Step, str]] = []  # of the steps that end a solution

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """As the policy does."""
        return (yield from self.of.propose(states, counts, seeds))

    def complete(self, state: State, n: int, *, seed: int, first_draw: int = 0) -> Flow[list[Outcome]]:
        """As the policy does."""
        return (yield from self.of.complete(state, n, seed=seed, first_draw=first_draw))

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        """As the policy does."""
        return (yield from self.of.force(states, seeds))

    def terminal(self, state: State) -> bool:
        """A line that only looks like an answer is none."""
        if state.step is None or state.step.last:
            return state.step is not None
        return read(state.step.text) is None and self.of.terminal(state)

    def answer(self, state: State) -> Any:
        """What was said behind the last prefix."""
        for step, answer in self.answers:
            if step is state.step:
                return answer or None
        return self.of.answer(state)


@dataclass
class Reader:
    """One run: what was found, what was drawn, what was sent."""

    of: Reading
    task: Task
    seed: int
    groups: list[list[Document]] = field(default_factory=list)  # one for each search of the test question
    shots: list[tuple[Demonstration, list[Document]]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    lost: set[str] = field(default_factory=set)  # documents that did not fit
    format_errors: int = 0
    last_draft: str = ""  # the last line of a text that kept no form

    def __post_init__(self) -> None:
        self.question = "\n".join([told(self.task), *self.task.choices])
        self.lines = Lines(self.of.policy)
        self.search = Search(self.task, self.lines, None, self.seed)
        self.node = self.search.root
        self.has_retriever = any(spec.name == self.of.retriever for spec in self.task.specs)

    @property
    def n_lines(self) -> int:
        """Lines that were said so far."""
        return 0

    # ------------------------------------------------------------ what is found

    def prepared(self) -> Flow[None]:
        """Search for the question and for the demonstrations that bring no documents, all at once."""
        of = self.of
        m = len(of.shots) if of.m is None else of.m
        picked = chosen(of.shots, m, self.task.question, of.demo_seed if of.choose == "seed" else None)
        bare = [shot for shot in picked if not shot.documents]
        mine, *theirs = yield from self.searched([self.task.question, *(shot.question for shot in bare)])
        self.groups.append(mine)
        lists = iter(theirs)
        for shot in picked:
            rows = documents(shot.documents, of.k, of.doc_tokens) if shot.documents else next(lists)
            self.shots.append((shot, rows))

    def searched(self, queries: Sequence[str]) -> Flow[list[list[Document]]]:
        """The documents of each query, best first; none where the search failed."""
        k = self.of.k
        if not k or not self.has_retriever:
            return [[] for _ in queries]
        replies = yield [CallTool(self.of.retriever, {"query": query, "k": k}) for query in queries]
        lists = [found(reply, k, self.of.doc_tokens) for reply in replies]
        for reply, rows in zip(replies, lists, strict=True):
            if rows is None:
                self.failed(getattr(reply, "message", "") or getattr(reply, "text", ""), reply)
        return [rows or [] for rows in lists]

    def failed(self, why: str, reply: Any) -> None:
        """Keep the reason, once."""
        if why not in self.search.failures:
            self.search.failures.append(why)
        if isinstance(reply, Failure) and reply.kind == "budget":
            self.search.ended = SearchEnded(why)

    def shown(self, group: Sequence[Document]) -> list[Document]:
        """Documents in their order, without those that did not fit."""
        kept = [each for each in group if each.id not in self.lost]
        return ordered(kept, reverse=self.of.order == "reverse")

    def fresh(self) -> list[list[Document]]:
        """The groups, each document where it was found first, in order and as far as it fits."""
        return [self.shown(group) for group in merged(self.groups)]

    # ------------------------------------------------------------ what is asked

    def asked(
        self,
        prompt: Callable[[], Prompt],
        *at: str | int,
        stop: tuple[str, ...] = ("\n",),
        constraint: Constraint | None = None,
    ) -> Flow[Completion | Failure]:
        """One completion of a prompt that is made anew, with less in it, until it fits."""
        of, task = self.of, self.task
        if of.window is not None:
            self.fitted(prompt, 3 * of.window)
        sampling = replace(of.sampling, stop=(*task.stop, *stop))
        if task.max_tokens is not None:
            sampling = replace(sampling, max_tokens=min(task.max_tokens, sampling.max_tokens))
        while True:
            made = prompt()
            request = Generate(
                made, 1, sampling, derive(self.seed, *at), constraint=constraint, extra=task.extra
            )
            [reply] = yield [request]
            if not isinstance(reply, Failure):
                self.sent += Counter(
                    calls=1,
                    documents=sum(len(rows) for _, rows in self.shots) + sum(map(len, self.fresh())),
                    demonstrations=len(self.shots),
                    lines=self.n_lines,
                )
                drawn: Completion = reply[0]
                return drawn
            share = fitting(reply)
            if share is None or not self.fitted(prompt, int(share * length(made))):
                return reply

    def fitted(self, prompt: Callable[[], Prompt], chars: int) -> bool:
        """Take out what the prompt can do without until it has at most so many characters, or nothing is left
        to take out; whether anything was."""
        taken = False
        while (over := length(prompt()) - chars) > 0:
            kept = sorted((each for group in self.fresh() for each in group), key=lambda each: each.rank)
            if not self.shots and not kept:
                break
            while self.shots and over > 0:
                shot, rows = self.shots.pop()
                over -= len(shot.question) + sum(len(each.line()) for each in rows)
            while kept and over > 0:
                over -= len(kept[-1].line())
                self.lost.add(kept.pop().id)
            taken = True
        return taken

    # ------------------------------------------------------------ what is drawn

    def recorded(self, drawn: Completion | Failure, text: str, answer: str | None = None) -> Flow[None]:
        """A step of the solution; with an `answer` its end."""
        if isinstance(drawn, Failure):
            yield from self.search.record(self.node, [drawn])
            return
        last = answer is not None
        step = Step(text, n_tokens=drawn.n_tokens, last=last, cut=last and drawn.finish == "length")
        if answer is not None:
            self.lines.answers.append((step, answer))
        [self.node] = yield from self.search.record(self.node, [step])

    def dropped(self, drawn: Completion) -> Flow[None]:
        """A draft that kept no form: it stays in the trace, and leads nowhere."""
        self.format_errors += 1
        nodes = yield from self.search.record(self.node, [Step(drawn.text, n_tokens=drawn.n_tokens)])
        yield from self.search.prune(nodes)

    def noted(self, phase: str, **facts: Any) -> Flow[None]:
        """A trace event about a call."""
        yield [Note("reading", {"phase": phase, **facts})]

    def result(self, n: int, used: int, stopped: SearchEnded | None, **facts: Any) -> Flow[Result]:
        """The result; where no answer was drawn, what the policy says to the bare question."""
        best, pool, why = self.node, None, stopped and str(stopped)
        if best.terminal:
            answer = self.lines.answer(best.state)
            pool = [Candidate(answer, best.state.text)]
            why = why or (None if answer else "the model said nothing for an answer")
        else:
            best = yield from self._by_the_policy()
        rows = [each for group in self.fresh() for each in group]
        m = len(self.of.shots) if self.of.m is None else self.of.m
        facts["theta"] = {"k": self.of.k, "m": m, "n": n}
        k = len(self.fresh()[0]) if self.groups else 0
        facts["theta_used"] = {"k": k, "m": len(self.shots), "n": used}
        facts |= {"documents": [each.id for each in rows], "sent": dict(self.sent)}
        facts["format_errors"] = self.format_errors
        if (gold := self.task.metadata.get("gold_passages")) and isinstance(gold, (list, tuple)):
            facts["recall"] = len(set(map(str, gold)) & {each.id for each in rows}) / len(set(gold))
        if golds := self.task.metadata.get("gold_answers"):
            answer = str(self.lines.answer(best.state) or "") if best.terminal else ""
            facts["error_class"] = error_class(answer, golds, [each.text for each in rows])
        if self.of.k and not self.has_retriever:
            facts["retriever"] = f"the run has no tool named {self.of.retriever}"
        return self.search.result(best, stopped=why, pool=pool, **facts)

    def _by_the_policy(self) -> Flow[Node]:
        leaves: list[Node] = []
        try:
            leaves = yield from self.search.complete(self.search.root, 1)
        except SearchEnded as end:
            self.search.ended = end
        best = self.search.best(leaves)
        if best is not None and not self.search.answered(best):
            best = yield from self.search.forced(best)
        return best or self.node


def messages(head: str, turns: Sequence[tuple[str, str]], *, chat: bool) -> Prompt:
    """A prompt of the reader's task and what was said since, each turn of "user" or "assistant". The text of
    the last assistant's turn is to be gone on with."""
    if not chat:
        return Prompt(prefix="\n".join([head, *(text for _, text in turns)]))
    joined: list[tuple[str, list[str]]] = [("user", [head])]
    for role, text in turns:
        if joined[-1][0] == role:
            joined[-1][1].append(text)
        else:
            joined.append((role, [text]))
    prefix = "\n".join(joined.pop()[1]) if joined[-1][0] == "assistant" else ""
    said: list[Message] = []
    for role, texts in joined:
        said.append(Message("user" if role == "user" else "assistant", "\n".join(texts)))
    return Prompt(tuple(said), prefix)


def length(prompt: Prompt) -> int:
    """Characters of a prompt."""
    return sum(len(message.content) for message in prompt.messages) + len(prompt.prefix)


def fitting(failure: Failure) -> float | None:
    """Which share of a prompt an engine could have taken that refused it for its length; None for another
    refusal. What engines say differs: without two numbers it is half.

    >>> fitting(Failure("engine", "The prompt has 4000 tokens and the engine's context holds 2000."))
    0.45
    >>> fitting(Failure("engine", "connection refused")) is None
    True
    """
    told = failure.message.casefold()
    if failure.kind != "engine" or "token" not in told or not _TOO_LONG.search(told):
        return None
    numbers = [int(number) for number in re.findall(r"\d+", told.replace(",", "")) if int(number) >= 16]
    if len(numbers) < 2 or max(numbers) == min(numbers[:2]):
        return 0.5
    return 0.9 * min(numbers[:2]) / max(numbers[:2])


_TOO_LONG = re.compile(r"context|too long|maximum allowed length|maximum input")

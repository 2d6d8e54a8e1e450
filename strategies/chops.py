"""CHOPS, checklisted one-pass selection: one call in which a judge sees all answers and a checklist.

Scores that a judge gives one answer at a time do not agree from call to call, and comparing pairs takes N²
calls. So first let the judge write, from the question alone, what an excellent answer to it must meet; then
let it go through this list once, with all answers before it, and name the best.

    c  = judge(question)                      three to seven criteria
    k  = judge(question, c, y_π(1) … y_π(N))  the last line "best: k";  y* = y_π(k),  π a random order

Source: When Life Gives You Samples, arXiv 2506.20544. Deviates: the prompts are written anew, since the
paper's could not be read; several orders (`permutations`), groups for long answers and fallbacks are ours.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ..serving.base import Capability
from ..serving.errors import UsageError
from ..serving.flow import Completion, Failure, Flow, Generate, Message, Note, Prompt, Sampling
from ..serving.seeds import derive
from .base import State
from .conversation import told
from .hedged import Choice, Hedged, ask, unjudged
from .languages import UNKNOWN, name_of
from .markers import answer_part
from .search import Node, Search

_SAMPLING = Sampling(temperature=0.0, max_tokens=512)


@dataclass(frozen=True, kw_only=True)
class CHOPS(Hedged):
    """A hedged pool of N = `n`, and two calls of the judge, whatever N; one with a `checklist` of yours.

    `permutations`: calls with the answers in other orders; the answer named most often wins. Only with two
    or more of them a judge that goes by the position is found out (`position_bias` in the diagnostics).
    `context_chars`: what the answers of one call may take; more are chosen from in groups, then among the
    winners. `judge` is the role that chooses; the policy's own model plays it unless the run names another.
    Equal answers are shown once. A judge that names none is asked again, once, then the first answer that
    the pool has, which is the greedy one, is returned (`fallback`).
    """

    checklist: tuple[str, ...] = ()
    permutations: int = 1
    context_chars: int = 24_000
    judge: str = "judge"
    sampling: Sampling = _SAMPLING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.permutations < 1:
            raise UsageError(f"permutations must be at least 1, got {self.permutations}.")
        if self.context_chars < 200:
            raise UsageError(f"context_chars must be at least 200, got {self.context_chars}.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """The judge writes text."""
        return {self.judge: frozenset({"generate"})}

    def choose(self, search: Search, pool: Sequence[Node], language: str) -> Flow[Choice]:
        """The answer that the judge names, or what stands in for it."""
        counts = Counter(shown_text(node.state) for node in pool)
        entries = {shown_text(node.state): node for node in reversed(pool)}
        left = [entries[text] for text in counts]  # the first of equals, in the order of the pool
        if len(left) == 1:
            return Choice(pool[0], {"judge_calls": 0})
        asked = _Asked(search, counts, language)
        criteria: str | None = "\n".join(f"- {each}" for each in self.checklist)
        if not criteria:
            criteria = yield from self.write_checklist(asked)
        while criteria is not None and len(left) > 1:
            groups = self.grouped(left)
            winners = []
            for group in groups:
                winner = yield from self.best_of(asked, group, criteria)
                winners.append(winner)
            if None in winners:
                break
            left = [winner for winner in winners if winner is not None]
        facts: dict[str, Any] = {"judge_calls": asked.calls, "checklist": criteria}
        if self.permutations > 1:
            facts["position_bias"] = asked.biased
        if asked.lost:
            choice = unjudged(search, pool)
            return Choice(choice.node, facts | choice.facts)
        if len(left) > 1:
            return Choice(pool[0], facts | {"fallback": "first"})
        return Choice(left[0], facts)

    # ------------------------------------------------------------ the two calls

    def write_checklist(self, asked: "_Asked") -> Flow[str | None]:
        """What an excellent answer must meet; None if the judge cannot be had."""
        task, language = asked.search.task, asked.language
        words = {
            "question": told(task),
            "in_language": f" in {name_of(language)}" if language != UNKNOWN else "",
        }
        prompt = Prompt.user(filled(CHECKLIST, words))
        seed = derive(asked.search.seed, "checklist")
        [reply] = yield from asked.ask([Generate(prompt, 1, self.sampling, seed, model=self.judge)])
        if isinstance(reply, Failure):
            return None
        written = reply[0].content.strip()
        yield [Note("checklist", {"text": written})]
        return written

    def best_of(self, asked: "_Asked", group: Sequence[Node], criteria: str) -> Flow[Node | None]:
        """The answer of a group that is named most often; the earlier of equals; None if none is named."""
        if len(group) == 1:
            return group[0]
        seed = derive(asked.search.seed, "order", *(node.id for node in group))
        first = Random(seed).sample(range(len(group)), len(group))
        orders = [first[p % len(group) :] + first[: p % len(group)] for p in range(self.permutations)]
        requests = [
            Generate(
                self.shown(asked, [group[i] for i in order], criteria),
                1,
                self.sampling,
                derive(seed, "select", p),
                model=self.judge,
            )
            for p, order in enumerate(orders)
        ]
        places = yield from self.named(asked, requests, len(group))
        said = [(order[k - 1], k) for order, k in zip(orders, places, strict=True) if k is not None]
        votes = Counter(i for i, _ in said)
        asked.biased |= len({k for _, k in said}) == 1 and len(votes) > 1
        yield [Note("select", {"nodes": [node.id for node in group], "orders": orders, "best": places})]
        return group[min(votes, key=lambda i: (-votes[i], i))] if votes else None

    def named(self, asked: "_Asked", requests: Sequence[Generate], n: int) -> Flow[list[int | None]]:
        """The place that each reply names; what names none is asked again, once."""
        replies = yield from asked.ask(requests)
        places = [_place(reply, n) for reply in replies]
        dumb = [i for i, reply in enumerate(replies) if places[i] is None and not isinstance(reply, Failure)]
        if dumb:
            again = yield from asked.ask([_reminded(requests[i], replies[i], n) for i in dumb])
            for i, reply in zip(dumb, again, strict=True):
                places[i] = _place(reply, n)
        return places

    def shown(self, asked: "_Asked", group: Sequence[Node], criteria: str) -> Prompt:
        """Question, checklist and answers, in the order given."""
        most = max(100, self.context_chars // len(group))
        answers = [_entry(k, node, asked.counts, most) for k, node in enumerate(group, 1)]
        rule = "" if asked.language == UNKNOWN else f" The answer must be in {name_of(asked.language)}."
        words = {"question": told(asked.search.task), "criteria": criteria, "answers": "\n\n".join(answers)}
        return Prompt.user(filled(SELECT, words | {"in_language": rule}))

    def grouped(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """Groups of two or more whose texts fit into one call; an answer too long for any is shown cut."""
        groups: list[list[Node]] = [[]]
        size = 0
        for node in nodes:
            length = len(shown_text(node.state))
            if len(groups[-1]) >= 2 and size + length > self.context_chars:
                groups.append([])
                size = 0
            groups[-1].append(node)
            size += length
        return groups


class _Asked:
    """What one choosing has asked so far."""

    def __init__(self, search: Search, counts: Mapping[str, int], language: str) -> None:
        self.search, self.counts, self.language = search, counts, language
        self.calls = 0
        self.lost = self.biased = False

    def ask(self, requests: Sequence[Generate]) -> Flow[list[tuple[Completion, ...] | Failure]]:
        """The judge's replies."""
        replies = yield from ask(self.search, requests)
        self.calls += len(requests)
        self.lost |= all(isinstance(reply, Failure) for reply in replies)
        return replies


def best_named(text: str) -> int | None:
    """The number in the last "best: k" of a reply.

    >>> best_named("1: fluent\\n2: wrong\\n**best: 1**"), best_named("Answer 2 is best.")
    (1, None)
    """
    found = _BEST.findall(text)
    return int(found[-1]) if found else None


_BEST = re.compile(r"\bbest\W{0,4}:\W{0,4}(?:answer\s+)?(\d{1,4})\b", re.IGNORECASE)


def _place(reply: tuple[Completion, ...] | Failure, n: int) -> int | None:
    k = None if isinstance(reply, Failure) else best_named(reply[0].content)
    return k if k is not None and 1 <= k <= n else None


def _reminded(request: Generate, reply: tuple[Completion, ...] | Failure, n: int) -> Generate:
    assert not isinstance(reply, Failure)
    turns = (Message("assistant", reply[0].content), Message("user", AGAIN.replace("{n}", str(n))))
    prompt = Prompt((*request.prompt.messages, *turns))
    return Generate(prompt, 1, request.sampling, derive(request.seed or 0, "again"), model=request.model)


def _entry(k: int, node: Node, counts: Mapping[str, int], most: int) -> str:
    text = shown_text(node.state)
    times = f" (given {counts[text]} times)" if counts[text] > 1 else ""
    half = most // 2
    shown = text if len(text) <= most else f"{text[:half]}\n[…]\n{text[-half:]}"
    return f"### Answer {k}{times}\n{shown}"


def shown_text(state: State) -> str:
    """What a judge sees of a solution: not how it was thought of, nor headings that look like ours."""
    return _HEADING.sub("", answer_part(state.text))


_HEADING = re.compile(r"^\s*#+\s*(?=answer\b)", re.IGNORECASE | re.MULTILINE)


def filled(template: str, words: Mapping[str, str]) -> str:
    """A prompt with its places filled in one pass, so that {braces} of a text stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda place: words.get(place[1], place[0]), template)


# ---------------------------------------------------------------- prompts

CHECKLIST = (
    "You are an expert evaluator. Read the task, and write down three to seven criteria that decide how good "
    "an answer to exactly this task{in_language} is: that it is correct, follows every instruction, leaves "
    "nothing out, and is fluent and fits the culture of its language. One criterion a line. No general "
    "advice. Do not answer the task.\n\nTask:\n{question}"
)
SELECT = (
    "Task:\n{question}\n\nWhat an excellent answer must meet:\n{criteria}\n\n{answers}\n\n"
    "Check every answer against every criterion, and write one line for each answer. Neither length nor "
    "position counts.{in_language} Then write one last line, exactly of the form 'best: k', k the number of "
    "the best answer."
)
AGAIN = "Your reply names no answer. Reply with one line only, of the form 'best: k', k from 1 to {n}."

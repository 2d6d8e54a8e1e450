"""The loop of IterDRAG."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ...serving.base import Capability
from ...serving.errors import SearchEnded, UsageError, demand
from ...serving.flow import Completion, Failure, Flow, Prompt
from ..base import Result, Step, Task
from .documents import Document
from .lines import PREFIXES, Kind, Line, bare, canonical, last_line, read, rule
from .prompts import AGAIN, ASK, block, listed
from .reading import Reader, Reading, messages, refuse_calls


@dataclass(frozen=True, kw_only=True)
class IterDRAG(Reading):
    """Asks follow-up questions, each answered from `k` documents of its own beside all earlier ones, until it
    has the answer; `n_max` of them at most. `doc_placement`: `append` puts new documents behind what was
    said, so that the cache holds all that stands before; `front` before the question, as in the paper.
    `constrain` leaves the choice of a prefix to the engine's grammar; without, a line that begins with none
    is drawn once more and then begun for the model, at the cost of an iteration. Cost: 2t + 1 generations for
    t follow-ups, never more than 2 `n_max` + 1, and m + 1 + t searches.
    """

    n_max: int = 5
    doc_placement: Literal["append", "front"] = "append"
    constrain: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(1 <= self.n_max <= 32, "n_max", self.n_max, "write 1 to 32, such as 5")
        if self.doc_placement not in ("append", "front"):
            raise UsageError(f"doc_placement is append or front, got {self.doc_placement!r}.")
        if self.constrain and not self.chat:
            raise UsageError("constrain holds for a turn of a chat. Write chat: true, or constrain: false.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """It writes text; `constrain` needs an engine that can keep any constraint."""
        return {"policy": frozenset({"generate", "constraint"} if self.constrain else {"generate"})}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Ask, search, answer, until the final answer. Raises UsageError for a demanded form or tools of the
        caller's, which lines of a dialogue cannot keep."""
        refuse_calls(task)
        if task.constraint is not None:
            raise UsageError(
                "A dialogue of lines keeps no demanded form. Use drag, or another strategy, for it."
            )
        dialogue, stopped = Dialogue(self, task, seed), None
        try:
            yield from dialogue.prepared()
            yield from dialogue.held()
        except SearchEnded as end:
            stopped = end
        unanswered = not dialogue.search.answered(dialogue.node)
        if stopped is not None and dialogue.groups and unanswered:
            with suppress(SearchEnded):  # what the budget has kept back may do for an answer
                yield from dialogue.line("final")
        facts = {"iterations": dialogue.n_asked, "repeats": dialogue.n_repeats, "steps": dialogue.steps()}
        facts["doc_placement"] = self.doc_placement
        return (yield from dialogue.result(self.n_max, dialogue.n_asked, stopped, **facts))


class Dialogue(Reader):
    """A reader that talks to itself, line by line."""

    of: IterDRAG

    def __post_init__(self) -> None:
        super().__post_init__()
        self.said: list[tuple[Line, int]] = []  # with the number of searches made before
        self.n_asked = 0
        self.n_repeats = 0

    @property
    def n_lines(self) -> int:
        """Lines that were said so far."""
        return len(self.said)

    @property
    def left(self) -> int:
        """Generations that may still be asked for."""
        return 2 * self.of.n_max + 1 - self.sent["calls"]

    def steps(self) -> list[list[str]]:
        """Follow-ups with their answers."""
        texts = [line.text for line, _ in self.said if line.kind != "final"]
        return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=False)]

    def held(self) -> Flow[None]:
        """The lines, to the final answer."""
        answers: dict[str, str] = {}
        in_a_row = 0
        while self.n_asked < self.of.n_max and self.left >= 3 and in_a_row < 2:
            line = yield from self.decided()
            if line is None or line.kind == "final":
                return
            key = canonical(line.text)
            if not key:
                yield from self._taken_back()
                break
            self.n_asked += 1
            if key in answers:
                in_a_row += 1
                self.n_repeats += 1
                known = Line("intermediate", answers[key])
                self.said.append((known, len(self.groups)))
                [self.node] = yield from self.search.graft(self.node, [Step(f"{known}\n")])
                yield from self.noted("repeat", query=line.text)
                continue
            in_a_row = 0
            self.groups += yield from self.searched([line.text])
            ids = [each.id for each in self.fresh()[-1]]
            yield from self.noted("search", query=line.text, documents=ids)
            answer = yield from self.line("intermediate")
            if answer is None:
                return
            answers[key] = answer.text
        yield from self.line("final")

    def decided(self) -> Flow[Line | None]:
        """A follow-up or the final answer; None if the call failed."""
        kinds: tuple[Kind, ...] = ("follow_up", "final")
        for attempt in range(2):
            if self.left < 3:  # not enough for a follow-up, its answer and the final one
                break

            def prompt(again: bool = attempt > 0, kinds: tuple[Kind, ...] = kinds) -> Prompt:
                return self._prompt(again=kinds if again else ())

            limits = rule(kinds, self._prompt().prefix) if self.of.constrain else None
            at = ("decide", self.n_asked, attempt)
            drawn = yield from self.asked(prompt, *at, constraint=limits)
            if isinstance(drawn, Failure):
                yield from self.recorded(drawn, "")
                return None
            line = read(drawn.text)
            if line is not None and line.kind in kinds:
                yield from self._kept(drawn, line, "decide" if not attempt else "retry")
                return line
            self.last_draft = last_line(drawn.text) or self.last_draft
            yield from self.dropped(drawn)
        return (yield from self.line("follow_up" if not self.n_asked and self.left >= 3 else "final"))

    def line(self, kind: Kind) -> Flow[Line | None]:
        """A line of this kind, its prefix put before; None if the call failed."""

        def prompt() -> Prompt:
            return self._prompt(begun=kind)

        drawn = yield from self.asked(prompt, kind, self.n_asked)
        if isinstance(drawn, Failure):
            yield from self.recorded(drawn, "")
            return None
        line = Line(kind, bare(kind, drawn.text))
        if kind == "final" and not line.text:
            self.format_errors += 1
            line = Line(kind, self.last_draft or next((said for _, said in reversed(self.steps())), ""))
        yield from self._kept(drawn, line, kind)
        return line

    def _kept(self, drawn: Completion, line: Line, phase: str) -> Flow[None]:
        answer = line.text if line.kind == "final" else None
        self.said.append((line, len(self.groups)))
        yield from self.recorded(drawn, f"{line}\n" if answer is None else str(line), answer)
        ids = [each.id for group in self.fresh() for each in group]
        shown = {"documents": ids, "demonstrations": len(self.shots)}
        yield from self.noted(phase, prefix=PREFIXES[line.kind], text=line.text, **shown)

    def _taken_back(self) -> Flow[None]:
        """The last line was none after all."""
        self.said.pop()
        yield from self.search.prune([self.node])
        assert self.node.parent is not None
        self.node = self.node.parent

    def _prompt(self, *, begun: Kind | None = None, again: Collection[Kind] = ()) -> Prompt:
        """Instruction, demonstrations, documents and question, then what was said; a line of the kind `begun`
        is begun. `again`: one more request to keep to these prefixes."""
        front = self.of.doc_placement == "front"
        first, *later = self.fresh()
        documents = [each for group in (first, *later) for each in group] if front else first
        shots = [block(self.shown(rows), shot.question, shot.lines()) for shot, rows in self.shots]
        head = "\n\n".join([ASK, *shots, block(documents, self.question, ())])
        turns: list[tuple[str, str]] = []
        at = 1
        for line, n_searches in self.said:
            turns += [] if front else self._searches(later, at, n_searches)
            at = max(at, n_searches)
            turns.append(("assistant", str(line)))
        turns += [] if front else self._searches(later, at, len(self.groups))
        if again:
            prefixes = ", ".join(PREFIXES[kind] for kind in again)
            turns.append(("user", AGAIN.replace("{prefixes}", prefixes)))
        elif begun is not None:
            turns.append(("assistant", PREFIXES[begun]))
        elif turns and turns[-1][0] == "assistant":
            turns[-1] = ("assistant", f"{turns[-1][1]}\n")
        elif not self.of.chat:
            head += "\n" if not turns else ""
        return messages(head, turns, chat=self.of.chat)

    def _searches(self, later: list[list[Document]], start: int, end: int) -> list[tuple[str, str]]:
        """The documents that these searches added, as turns of the user's."""
        return [("user", listed(group)) for group in later[start - 1 : end - 1] if group]

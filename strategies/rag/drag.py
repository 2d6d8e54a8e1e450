"""The one call of DRAG."""

from dataclasses import dataclass

from ...serving.errors import SearchEnded
from ...serving.flow import Completion, Failure, Flow, Prompt
from ..base import Result, Task
from ..conversation import canonical
from .lines import read, said
from .prompts import ANSWER, KNOW, NEXT, READ, block
from .reading import Reader, Reading, messages, refuse_calls


@dataclass(frozen=True, kw_only=True)
class DRAG(Reading):
    """Reads `k` documents and `m` demonstrations with theirs, and answers at once. m = 0 is plain RAG; k = 0
    is many-shot, and with m = 0 zero-shot, question answering. Cost: 1 generation, m + 1 searches."""

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Search, then answer. Raises UsageError for tools of the caller's."""
        refuse_calls(task)
        reader, stopped = Reader(self, task, seed), None
        try:
            yield from reader.prepared()
            yield from _answered(reader)
        except SearchEnded as end:
            stopped = end
        return (yield from reader.result(1, 1, stopped))


def _answered(reader: Reader) -> Flow[None]:
    def prompt() -> Prompt:
        shots = [block(reader.shown(rows), shot.question, [told(shot.answer)]) for shot, rows in reader.shots]
        [mine] = reader.fresh()
        head = [READ if reader.of.k and mine else KNOW, *shots]
        if reader.of.chat:
            return messages("\n\n".join([*head, block(mine, reader.question, ())]), (), chat=True)
        return Prompt(prefix="\n\n".join([*head, block(mine, reader.question, [ANSWER])]))

    form = reader.task.constraint
    stop = () if reader.of.chat else NEXT  # not at a line's end: small models begin with some
    drawn = yield from reader.asked(prompt, "answer", stop=stop, constraint=form)
    answer = drawn.content.strip() if isinstance(drawn, Completion) else None
    if answer is not None and form is not None:
        answer = canonical(reader.task, answer)
    elif answer is not None:
        answer = answered(answer if reader.of.chat else said(answer))
    text = "" if isinstance(drawn, Failure) else drawn.content
    yield from reader.recorded(drawn, text, answer)
    ids = [each.id for group in reader.fresh() for each in group]
    yield from reader.noted("answer", documents=ids, demonstrations=len(reader.shots))


def told(answer: str) -> str:
    """An answer as a demonstration shows it."""
    return f"{ANSWER} {answer}"


def answered(text: str) -> str:
    """The answer in a text that was to be an answer alone.

    >>> answered("Answer: Oslo."), answered("So the final answer is: Oslo")
    ('Oslo.', 'Oslo')
    """
    line = read(text)
    if line is not None and line.kind == "final":
        return line.text
    text = text.strip()
    return said(text[len(ANSWER) :]) if text.casefold().startswith(ANSWER.casefold()) else text

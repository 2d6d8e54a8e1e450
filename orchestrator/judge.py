"""Whether an answer is right: against the known one, or by the task's checks where none is known."""

from typing import Any

from ..strategies.answers import canon
from ..strategies.base import Task


def judge(task: Task, gold: str, answer: Any, text: str) -> bool:
    """Whether `answer` (the last thing `text` says) is right."""
    if gold:
        return same_answer(answer, gold, task.choices)
    from ..strategies.rewards.checks import passes

    return passes(task, answer, text)


def same_answer(given: Any, gold: str, choices: tuple[str, ...] = ()) -> bool:
    """Equal numbers, else equal words; of choices, the letter or the text.

    >>> same_answer("$1,200.00", "1200"), same_answer("B", "no", ("yes", "no")), same_answer("56", "65")
    (True, True, False)
    """
    if choices:
        return _choice(str(given), choices) == _choice(gold, choices)
    return canon(str(given)) == canon(gold)


def _choice(text: str, choices: tuple[str, ...]) -> int | str:
    said = canon(text)
    for i, choice in enumerate(choices):
        if said == canon(choice):
            return i
    if len(said) == 1 and "A" <= said < chr(ord("A") + len(choices)):
        return ord(said) - ord("A")
    return said

"""What the probe reads of a question: the model's hidden state, or, where there is none, facts of its text.

Both are read from the prompt without any mode's words, so what is read does not depend on what is chosen.
Hidden states are read at the last token of the prompt; in a chat this is the head of the assistant's turn.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import Literal, TypeAlias

from ...serving.flow import Failure, Flow, Generate, Hidden, Prompt, Sampling
from ..base import Policy, State, Task
from .entropy import mean, of_the_best
from .modes import plain

Kind: TypeAlias = Literal["hidden", "text"]

REFERENCE = "What is 27 x 14 + 5?"
"""The question whose state a probe carries, to tell whether it reads the model that it was trained on."""

DRAFT_TOKENS = 32
TOP = 20  # best log-probs asked for, the most that OpenAI-like servers give


@dataclass(frozen=True)
class Reading:
    """Features of a question; empty, with the reason, where they could not be had."""

    values: tuple[float, ...] = ()
    n_tokens: int = 0  # drawn for them
    failure: Failure | None = None


def layout(policy: Policy, kind: Kind) -> str:
    """A digest of all that surrounds a question when it is read."""
    shown = asdict(plain(policy).prompt_for(State(Task(REFERENCE))))
    return sha256(json.dumps([kind, DRAFT_TOKENS, TOP, shown], sort_keys=True).encode()).hexdigest()


def read(policy: Policy, task: Task, kind: Kind) -> Flow[Reading]:
    """The features of a question."""
    prompt = plain(policy).prompt_for(State(task))
    if kind == "hidden":
        [reading] = yield from _states(prompt)
        return reading
    greedy = Sampling(temperature=0.0, max_tokens=DRAFT_TOKENS)
    [draft] = yield [Generate(prompt, sampling=greedy, top_logprobs=TOP)]
    return _of_text(task, draft)


def read_beside_reference(policy: Policy, task: Task) -> Flow[list[Reading]]:
    """The states of a question and of the reference question, in one batch."""
    return (yield from _states(plain(policy).prompt_for(State(task)), reference_prompt(policy)))


def read_reference(policy: Policy) -> Flow[Reading]:
    """The state of the reference question."""
    [reading] = yield from _states(reference_prompt(policy))
    return reading


def reference_prompt(policy: Policy) -> Prompt:
    """The reference question in the policy's words and template, without its examples, which only cost."""
    return replace(plain(policy), examples=()).prompt_for(State(Task(REFERENCE)))


def _states(*prompts: Prompt) -> Flow[list[Reading]]:
    states = yield [Hidden(prompt) for prompt in prompts]
    return [Reading(failure=s) if isinstance(s, Failure) else Reading(tuple(s)) for s in states]


def _of_text(task: Task, reply: Sequence[object] | Failure) -> Reading:
    """Counts of the question, and how unsure a short greedy draft is: eight numbers."""
    if isinstance(reply, Failure):
        return Reading(failure=reply)
    [drawn] = reply
    tops = [top for top in getattr(drawn, "top_logprobs", ()) if top]
    said = task.question
    counts = (
        len(said),
        len(said.split()),
        len(re.findall(r"\d", said)),
        max((len(digits) for digits in re.findall(r"\d+", said)), default=0),
        len(re.findall(r"[-+*/^=<>×÷]|\bx\b", said)),
        len(re.findall(r"\\[a-zA-Z]+|\$", said)),
    )
    first = of_the_best(tops[0]) if tops else 0.0
    values = (*(math.log1p(n) for n in counts), first, mean(tops) or 0.0)
    return Reading(values, getattr(drawn, "n_tokens", 0))

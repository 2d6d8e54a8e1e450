"""The ways to answer, as data: words after the question, temperature, and a share of the token budget."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any, ClassVar

from ...serving.errors import UnknownName, UsageError, demand
from ...serving.flow import Prompt
from ..base import Policy, State, Task
from ..policy import StepPolicy


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way to answer. `suffix` stands after the question, `ratio` is of the caller's token budget Max, and
    `stop` are marks that end an answer, beside the policy's.

    `extra` are further fields for the engine's server, such as those that switch its thinking off.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # a recipe's misspelt key would be dropped unseen

    name: str
    suffix: str = ""
    temperature: float = 0.8
    top_p: float | None = None  # None: the policy's
    ratio: float = 1.0
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        demand(bool(self.name) and self.name != "auto", "a mode's name", self.name, "write e.g. easy")
        demand(self.temperature >= 0, "a mode's temperature", self.temperature, "write e.g. 0.8")
        demand(self.top_p is None or 0 < self.top_p <= 1, "a mode's top_p", self.top_p, "write e.g. 0.95")
        demand("" not in self.stop, "a mark in a mode's stop", "", "write what ends an answer")
        demand(0 < self.ratio <= 1, "a mode's ratio", self.ratio, "write a share of the budget, such as 0.4")

    @classmethod
    def checked(cls, spec: "Mode | Mapping[str, Any]") -> "Mode":
        """A mode from its fields. Raises UsageError for what is none."""
        if isinstance(spec, Mode):
            return spec
        known = {f.name: f for f in fields(cls)}
        for key, value in spec.items():
            if key not in known:
                raise UnknownName("key of a mode", key, known)
            kind = _KINDS[key]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UsageError(f"{key} of a mode must be {_WORDS[kind]}, got {value!r}.")
        if "name" not in spec:
            raise UsageError(f"A mode needs a name, such as easy; it has: {', '.join(spec) or 'nothing'}.")
        if not all(isinstance(mark, str) for mark in spec.get("stop", ())):
            raise UsageError(f"stop of a mode must be a list of texts, got {spec['stop']!r}.")
        return cls(**{**spec, "stop": tuple(spec.get("stop", ()))})


_KINDS: dict[str, Any] = {
    "name": str, "suffix": str, "temperature": (int, float), "top_p": (int, float), "ratio": (int, float),
    "extra": Mapping, "stop": (list, tuple),
}  # fmt: skip
_WORDS: dict[Any, str] = {
    str: "text",
    (int, float): "a number",
    Mapping: "a mapping",
    (list, tuple): "a list",
}


@dataclass(frozen=True, kw_only=True)
class InMode(StepPolicy):
    """A step policy that says a mode's words after the question, where it draws with its sampling.

    In a chat they end the user's message, else they follow the question. So all that the probe has read is
    the beginning of every mode's prompt, up to the end of the question. A call or a demanded form is asked
    for in the caller's words alone.
    """

    suffix: str = ""

    def prompt_for(self, state: State, prefix: str | None = None) -> Prompt:
        """The policy's prompt with the mode's words in it."""
        prompt = super().prompt_for(state, prefix)
        if not self.suffix or state.task.in_one_piece:
            return prompt
        if not prompt.messages:
            written = state.text if prefix is None else prefix
            head = prompt.prefix[: len(prompt.prefix) - len(written)]
            return replace(prompt, prefix=head + self.suffix + written)
        said = list(prompt.messages)
        asked = max((i for i, message in enumerate(said) if message.role == "user"), default=-1)
        if asked >= 0:
            said[asked] = replace(said[asked], content=f"{said[asked].content}\n\n{self.suffix}")
        return replace(prompt, messages=tuple(said))

    def most_tokens(self, task: Task) -> int:
        """Max: the longest solution that the caller allows."""
        return self._of_a_whole(State(task)).max_tokens


def plain(policy: Policy) -> InMode:
    """The policy without any mode's words. Raises UsageError if it is not one model's."""
    if not isinstance(policy, StepPolicy):
        raise UsageError(
            f"DiffAdapt chooses prompt and sampling of one model's policy, and cannot those of "
            f"{type(policy).__name__}. Write policy: cot, or another preset."
        )
    return InMode(**{f.name: getattr(policy, f.name) for f in fields(StepPolicy)})


def in_mode(policy: Policy, mode: Mode) -> InMode:
    """The policy in a mode."""
    base = plain(policy)
    top_p = base.sampling.top_p if mode.top_p is None else float(mode.top_p)
    sampling = replace(base.sampling, temperature=float(mode.temperature), top_p=top_p)
    return replace(base, suffix=mode.suffix, sampling=sampling, stop=(*base.stop, *mode.stop))


def limited(policy: Policy, task: Task, mode: Mode) -> Task:
    """The task with the mode's token limit, ratio · Max, and its fields for the server. What is left of the
    context the engine sees to."""
    limit = max(1, int(mode.ratio * plain(policy).most_tokens(task) + 1e-9))
    return replace(task, max_tokens=limit, extra={**task.extra, **mode.extra})


def digest(modes: Sequence[Mode]) -> str:
    """What a probe remembers of the modes it was trained for."""
    return sha256(json.dumps([asdict(mode) for mode in modes], sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------- the paper's three

EASY = Mode(
    name="easy",
    suffix="This question is easy. Solve it directly, then verify the answer once. Do not try other ways.",
    temperature=0.5,
    ratio=0.4,
)
NORMAL = Mode(name="normal", suffix="Solve this systematically, step by step.", temperature=0.8)
HARD = Mode(
    name="hard",
    suffix=(
        "This question is hard, and there is little room. Choose the most promising way, be brief, and give "
        "the best answer you can."
    ),
    temperature=0.4,
    ratio=0.5,
)
MODES = (EASY, NORMAL, HARD)

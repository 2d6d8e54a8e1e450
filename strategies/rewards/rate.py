"""A served reward model, asked for whole solutions or for each of their steps.

| aggregate | r(s)                                                                            |
|-----------|---------------------------------------------------------------------------------|
| `model`   | the model's score of the text as one piece (default; arXiv 2502.01618 found it best) |
| `last`    | its score of the text with `step_mark` after every step: that of the last step    |
| `min`     | the least of the scores of all prefixes, marked likewise                          |
| `product` | their product                                                                     |

`min` and `product` ask once for each prefix, `model` and `last` once in all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...serving.base import Capability
from ...serving.errors import UsageError
from ...serving.flow import Failure, Flow, Prompt, Rate
from ..base import Score, State, unscored
from ..conversation import told, turns

_AGGREGATES = ("model", "last", "min", "product")


@dataclass(frozen=True, kw_only=True)
class RateReward:
    """Scores by `Rate`. `squash`: "sigmoid" for models that answer with a logit, "none" for those that
    answer in [0, 1]. `step_mark` is the token after which a step-wise model scores, e.g. "<extra_0>"."""

    squash: Literal["sigmoid", "none"] = "sigmoid"
    aggregate: Literal["model", "last", "min", "product"] = "model"
    step_mark: str = ""
    model: str = "reward"

    def __post_init__(self) -> None:
        if self.squash not in ("sigmoid", "none"):
            raise UsageError(f"squash must be 'sigmoid' or 'none', got {self.squash!r}.")
        if self.aggregate not in _AGGREGATES:
            raise UsageError(f"aggregate must be one of {', '.join(_AGGREGATES)}, got {self.aggregate!r}.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """What the rating engine must be able to do."""
        return {self.model: frozenset({"rate"})}

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """One score for each state; all prefixes of all states are rated in one batch, each text once."""
        texts = [self._texts(state) for state in states]
        prompts = {
            (told(state.task), text): Prompt(
                turns(state.task, state.task.question), text, tools=state.task.offers
            )
            for state, prefixes in zip(states, texts, strict=True)
            for text in prefixes
        }
        replies = (yield [Rate(prompt, self.model) for prompt in prompts.values()]) if prompts else ()
        rated = dict(zip(prompts, map(self._squashed, replies), strict=True))
        return [
            self._aggregated([rated[told(state.task), text] for text in prefixes])
            for state, prefixes in zip(states, texts, strict=True)
        ]

    def _texts(self, state: State) -> list[str]:
        if self.aggregate == "model" or not state.depth:
            return [state.text]
        prefixes, text = [], ""
        for step in state.steps:
            text += step.text + self.step_mark
            prefixes.append(text)
        return prefixes[-1:] if self.aggregate == "last" else prefixes

    def _squashed(self, reply: float | Failure) -> Score:
        if isinstance(reply, Failure):
            return unscored(reply)
        if math.isnan(reply):
            return Failure("reward", "the reward model returned NaN")
        if self.squash == "none":
            return reply
        return 1.0 / (1.0 + math.exp(-reply)) if reply > -700.0 else 0.0

    def _aggregated(self, scores: Sequence[Score]) -> Score:
        numbers: list[float] = []
        for score in scores:
            if isinstance(score, Failure):
                return score
            numbers.append(score)
        if self.aggregate == "min":
            return min(numbers)
        return math.prod(numbers) if self.aggregate == "product" else numbers[-1]

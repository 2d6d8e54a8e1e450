"""Which thresholds and which radius a model bears: LocalLeap's settings measured on held-out prompts.

The paper's values are those of LLaDA-8B-Instruct and need not carry over. Two measurements: what each setting
gives in accuracy and costs in forwards, and how often a prediction that was not committed yet was already the
final token, by its distance to the nearest anchor. The radius should end where that share begins to fall.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.localleap import Config
from .localleap import Decoded, Forward, Step, decode


@dataclass(frozen=True)
class Point:
    """A setting: `right` bool [prompts], and what was decoded."""

    config: Config
    right: torch.Tensor
    decoded: Decoded

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.right.double().mean())


def sweep(
    forward: Forward,
    prompts: torch.Tensor,
    judge: Callable[[torch.Tensor], torch.Tensor],
    configs: Iterable[Config],
    **words: Any,
) -> list[Point]:
    """Each setting on the same prompts. `judge`: answers int64 [prompts, gen_length] → bool [prompts];
    `words` as `decode`'s."""
    points = []
    for config in configs:
        decoded = decode(forward, prompts, config, **words)
        points.append(Point(config, judge(decoded.ids), decoded))
    return points


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in accuracy at as few forwards, by rising forwards."""
    ordered = sorted(points, key=lambda point: (point.decoded.forwards_per_token, -point.accuracy))
    best, kept = -1.0, list[Point]()
    for point in ordered:
        if point.accuracy > best:
            best = point.accuracy
            kept.append(point)
    return kept


def consistency(
    steps: Iterable[Step], ids: torch.Tensor, n_prompt: int, anchor_threshold: float
) -> Mapping[int, tuple[int, int]]:
    """Distance to the nearest anchor of the forward → early predictions, and how many equal the final token.

    Early: at a masked position below the anchors' threshold. ids: what was decoded in the end. Forwards
    without an anchor don't count.
    """
    told: dict[int, tuple[int, int]] = {}
    for step in steps:
        block = step.masked.shape[1]
        place = torch.arange(block, device=ids.device)
        anchor = step.masked & (step.confidence >= anchor_threshold)
        apart = (place[:, None] - place).abs().expand(len(anchor), -1, -1)
        distance = apart.masked_fill(~anchor[:, None], block).amin(2)
        early = step.masked & ~anchor & (distance < block)
        at = step.start - n_prompt
        same = step.tokens == ids[step.rows, at : at + block]
        for d in distance[early].unique().tolist():
            there = early & (distance == d)
            n, n_same = told.get(d, (0, 0))
            told[d] = (n + int(there.sum()), n_same + int((there & same).sum()))
    return dict(sorted(told.items()))

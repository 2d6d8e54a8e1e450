"""From questions with their rollouts to a probe: thresholds, labels, weights, calibration, and a report."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any, Literal

from ...serving.errors import UsageError, demand
from .fitting import Fitting, calibrated, fit
from .labels import Question, Thresholds, best_thresholds, bins, oracle, u_shaped, utility
from .modes import Mode
from .probe import Probe, Signature

_TAUS = (0.5, 0.0, 0.4, 0.6, 0.7, 0.8, 0.9)  # the first of equals
_RARE = 0.05  # a class with a smaller share is reported
_FITTING = Fitting()
_CLASSES = {"easy", "normal", "hard"}


def train(
    questions: Sequence[Question],
    validation: Sequence[Question],
    modes: Sequence[Mode],
    signature: Signature,
    *,
    most_tokens: int,
    labels: Literal["proxy", "oracle"] = "proxy",
    source: str = "gold",
    how: Fitting = _FITTING,
) -> Probe:
    """A probe trained on the questions; whatever is chosen is chosen by utility on the validation questions.

    These need solutions in every mode, the others only in the normal one, unless labels are the oracle's.
    `most_tokens` is Max; `source` says what correctness comes from, "gold" or "pseudo".
    """
    demand(len(questions) >= 20, "the number of training questions", len(questions), "give at least 20")
    demand(len(validation) >= 5, "the number of validation questions", len(validation), "give at least 5")
    names = tuple(mode.name for mode in modes)
    if labels == "proxy" and set(names) != _CLASSES:
        raise UsageError(
            f"The label rule knows the modes easy, normal and hard, not {', '.join(names)}. For others write "
            "--labels oracle."
        )

    def worth(chosen: Sequence[str]) -> float:
        return utility(validation, chosen, most_tokens)

    thresholds = best_thresholds(questions, validation, worth) if labels == "proxy" else None

    def label(question: Question) -> str:
        return oracle(question, names) if thresholds is None else thresholds.of(question)

    wanted = [label(question) for question in questions]
    probe = fit([question.features for question in questions], wanted, names, signature, how)
    held = [question.features for question in validation]
    right = [label(question) for question in validation]
    probe = calibrated(probe, held, right)
    told = [probe(features) for features in held]
    tau = max(_TAUS, key=lambda tau: worth([chosen(names, d, tau) for d in told]))
    picked = [chosen(names, d, tau) for d in told]
    worths = {name: worth([name] * len(validation)) for name in names}
    worths |= {"probe": worth(picked), "labels": worth(right)}
    worths["oracle"] = worth([oracle(question, names) for question in validation])
    report = {
        **probe.report,
        **_about(questions, wanted, names, thresholds),
        "source": f"{source}, {labels}",
        "utility": worths,
        "confusion": confusion(right, picked, names),
        "fallbacks": sum(max(d) < tau for d in told) / len(told),
        "most_tokens": most_tokens,
        "fitting": asdict(how),
    }
    return replace(probe, tau=tau, report=report)


def chosen(classes: Sequence[str], probabilities: Sequence[float], tau: float) -> str:
    """argmax d, but "normal" below τ.

    >>> chosen(("easy", "normal", "hard"), (0.45, 0.15, 0.4), 0.5)
    'normal'
    """
    sure = max(probabilities)
    return classes[list(probabilities).index(sure)] if sure >= tau else "normal"


def confusion(right: Sequence[str], picked: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """How many questions of each label were given each class."""
    pairs = Counter(zip(right, picked, strict=True))
    return {label: {name: pairs[label, name] for name in names} for label in names}


def _about(
    questions: Sequence[Question], labels: Sequence[str], names: Sequence[str], thresholds: Thresholds | None
) -> dict[str, Any]:
    """The training data in figures, and what is doubtful about them."""
    counts = Counter(labels)
    by_difficulty = bins(questions)
    warnings = [
        f"the label {name} has {counts[name]} of {len(labels)} questions"
        for name in names
        if counts[name] < _RARE * len(labels)
    ]
    if thresholds is not None and not u_shaped(by_difficulty):
        warnings.append(
            "entropy is not lowest at medium difficulty (no U): the rule for easy ones has no ground here"
        )
    data = json.dumps([[*q.features, q.accuracy(), q.entropy] for q in questions])
    return {
        "questions": len(questions),
        "labels": dict(counts),
        "thresholds": None if thresholds is None else asdict(thresholds),
        "bins": by_difficulty,
        "warnings": warnings,
        "data": sha256(data.encode()).hexdigest(),
    }

"""A probe that reads classes off states made for it."""

from dataclasses import replace

import numpy as np

from abduce.strategies.diffadapt.features import layout
from abduce.strategies.diffadapt.modes import MODES, digest
from abduce.strategies.diffadapt.probe import Probe, Signature
from abduce.strategies.policy import StepPolicy

POLICY = StepPolicy(prompt="plain", max_solution_tokens=100)
NAMES = ("easy", "normal", "hard")
STATES = {"easy": (4.0, 0.0, 0.0), "normal": (0.0, 4.0, 0.0), "hard": (0.0, 0.0, 4.0)}
REFERENCE_STATE = (1.0, 2.0, 3.0)


def state_of(request):
    """The state of a question that names its class; of others, that of the reference."""
    said = request.prompt.messages[-1].content if request.prompt.messages else request.prompt.prefix
    return next((STATES[name] for name in NAMES if name in said), REFERENCE_STATE)


def signature(policy=POLICY, modes=MODES, reference=REFERENCE_STATE):
    return Signature("hidden", layout(policy, "hidden"), digest(modes), reference)


def reader(**changes):
    """A probe that reads the class off the states above."""
    eye = np.eye(3, dtype=np.float32)
    zeros = np.zeros(3, dtype=np.float32)
    ones = np.ones(3, dtype=np.float32)
    return replace(Probe(NAMES, eye, zeros, 2 * eye, zeros, zeros, ones, signature()), **changes)

"""abduce: inference to the best explanation.

>>> import abduce
>>> abduce.__version__.count(".")
2
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .orchestrator.driver import Driver
    from .orchestrator.ledger import Budget
    from .orchestrator.recipe import load
    from .orchestrator.runs import Runs
    from .orchestrator.services import Services
    from .orchestrator.solve import Pipeline, asolve, build, solve
    from .orchestrator.telemetry import OpenTelemetry
    from .serving import engine
    from .serving.errors import AbduceError, UsageError
    from .strategies.base import Candidate, Check, Result, Task

_HOME = {
    "AbduceError": "serving.errors",
    "Budget": "orchestrator.ledger",
    "Candidate": "strategies.base",
    "Check": "strategies.base",
    "Driver": "orchestrator.driver",
    "OpenTelemetry": "orchestrator.telemetry",
    "Pipeline": "orchestrator.solve",
    "Result": "strategies.base",
    "Runs": "orchestrator.runs",
    "Services": "orchestrator.services",
    "Task": "strategies.base",
    "UsageError": "serving.errors",
    "asolve": "orchestrator.solve",
    "build": "orchestrator.solve",
    "engine": "serving",
    "load": "orchestrator.recipe",
    "solve": "orchestrator.solve",
}
"""Public name → module. Imported when first used, so that `import abduce` is quick."""

__all__ = [
    "AbduceError",
    "Budget",
    "Candidate",
    "Check",
    "Driver",
    "OpenTelemetry",
    "Pipeline",
    "Result",
    "Runs",
    "Services",
    "Task",
    "UsageError",
    "asolve",
    "build",
    "engine",
    "load",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abduce' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

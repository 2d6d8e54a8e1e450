"""Checks the members when a scheduler is ready, and shows their state in `/server_info`."""

from collections.abc import Callable
from typing import Any

from . import MARK, MEMBERS, member
from .hooks import around, is_around

READY = "sglang.srt.managers.scheduler:Scheduler.get_init_info"
STATE = (
    "sglang.srt.managers.scheduler_components.internal_state:"
    "SchedulerInternalStateController.get_internal_state"
)


def register() -> None:
    """Wrap the scheduler's two reports. Raises LookupError where SGLang has them no more."""
    around(READY, add_to_ready)
    around(STATE, add_to_state)


def verify() -> None:
    """Raise RuntimeError unless both reports are ours."""
    for target, wrapper in ((READY, add_to_ready), (STATE, add_to_state)):
        if not is_around(target, wrapper):
            raise RuntimeError(f"abduce: the plug-in's hook on {target} is not in force")


def states(scheduler: Any) -> dict[str, Any]:
    """Member → its state. Raises RuntimeError for one that is not in force."""
    verify()
    return {name: member(name).verify(scheduler) for name in MEMBERS}


def add_to_ready(original: Callable[..., dict[str, Any]], scheduler: Any) -> dict[str, Any]:
    """What the scheduler reports when it is ready; a member that is not in force ends it here."""
    return {**original(scheduler), MARK: sorted(states(scheduler))}


def add_to_state(original: Callable[..., Any], controller: Any, request: Any) -> Any:
    """What the scheduler answers to `/server_info`: the members' live state besides."""
    reply = original(controller, request)
    reply.internal_state[MARK] = states(controller.scheduler)
    return reply

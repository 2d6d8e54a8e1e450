"""Tools that another process finds by name."""

import time

from abduce.tools.base import Limits, tool

SMALL = Limits(seconds=3, memory_bytes=1 << 28)


@tool(effect="pure", limits=SMALL)
def grow(megabytes: int) -> int:
    """Use memory."""
    return len(bytearray(megabytes << 20))


@tool(effect="pure", limits=Limits(seconds=0.5, memory_bytes=1 << 28))
def spin(seconds: float) -> str:
    """Use time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    print("not a result")
    return "done"


@tool(effect="pure", limits=SMALL)
def fail(why: str) -> None:
    """Fail."""
    raise ValueError(why)

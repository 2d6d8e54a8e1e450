"""What abduce adds inside an SGLang server; SGLang's entry point loads it in each of the server's processes.

A member is one file here with `register()`, which puts itself into SGLang, and `verify(scheduler)`, which
raises if it is not in force and else tells its state. To join: the file, and its name in `MEMBERS`.

SGLang only logs what goes wrong in a plug-in, and then serves without it. So whatever fails here ends the
process with the reason, and `/server_info` names the members that are in force.

This package imports the standard library, torch, sglang and our kernels, and nothing else: the server lives
in an environment of its own. Written against SGLang 0.5.23.
"""

from importlib import import_module
from typing import Any, Protocol, cast

MEMBERS = ("cpu_kernels", "tree_attention", "lookahead", "probe", "kv", "localleap", "engram")
"""The files of the members, in the order in which they register."""

MARK = "abduce"
"""The key under which `/server_info` tells the members' state."""


class Member(Protocol):
    """One addition to the server."""

    def register(self) -> None:
        """Put it into SGLang. Raises if what it needs is not there."""

    def verify(self, scheduler: Any) -> dict[str, Any]:
        """Its state, of plain values. Raises RuntimeError if it is not in force in this scheduler."""


def register() -> None:
    """The entry point. Raises SystemExit, which SGLang does not swallow, if a member cannot register."""
    name = "start"
    try:
        start = import_module(f"{__name__}.start")
        for name in MEMBERS:
            member(name).register()
        name = "start"
        start.register()
    except Exception as error:
        raise SystemExit(
            f"abduce: the SGLang plug-in could not register {name!r} ({type(error).__name__}: {error}). "
            "It is written for SGLang 0.5.23. To serve without it, set SGLANG_PLUGINS to the names of the "
            "other plug-ins, or to none."
        ) from error


def member(name: str) -> Member:
    """The member in the file of this name."""
    return cast(Member, import_module(f"{__name__}.{name}"))

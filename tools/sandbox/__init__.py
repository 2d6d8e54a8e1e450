"""The python sandbox: programs of a model, behind walls that hold a hostile one.

    sandbox = Sandbox()
    session = sandbox.start()                    # an interpreter of its own
    session.run("x = 6")
    branch = session.fork()                      # has x too, without running anything again
    branch.run("print(x * 7)")                   # ToolResult("42\\n")
    session.run("print(x)")                      # ToolResult("6\\n")

`docs/sandbox.md` says what the walls are and what they have been tried with.
"""

from .host import Isolation, SandboxRefused, begin, isolation
from .limits import Limits
from .session import ENDED, NoRoom, Session, SessionLost

__all__ = ["ENDED", "Isolation", "Limits", "NoRoom", "Sandbox", "SandboxRefused", "Session", "SessionLost"]


class Sandbox:
    """Starts sessions with these limits. Without `unsafe` it starts none where it cannot isolate them."""

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False) -> None:
        self.limits = limits or Limits()
        self._unsafe = unsafe

    @property
    def isolation(self) -> Isolation:
        """What stands between a program and this machine. Raises SandboxRefused if nothing can."""
        return "unsafe" if self._unsafe else isolation()

    def start(self) -> Session:
        """A fresh interpreter, in a family of its own. Raises SandboxRefused, and SessionLost if the machine
        has no room for it."""
        return begin(self.limits, self.isolation)

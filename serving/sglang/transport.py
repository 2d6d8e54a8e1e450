"""The seam between the engine and a server: what both transports can do.

The same bodies travel over HTTP (`http.py`) and to a `sglang.Engine` in this process (`in_process.py`).
"""

from collections.abc import Mapping
from typing import Any, Protocol


class Transport(Protocol):
    """Carries a request to SGLang and brings its reply back, as JSON values.

    Raises EngineError with the server's message where the same request would fail again, TransientError
    where trying again may help. A cancelled `post` aborts the requests named in its `rid`.
    """

    where: str  # the server, as a person would name it
    singly: bool  # whether a request may hold one prompt only

    async def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """The reply to a request."""
        ...

    async def get(self, route: str) -> Any:
        """What the server says about itself."""
        ...

    def ask(self, route: str, body: Mapping[str, Any]) -> Any:
        """`post` without waiting for long: raises EngineError if there is no reply within a second."""
        ...

    async def start(self) -> None:
        """Make sure that there is a server. Raises UsageError if there is none."""
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...

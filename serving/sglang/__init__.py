"""SGLang: the serving layer. `Sglang` is the engine, `launch` starts a server, `plugin` is loaded by it.

Nothing is imported before it is asked for: the server's environment has no dependencies of ours.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Sglang

__all__ = ["Sglang"]


def __getattr__(name: str) -> Any:
    if name == "Sglang":
        from .engine import Sglang

        return Sglang
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

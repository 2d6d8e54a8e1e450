"""What a memory is: texts that later runs look up.

`Recall` and `Remember` requests (`serving/flow.py`) are answered by one; the driver calls it.
"""

from typing import Protocol


class Memory(Protocol):
    """Two methods, both safe to call from several processes at once."""

    async def recall(self, query: str, k: int) -> tuple[str, ...]:
        """The `k` entries most useful for the query, best first; fewer if there are no more."""
        ...

    async def remember(self, text: str) -> None:
        """Store an entry. Storing the same text again changes nothing."""
        ...

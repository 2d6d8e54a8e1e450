"""The contract of a store: records, results and journals of runs, by the run's name.

Processes that share a store never wait for each other, but for the one run that two of them want to work on;
there the second is refused. A store knows nothing of what a record says.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..journal import Row, Rows

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver


class Store(Protocol):
    """One place with many runs."""

    @property
    def folder(self) -> Path:
        """The folder on this machine with a folder for each run: its trace, which is never sent elsewhere."""

    def names(self) -> list[str]:
        """All runs, oldest first."""

    def create(self, name: str, record: bytes, inherited: Sequence[Row] = ()) -> None:
        """Make a run, whole or not at all. Raises UsageError if nothing can be written."""

    def record(self, name: str) -> bytes:
        """What the run was started with. Raises UsageError if there is no such run."""

    def result(self, name: str) -> bytes | None:
        """What came of it; None while it is unfinished."""

    def finish(self, name: str, result: bytes) -> None:
        """Keep the result, whole or not at all."""

    def held(self, name: str) -> AbstractContextManager[None]:
        """Work on a run alone, until the end of the block or of the process. Raises UsageError while another
        does, or if the run is gone."""

    def is_held(self, name: str) -> bool:
        """Whether somebody works on it now."""

    def rows(self, name: str) -> Rows:
        """Its journal, to be read and written."""

    def replies(self, name: str) -> tuple[Sequence[Row], Sequence[Row]]:
        """The rows of its journal, inherited and own, as they stand."""

    def checkpointer(self) -> "AbstractAsyncContextManager[BaseCheckpointSaver[Any]]":
        """LangGraph's checkpoints, for graphs whose nodes keep their runs here."""

    def n_bytes(self, name: str) -> int:
        """What it takes, the trace on this machine included."""

    def delete(self, name: str) -> None:
        """Remove all of it. The caller holds it."""

"""Where runs are kept: a folder, or a PostgreSQL server by URL."""

from pathlib import Path

from .base import Store

__all__ = ["Store", "store"]


def store(where: Path | str) -> Store:
    """The store at a folder or URL. Raises UsageError if there is no such kind of place."""
    if isinstance(where, str) and "://" in where:
        from .postgres import PostgresStore

        return PostgresStore.at(where)
    from .folder import FolderStore

    return FolderStore(Path(where))

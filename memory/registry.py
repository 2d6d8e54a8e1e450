"""A store by what a recipe, a command or a program calls it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..serving import settings
from ..serving.errors import UsageError
from .base import Store
from .embedder import Embedder, find_embedder


def open_store(where: str, *, embedder: str | Mapping[str, Any] | Embedder = "auto") -> Store:
    """The store of that name: `concepts.db`, a file among this user's own; postgresql://user@host/database;
    or `:memory:`, gone with the process. Nothing is opened yet.

    Raises UsageError for a path: a recipe from elsewhere must not say where to write. `SqliteStore(path)`
    takes any.
    """
    if where == ":memory:":
        from .in_memory import InMemory

        return InMemory(find_embedder(embedder))
    if "://" in where:
        from .postgres import PostgresStore

        return PostgresStore(where, find_embedder(embedder))
    from .sqlite import SqliteStore

    return SqliteStore(file_of(where), find_embedder(embedder))


def file_of(name: str) -> Path:
    """The file of a store that is called by its name alone."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UsageError(
            "memory.store must be the name of a file, such as concepts.db, or postgresql://user@host/db, "
            f"not {name!r:.80}."
        )
    return settings.home() / "memory" / name

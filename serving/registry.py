"""Parts by name: those of this package, imported when first asked for, and third parties' by entry point."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from .errors import UnknownName


def find(what: str, name: object, known: Mapping[str, str], package: str, group: str) -> Any:
    """The part of that name: attribute `known[name]` of the file `name` in `package`, else what the
    entry-point group holds under it. Raises UnknownName with the nearest spelling; `what` it should be."""
    if isinstance(name, str) and name in known:
        return getattr(import_module(f".{name}", package), known[name])
    third_party = {entry.name: entry for entry in entry_points(group=group)}
    if isinstance(name, str) and name in third_party:
        return third_party[name].load()
    raise UnknownName(what, name, [*known, *third_party])

"""Parts by name: those of this package, imported when first asked for, and third parties' by entry point."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import UnknownName, UsageError


def find(what: str, name: object, known: Mapping[str, str], package: str, group: str) -> Any:
    """The part of that name: attribute `known[name]` of the file `name` in `package`, else what the
    entry-point group holds under it. Raises UnknownName with the nearest spelling; `what` it should be."""
    if isinstance(name, str) and name in known:
        return getattr(import_module(f".{name}", package), known[name])
    third_party = others(group)
    if isinstance(name, str) and name in third_party:
        return _loaded(what, third_party[name])
    raise UnknownName(what, name, [*known, *third_party])


def dataclass_of(what: str, name: object, found: Any) -> Any:
    """`found`, a part whose parameters are the fields of its class. Raises UsageError if it has none."""
    if not (isinstance(found, type) and is_dataclass(found)):
        raise UsageError(
            f"The {what} {name!r} is {found!r:.80}, and must be a dataclass, whose fields are its parameters."
        )
    return found


def _loaded(what: str, entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"The {what} {entry.name!r} of another package, {entry.value}, cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def others(group: str) -> dict[str, EntryPoint]:
    """What third parties declare under an entry-point group, by name; nothing of it is imported."""
    return {entry.name: entry for entry in entry_points(group=group)}

"""`memory` in a sitting: a query to look up, or a verb of `abduce memory` on the recipe's store."""

import io
import shlex
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ...serving.errors import UsageError
from ..arguments.memory import VERBS
from ..background import wait_for

if TYPE_CHECKING:
    from .sitting import Sitting


def memory(sitting: "Sitting", text: str) -> RenderableType:
    """`memory`, `memory QUERY`, `memory search QUERY -k 2`, `memory retire NAME` …"""
    kept = sitting.recipe.memory
    if kept is None:
        raise UsageError("The recipe has no memory. Write e.g. set memory.store=concepts.db.")
    if not text:
        told = f"memory {kept.store}, {kept.recall} at a time; memory QUERY looks into it. Also:"
        return Text(f"{told} {', '.join(VERBS)}", style="dim")
    try:
        typed = shlex.split(text)
    except ValueError:  # an apostrophe in a query
        typed = text.split()
    if typed[0] not in VERBS:
        typed = ["search", "-k", str(kept.recall), "--", *text.split()]
    return _verb(sitting, typed)


def _verb(sitting: "Sitting", typed: list[str]) -> RenderableType:
    from ..arguments import parser
    from ..commands.memory import as_json, carried_out

    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            chosen = parser().parse_args(["memory", *typed])
    except SystemExit:  # --help
        return Text(printed.getvalue().rstrip().replace("abduce memory", "memory"))
    except UsageError as error:
        raise UsageError(str(error).replace("abduce memory", "memory")) from None
    if chosen.store is not None:
        raise UsageError("In a sitting the memory is the recipe's. Write e.g. set memory.store=concepts.db.")
    if typed[0] == "forget" and not chosen.yes:
        raise UsageError("Nothing is forgotten without being asked: add --yes. To keep it unseen: retire.")
    if typed[0] == "export" and not chosen.out:
        raise UsageError("export needs a file. Write e.g. memory export --out concepts.jsonl.")
    store = sitting.recipe.pipeline().services.memory
    if store is None:
        raise UsageError("No step of the recipe recalls or remembers, so it opens no memory.")
    shown = wait_for(carried_out(store, chosen))
    if getattr(chosen, "json", False):
        return Text(as_json(shown))
    return Group(*shown.parts)

"""`include`: a recipe that is laid over another one.

    include: base.yaml                 # a file in the same folder or below it, or a packaged recipe by name
    budget: {tokens: 4000}             # its other limits stay

Keys are merged; of budget, memory, models and solvers each entry by itself. A part that is a choice (a
model, a reward, a policy, a solver) is replaced as a whole, and so are the steps: a recipe that has a
strategy, a pipeline or nodes has none of the included one's.
"""

from collections.abc import Callable
from pathlib import Path as File
from typing import Any

from ...serving.errors import UsageError
from .. import strict_yaml
from ..strict_yaml import Document, Path

MAX_DEPTH = 8
_ENTRIES = ("budget", "memory", "models", "solvers")
_STEPS = frozenset({"strategy", "pipeline", "nodes", "edges"})


def resolve(
    document: Document, folder: File | None, packaged: Callable[[str], File], seen: tuple[str, ...] = ()
) -> Document:
    """The document with what it includes underneath. `folder` is where its file lies, None if it has none;
    `packaged` finds a packaged recipe by its name."""
    if "include" not in document.data:
        return document
    name, where = document.data["include"], document.where(("include",))
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: include: must be a file or a packaged recipe, got {str(name)[:60]!r}.")
    file, below = _find(name, where, folder, packaged)
    here = (*seen, document.file)
    if str(file.resolve()) in [str(File(each).resolve()) for each in here] or len(here) > MAX_DEPTH:
        around = " -> ".join([*(File(each).name for each in here), file.name])
        raise UsageError(f"{where}: include: the files include each other: {around}.")
    return _laid_over(document, resolve(strict_yaml.read(file), below, packaged, here))


def _find(
    name: str, where: str, folder: File | None, packaged: Callable[[str], File]
) -> tuple[File, File | None]:
    """The file, and the folder that what it includes must lie in."""
    if not name.endswith((".yaml", ".yml")):
        try:
            return packaged(name), None
        except UsageError as error:
            raise UsageError(f"{where}: include: {str(error)[:300]}") from None
    if folder is None:
        raise UsageError(f"{where}: include: {name[:60]!r}: only a recipe in a file can include a file.")
    try:
        file = (folder / name).resolve()
        inside, there = file.is_relative_to(folder.resolve()), file.is_file()
    except (OSError, ValueError):  # a name that no file can have
        inside = there = False
    if not there or not inside:
        problem = "no such file" if inside else "must lie in the recipe's own folder"
        raise UsageError(f"{where}: include: {name[:60]!r}: {problem}.")
    return file, folder


def _laid_over(top: Document, base: Document) -> Document:
    """`top` over `base`; every value knows the file and the line that it is from."""
    data: dict[str, Any] = {}
    origin: dict[Path, Document] = {}
    over = {key: value for key, value in top.data.items() if key != "include"}
    steps = bool(_STEPS & set(over))
    for key, value in base.data.items():
        if not (steps and key in _STEPS):
            data[key] = value
            origin[key,] = base
    for key, value in over.items():
        under = data.get(key)
        if key in _ENTRIES and isinstance(value, dict) and isinstance(under, dict):
            data[key] = {**under, **value}
            origin |= {(key, entry): top for entry in value}
        else:
            data[key] = value
            origin[key,] = top
    lines: dict[Path, int] = {(): 1}
    files: dict[Path, str] = {}
    for document in (base, top):
        for path, line in document.lines.items():
            owner = next((origin[path[:n]] for n in (2, 1) if path[:n] in origin), None)
            if path and owner is document:
                lines[path] = line
                files[path] = document.files.get(path, document.file)
    return Document(top.file, data, lines, files)

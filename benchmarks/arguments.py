"""The command line that benchmarks have in common."""

import argparse
from collections.abc import Iterable, Sequence

from rows import Rows


def command(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the docstring of the file, as it is written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def keeps_rows(parser: argparse.ArgumentParser, file: str | None = None) -> None:
    """Adds `--rows FILE`, which becomes `Rows`. Without it nothing is kept, unless there is a usual file."""
    told = f" (default: {file})" if file else ""
    parser.add_argument(
        "--rows",
        type=Rows,
        default=file or Rows(None),
        metavar="FILE",
        help=f"keep what is measured there, and go on from what is{told}",
    )


def checked(parser: argparse.ArgumentParser, names: Sequence[str], known: Iterable[str]) -> list[str]:
    """The names, in the order of the known ones; ends the program if one is none of them."""
    known = list(known)
    for name in names:
        if name not in known:
            parser.error(f"there is no {name!r}. Known: {'; '.join(known)}")
    return [name for name in known if name in names]

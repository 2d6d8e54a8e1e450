"""`abduce trace`: a run looked at afterwards, or while it goes on."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ...serving.errors import UsageError
from ..live import status_line, tree_lines
from ..search_view import clean, load, printable, to_networkx
from .solve import store


def show(chosen: argparse.Namespace) -> int:
    """The tree of a run, and its figures."""
    view = load(_file(chosen.run))
    console = Console(highlight=False)
    width = console.width if console.is_terminal else 10_000
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    for line in tree_lines(view, max_lines=0 if chosen.all else 60, plain=ascii_only):
        line.truncate(width - 1, overflow="ellipsis")
        console.print(line, soft_wrap=True)
    console.print(status_line(view), soft_wrap=True)
    if view.ended is not None:
        console.print(Text(f"answer: {clean(str(view.ended.answer))}", style="bold"), soft_wrap=True)
    else:
        name = view.started.run if view.started else ""
        console.print(Text(f"not finished; go on with: abduce resume {name}", style="yellow"))
    return 0


def export(chosen: argparse.Namespace) -> int:
    """The tree of a run as data: node-link JSON, or GraphML."""
    import networkx

    graph = to_networkx(load(_file(chosen.run)))
    if chosen.format == "json":
        print(json.dumps(networkx.node_link_data(graph, edges="edges"), ensure_ascii=False, indent=1))
        return 0
    for _, facts in graph.nodes(data=True):
        facts["score"] = "" if facts["score"] is None else facts["score"]  # GraphML has no null
        facts["text"] = printable(facts["text"])  # nor has XML control characters
    print("\n".join(networkx.generate_graphml(graph)))
    return 0


def html(chosen: argparse.Namespace) -> int:
    """A page of its own, of one run or of two laid over each other."""
    from ..viewer import picture
    from ..viewer.page import whole_page

    files = [_file(name) for name in (chosen.run, chosen.against) if name]
    page = whole_page([picture.load(file) for file in files])
    out = Path(chosen.out or f"trace-{_name(files[0])}.html")
    _written(out, page.encode())
    print(f"abduce: wrote {out} ({len(page) / 1000:,.0f} kB). Open it in a browser.", file=sys.stderr)
    return 0


def plot(chosen: argparse.Namespace) -> int:
    """A picture for a paper."""
    from ..viewer import picture
    from ..viewer.plot import FORMATS, drawn

    out = Path(chosen.out)
    if out.suffix not in FORMATS:
        raise UsageError(f"--out must end in one of {', '.join(FORMATS)}, got {chosen.out}. Write tree.svg.")
    _written(out, drawn(picture.load(_file(chosen.run)), chosen.what, out.suffix[1:]))
    print(f"abduce: wrote {out}", file=sys.stderr)
    return 0


def serve(chosen: argparse.Namespace) -> int:
    """Until Ctrl-C."""
    from ..viewer import serve as viewer

    fixed = _file(chosen.run) if chosen.run else None
    kept = store()

    def newest() -> Path | None:
        return fixed or (kept.open("last").trace if kept.names() else None)

    def started(address: str) -> None:
        what = _name(fixed) if fixed else "the newest run"
        print(f"abduce: showing {what} at {address}, stop with Ctrl-C", file=sys.stderr, flush=True)

    try:
        asyncio.run(viewer.serve(newest, port=chosen.port, started=started))
    except OSError as error:
        raise UsageError(f"Cannot listen at port {chosen.port}: {error.strerror}. Write --port 0.") from None
    except KeyboardInterrupt:
        print("abduce: stopped", file=sys.stderr)
    return 0


def _file(name: str) -> Path:
    """The trace of a run, by the run's name or its file."""
    file = Path(name)
    return file if file.is_file() else store().open(name).trace


def _name(file: Path) -> str:
    return file.parent.name if file.name == "trace.jsonl" and file.parent.name else file.stem


def _written(out: Path, data: bytes) -> None:
    try:
        out.write_bytes(data)
    except OSError as error:
        raise UsageError(
            f"Cannot write {out}: {error.strerror}. Give --out a place you can write to."
        ) from None

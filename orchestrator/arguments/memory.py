"""What is remembered: `abduce memory`."""

import argparse
from collections.abc import Callable
from typing import Any, TypeAlias

from .base import Parser, command
from .numbers import number, positive, share

Add: TypeAlias = Callable[[str, str], argparse.ArgumentParser]
"""Adds a verb, with what it does."""


VERBS = ("list", "show", "search", "audit", "diff", "export", "import", "forget", "retire", "rollback")


def memory(commands: Any) -> None:
    """`abduce memory`."""
    text = "What is remembered: look, audit, carry elsewhere, forget"
    verbs = command(commands, "memory", "memory:run", text).add_subparsers(
        metavar="VERB", required=True, parser_class=Parser
    )

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return command(verbs, name, "memory:run", text)

    _look(verb)
    _carry(verb)
    _look_after(verb)


def _verb(verb: Add, name: str, text: str, *, json: bool = True) -> argparse.ArgumentParser:
    parser = verb(name, text)
    parser.set_defaults(verb=name)
    told = "which memory (default the only one there is)"
    parser.add_argument("--store", metavar="NAME|FILE|URL", help=told)
    if json:
        parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _look(verb: Add) -> None:
    listing = _verb(verb, "list", "List the entries")
    listing.add_argument("--retired", action="store_true", help="those that are retired, too")
    listing.add_argument("--at", type=number, metavar="VERSION", help="as they were in that version")
    listing.add_argument("--limit", type=positive, default=50, metavar="N", help="the first N (default 50)")
    show = _verb(verb, "show", "Show one entry: its text, data, evidence")
    show.add_argument("name", metavar="NAME", help="its name, or the beginning of it")
    show.add_argument("--history", action="store_true", help="and what happened to it")
    search = _verb(verb, "search", "Look up what fits a query, and why it does")
    search.add_argument("query", nargs="+", metavar="QUERY", help="a problem, or words")
    search.add_argument("-k", type=positive, default=4, metavar="N", help="the best N (default 4)")
    search.add_argument("--graph", action="store_true", help="by diffusion in the concept graph")
    for parser in (listing, search):
        parser.add_argument(
            "--kind", action="append", default=[], metavar="KIND", help="only these; may be repeated"
        )
    audit = _verb(
        verb, "audit", "Say what is wrong with it, and whether it helps; exit code 1 if something is wrong"
    )
    audit.add_argument(
        "--base", type=share, metavar="SHARE", help="solved without memory (default as all entries)"
    )
    audit.add_argument(
        "--with", dest="with_memory", metavar="FILE", help="abduce eval's results with the memory"
    )
    audit.add_argument("--without", metavar="FILE", help="and of the same problems without it: the lift")
    diff = _verb(verb, "diff", "Say what another version says otherwise", json=False)
    diff.add_argument(
        "old", nargs="?", type=number, metavar="VERSION", help="(default the one before the newest)"
    )
    diff.add_argument("new", nargs="?", type=number, metavar="VERSION", help="(default the newest)")


def _carry(verb: Add) -> None:
    export = _verb(verb, "export", "Write all of it as JSON lines or YAML", json=False)
    export.add_argument("--out", metavar="FILE", help=".jsonl or .yaml (default standard output)")
    export.add_argument(
        "--format", metavar="FORMAT", choices=("jsonl", "yaml"), help="jsonl (default) or yaml"
    )
    export.add_argument("--history", action="store_true", help="with all versions of all entries")
    take = _verb(verb, "import", "Read a file of export, or YAML of concepts, through the write gate")
    take.add_argument("file", metavar="FILE", help="JSON lines or YAML")
    take.add_argument(
        "--dry-run", action="store_true", help="say what would become of each entry, write nothing"
    )
    take.add_argument("--vouch", action="store_true", help="believe entries without a verifier, on your word")
    take.add_argument(
        "--trust", action="store_true", help="no gate: your own export, history and counts as they are"
    )


def _look_after(verb: Add) -> None:
    forget = _verb(verb, "forget", "Erase entries and their history, for good", json=False)
    forget.add_argument("names", nargs="+", metavar="NAME", help="their names, whole")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    retire = _verb(verb, "retire", "Keep entries, but no longer find them", json=False)
    retire.add_argument("names", nargs="*", metavar="NAME", help="their names, whole")
    retire.add_argument("--unhelpful", action="store_true", help="all that do not help, as audit tells")
    retire.add_argument(
        "--base", type=share, metavar="SHARE", help="solved without memory (default as all entries)"
    )
    retire.add_argument("--undo", action="store_true", help="make them active again")
    back = _verb(verb, "rollback", "Make a new version equal to an old one", json=False)
    back.add_argument(
        "version", type=number, metavar="VERSION", help="see: abduce memory show NAME --history"
    )
    for parser in (retire, back):
        parser.add_argument("--reason", metavar="TEXT", help="for the history")

"""What may be typed: one file for each group of commands, one function for each command.

A command names its function as `module:function` of `commands/`, which is imported once it is chosen: the
parser itself imports nothing heavy.
"""

import argparse

from ... import __version__
from .base import Parser
from .looking import recipe, rest, trace
from .memory import memory
from .running import eval, learn, repl, runs, solve
from .serving import engine, serve
from .tuning import diffadapt, maxs, rag, smart, vote


def parser() -> argparse.ArgumentParser:
    """All that may be typed."""
    top = Parser(
        prog="abduce",
        description="Inference to the best explanation: search strategies for language models.",
        epilog='Start with: abduce solve "7 x 8 =" --recipe best-of-n-products --check numeric=56',
    )
    top.add_argument("--version", action="version", version=f"abduce {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    commands.metavar = "COMMAND"
    for add in (
        solve,
        repl,
        eval,
        runs,
        trace,
        recipe,
        serve,
        engine,
        maxs,
        rag,
        vote,
        diffadapt,
        memory,
        learn,
        smart,
        rest,
    ):
        add(commands)
    return top

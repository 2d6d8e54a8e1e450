"""The command line in processes that can be killed: forked from one that has imported everything, since 20
of them would otherwise spend their time on imports."""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *(f"abduce.orchestrator.{name}" for name in ("cli", "workflow", "graph", "store.postgres")),
        *(f"abduce.orchestrator.commands.{name}" for name in ("runs", "solve")),
        *(f"abduce.strategies.{name}" for name in ("particle_filter", "best_of_n", "rewards.rate")),
        *(f"langgraph.checkpoint.{name}" for name in ("sqlite.aio", "postgres.aio")),
        "abduce.serving.synthetic",
    ]
)


def start(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], packages: Path
) -> multiprocessing.Process:
    """`abduce WORDS` in a folder, with its output in the file `told` there, and third parties' packages."""
    process = _SERVER.Process(target=_run, args=(list(words), folder, dict(environment), packages))
    process.start()
    return process


def _run(words: list[str], folder: Path, environment: dict[str, str], packages: Path) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    sys.path.insert(0, str(packages))
    out = os.open("told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    from abduce.orchestrator.cli import main

    sys.exit(main(words))

"""A process that does with a shared store whatever can be done with one, for the tests of sharing."""

import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from abduce.orchestrator.again import again, task_of
from abduce.orchestrator.retention import Keep, prune
from abduce.orchestrator.runs import Run, Runs
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Called
from abduce.serving.errors import UnknownName, UsageError

WORDS = {
    "strategy": "best_of_n",
    "n": 3,
    "model": {"engine": "synthetic", "alphabet": "abcd", "depth": 3},
    "policy": {"preset": "cot", "answer_kind": "text"},
    "reward": "rate",
}


class Stopped(BaseException):
    """As Ctrl-C."""


def work(where: str, home: str, seed: int, n: int, report: str) -> None:
    """`n` things done at random; how often each was done, and what else was said, goes to the file `report`.
    Calls are written down there as well, since none may be made twice."""
    os.environ["ABDUCE_HOME"] = home
    runs, chance, told = Runs(where), random.Random(seed), Counter[str]()
    with Path(report).open("w") as out:
        for _ in range(n):
            deed = chance.choice(DEEDS)
            try:
                deed(runs, chance, out.write)
            except UnknownName:
                told[f"{deed.__name__}: none"] += 1
            except UsageError as error:
                said = str(error)
                kind = "held" if "going on in another" in said else "gone" if "deleted" in said else said
                told[f"{deed.__name__}: {kind}"] += 1
            else:
                told[deed.__name__] += 1
        out.writelines(f"told {count} {what}\n" for what, count in told.items())


Write = Callable[[str], object]


def solve(runs: Runs, chance: random.Random, write: Write) -> None:
    """A run from its beginning, stopped now and then."""
    run = runs.create({**build(**WORDS).settings, "task": {**TASK}, "seed": chance.randrange(100)})
    carry_out(run, chance, write)


def resume(runs: Runs, chance: random.Random, write: Write) -> None:
    """Some run goes on."""
    carry_out(some(runs, chance), chance, write)


def fork(runs: Runs, chance: random.Random, write: Write) -> None:
    """Some run is forked, and the fork goes on."""
    run = some(runs, chance)
    keep = chance.randrange(len(run.replies()) + 1)
    carry_out(runs.fork(run, keep=keep, changes=[f"redraw={chance.randrange(9)}"]), chance, write)


def delete(runs: Runs, chance: random.Random, write: Write) -> None:
    """Some run is deleted."""
    runs.delete(some(runs, chance))


def tidy(runs: Runs, chance: random.Random, write: Write) -> None:
    """All but the newest are deleted."""
    prune(runs, Keep(runs=8))


def look(runs: Runs, chance: random.Random, write: Write) -> None:
    """All are looked at."""
    for name in runs.names():
        run = Run(runs.store, name)
        assert isinstance(run.is_held, bool)
        assert run.record["run"] == name
        assert (run.result or {"complete": True})["complete"]
        run.replies()


DEEDS = (solve, solve, resume, resume, fork, delete, tidy, look, look)
TASK = {"question": "Which?", "choices": [], "tools": [], "checks": []}


def some(runs: Runs, chance: random.Random) -> Run:
    """Any run there is."""
    return runs.open(chance.choice(runs.names() or ["last"]))


def carry_out(run: Run, chance: random.Random, write: Write) -> None:
    """Go on with a run; in one of three cases it is stopped on the way."""
    task, seed = task_of(run.record)
    stop = chance.randrange(4) if chance.random() < 0.3 else 99

    def watch(event: object) -> None:
        nonlocal stop
        if isinstance(event, Called) and not event.replayed:
            write(f"called {run.id} {'.'.join(map(str, event.path))}\n")
            stop -= 1
            if stop < 0:
                raise Stopped

    with suppress(Stopped):
        again(run.record).solve(task, seed=seed, run=run, observers=[watch])

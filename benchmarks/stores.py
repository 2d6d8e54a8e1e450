"""What keeping a run costs, in a folder and in PostgreSQL: per reply, per run, per look.

    python benchmarks/stores.py [--url postgresql://…] [--replies 4000] [--repeats 5]

Without a URL a private server is started on this machine where PostgreSQL is installed, with its durable
settings (fsync and synchronous_commit on). A *reply* is a completion of 100 characters; `wide` ones arrive in
batches, as those of a particle filter do, `in turn` each waits for the one before.

| figure   | is                                                                                    |
|----------|---------------------------------------------------------------------------------------|
| µs CPU   | of this process per reply, beyond those of awaiting as many coroutines that do nothing |
| µs wall  | per reply, from its arrival until it is committed                                      |
| bytes    | that the store grew by per reply, beyond its text                                      |
| a run    | create, hold, open the journal, close it, finish                                       |
| to list  | names, records and results of 20 runs                                                  |

Of each figure the least of the repeats counts, since others use the machine. The exit code is 1 if a bar is
not met: 20 µs of CPU a reply and 1 KB beyond its text in a folder, with replies that arrive eight at a time.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import command
from printing import machine, met

from abduce.orchestrator.journal import Entry
from abduce.orchestrator.runs import Run, Runs
from abduce.serving.flow import Completion, Generate, Prompt, Usage
from abduce.strategies.base import Result
from tests.orchestrator import postgres_server

REQUEST = Generate(Prompt.user("What is 7 times 8, and how do you know?"))
TEXT = "Seven eights are fifty-six. " * 4
ENTRY = Entry(
    (Completion(TEXT, n_tokens=25),), Usage(input_tokens=30, output_tokens=25, calls=1), 0.1234, 0.05
)
BAR_US, BAR_BYTES = 20.0, 1024.0
WIDTHS = {"in turn": 1, "8 wide": 8, "64 wide": 64}


def main() -> int:
    """Measure, print, judge."""
    parser = command(__doc__)
    parser.add_argument("--url")
    parser.add_argument("--replies", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="abduce-bench-") as home:
        os.environ["ABDUCE_HOME"] = home
        found = measure("folder", Runs(Path(home) / "runs"), options.replies, options.repeats)
        if options.url:
            measure("PostgreSQL", Runs(options.url), options.replies, options.repeats)
        else:
            with postgres_server.found(durable=True) as url:
                if url is None:
                    print("\nPostgreSQL is not installed: apt-get install postgresql")
                else:
                    measure("PostgreSQL", Runs(url), options.replies, options.repeats)
    held = found["8 wide: µs CPU"] <= BAR_US and found["bytes"] <= BAR_BYTES
    print(
        f"\nfolder, 8 wide: {found['8 wide: µs CPU']:.1f} µs ≤ {BAR_US:g} and {found['bytes']:.0f} bytes ≤ "
        f"{BAR_BYTES:g}: {met(held)}"
    )
    return 0 if held else 1


def measure(name: str, runs: Runs, n: int, repeats: int) -> dict[str, float]:
    """All figures of one store."""
    found: dict[str, float] = {}
    print(f"\n{name}")
    for label, width in WIDTHS.items():
        count = max(width, n // 10 if width == 1 else n)
        rows = [replies(runs, count, width) for _ in range(repeats)]
        cpu, wall, found["bytes"] = (min(column) for column in zip(*rows, strict=True))
        found[f"{label}: µs CPU"] = cpu
        print(
            f"  {label:8} {cpu:8.1f} µs CPU {wall:9.1f} µs wall {found['bytes']:6.0f} bytes beyond the text"
        )
    for what, deed in {"a run": one_run, "to list 20": listed}.items():
        print(f"  {min(timed_ms(deed, runs) for _ in range(repeats)):8.2f} ms {what}")
    return found


def replies(runs: Runs, n: int, width: int) -> tuple[float, float, float]:
    """µs of CPU and wall, and bytes beyond the text, per reply."""
    run = runs.create({})
    journal = run.journal()

    async def timed(work: Callable[[int, int], Coroutine[Any, Any, None]]) -> tuple[float, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        for i in range(0, n, width):
            await asyncio.gather(*(work(i, j) for j in range(width)))
        return time.process_time() - cpu, time.perf_counter() - wall

    floor, _ = asyncio.run(timed(lambda i, j: asyncio.sleep(0)))
    cpu, wall = asyncio.run(timed(lambda i, j: journal.append((i, j), REQUEST, ENTRY)))
    journal.close()
    size = run.store.n_bytes(run.id) / n - len(TEXT)
    runs.delete(run)
    return (cpu - floor) / n * 1e6, wall / n * 1e6, size


def one_run(runs: Runs) -> None:
    """What a run needs of its store."""
    run = runs.create({"question": "x"})
    with run.held():
        run.journal().close()
        run.finish(Result("56", "It is 56."))


def listed(runs: Runs) -> None:
    """What `abduce runs` needs."""
    for name in runs.names()[-20:]:
        run = Run(runs.store, name)
        assert run.record
        assert run.result or not run.is_held


def timed_ms(deed: Callable[[Runs], None], runs: Runs) -> float:
    """Milliseconds of one deed, of the mean of 20."""
    began = time.perf_counter()
    for _ in range(20):
        deed(runs)
    return (time.perf_counter() - began) * 50


if __name__ == "__main__":
    sys.exit(main())

"""What the driver costs: CPU per request against a bare `asyncio.gather`, and width. The journal:
`driver_journal.py`.

    python benchmarks/driver.py [--problems 200] [--repeats 9] [--no-its-hub]

A *request* is one Generate that the driver sends to the engine (`Scripted`: a constant reply, at once; the
rewards here ask nobody). All of ledger (limits on tokens, calls and seconds), trace and path seeds are on.

| case                 | flow                                                                        |
|----------------------|-----------------------------------------------------------------------------|
| best-of-8            | one batch of 8 requests, n = 1 each                                         |
| best_of_n, n=8       | the strategy, which asks for all 8 samples in one request                   |
| particle filter 8×10 | the strategy; particles at the same node share a request, so the first step is one |

    floor      the same requests to the same engine's `generate`, by plain `asyncio.gather`, batch by batch
    driver     the batches that the strategy made, notes included, sent through a new Driver for each problem
               by a flow that does nothing else: so it holds the engine, as does the floor
    strategy   the strategy alone, sent canned replies by hand
    whole run  both, as `solve` runs them

its_hub 1.2.0 (no ledger, trace or seeds) runs in an environment of its own, made on first use, and can
only be measured whole. A repeat is three rounds, in each of which everything is measured in turn; of each
figure the least round counts, since others use the machine. Ratios and differences are taken within a
repeat; the table has the repeats' median (min to max). The exit code is 1 if any bar is not met.
"""

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from arguments import command
from its_hub_parity import PACKAGE, environment
from printing import machine, met, spread

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Journal
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import JsonLines, Observer
from abduce.serving.flow import Flow, Generate, Note, Prompt
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Score, State, Task
from abduce.strategies.best_of_n import BestOfN
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.policy import StepPolicy

QUESTION = "What is 7 times 8, and how do you know?"  # as in its_hub_overhead.py
STEP = "Seven eights are fifty-six.\n\n"
ENGINE = Scripted(STEP)
ROUNDS = 3  # of a repeat; as in its_hub_overhead.py
BUDGET = Budget(tokens=10**9, calls=10**9, seconds=3600)  # as a run has; never reached

BAR_US, BAR_RATIO, BAR_WIDTH = 20.0, 6.0, 0.45


def main() -> int:
    """Measure, print, judge."""
    parser = command(__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-its-hub", action="store_true", help="leave its_hub out: nothing is installed")
    options = parser.parse_args()
    print(setting(options.problems, options.repeats))
    theirs = {} if options.no_its_hub else its_hub(options.problems, options.repeats)
    with tempfile.TemporaryDirectory(prefix="abduce-bench-") as folder:
        bars = overhead(Path(folder), options.problems, options.repeats)
        published(theirs)
        bars += width(options.repeats, theirs)
    return judged(bars)


# ---------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Fair:
    """Scores everything ½ and asks nobody."""

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """One score for each."""
        yield from ()
        return [0.5] * len(states)


@dataclass(frozen=True, kw_only=True)
class PathSeeded(StepPolicy):
    """Leaves seeds to the driver, which derives them from the path."""

    def propose(self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[Any]) -> Any:
        """The same requests without a seed."""
        return super().propose(states, counts, [None] * len(states))  # type: ignore[list-item]


def eight(seed: int) -> Flow[Any]:
    """Best-of-8 as its_hub does it: eight requests in one batch."""
    drawn = yield [Generate(Prompt.user(QUESTION)) for _ in range(8)]
    return max(drawn, key=lambda samples: len(samples[0].text))


def best_of_n(seed: int) -> Flow[Any]:
    """All samples in one request."""
    return BestOfN(policy=StepPolicy(), reward=Fair(), n=8, attempts=1).solve(Task(QUESTION), seed=seed)


def particle_filter(seed: int) -> Flow[Any]:
    """Eight particles, ten steps."""
    method = ParticleFilter(policy=PathSeeded(max_steps=10), reward=Fair(), particles=8)
    return method.solve(Task(QUESTION), seed=seed)


Case = Callable[[int], Flow[Any]]
CASES: dict[str, Case] = {
    "best-of-8": eight,
    "best_of_n, n=8": best_of_n,
    "particle filter 8×10": particle_filter,
}
JUDGED = ("best-of-8", "particle filter 8×10")  # of one request a run the run itself is most


@dataclass(frozen=True)
class Script:
    """What one flow yields, batch by batch, and the engine's replies."""

    batches: list[Sequence[Any]]
    replies: list[list[Any]]

    @classmethod
    def of(cls, flow: Flow[Any]) -> "Script":
        """Run the flow once."""
        script = cls([], [])
        replies: list[Any] | None = None
        while True:
            try:
                batch = flow.send(replies)  # type: ignore[arg-type]
            except StopIteration:
                return script
            replies = [None if isinstance(request, Note) else asked(request) for request in batch]
            script.batches.append(batch)
            script.replies.append(replies)

    @cached_property
    def calls(self) -> list[list[Generate]]:
        """The batches without notes."""
        asks = ([request for request in batch if isinstance(request, Generate)] for batch in self.batches)
        return [batch for batch in asks if batch]

    @property
    def n_requests(self) -> int:
        """Calls of the engine."""
        return sum(map(len, self.calls))

    @property
    def n_samples(self) -> int:
        """Completions drawn."""
        return sum(request.n for batch in self.calls for request in batch)

    def again(self) -> Flow[None]:
        """A flow that yields the same batches."""
        for batch in self.batches:  # noqa: UP028  a list takes no replies
            yield batch


def asked(request: Any) -> Any:
    """The engine's reply."""
    return asyncio.run(ENGINE.generate(request, seed=0)).value


def by_hand(flow: Flow[Any], script: Script) -> None:
    """Send a flow its replies."""
    try:
        flow.send(None)  # type: ignore[arg-type]
        for replies in script.replies:
            flow.send(replies)
    except StopIteration:
        pass


async def bare(script: Script) -> None:
    """The floor."""
    for batch in script.calls:
        await asyncio.gather(*(ENGINE.generate(request, seed=0) for request in batch))


async def driven(flow: Flow[Any], observer: Observer | None = None, journal: Journal | None = None) -> None:
    """One run as `solve` makes it."""
    observers = [] if observer is None else [observer]
    services = Services({"policy": ENGINE})
    await Driver(services, budget=BUDGET, journal=journal, observers=observers).run(flow)


# ---------------------------------------------------------------- (a) overhead, (b) floor, (c) its_hub


def overhead(folder: Path, problems: int, repeats: int) -> "list[Bar]":
    """The tables of (a) and (b)."""
    print("\n(a), (b)  µs CPU per request, trace kept in a list or written to a file")
    bars: list[Bar] = []
    for name, case in CASES.items():
        script = Script.of(case(0))
        rows = [one_repeat(folder, case, script, problems) for _ in range(repeats + 1)][1:]
        print(f"\n  {name}: {script.n_requests} requests, {script.n_samples} samples a run")
        for label in rows[0]:
            print(f"    {label:34} {spread([row[label] for row in rows], '8.1f')}")
        print(f"    {'whole run, list, per sample':34} {per_sample(rows, script)}")
        if name in JUDGED:
            bars += judge(name, rows)
    return bars


def one_repeat(folder: Path, case: Case, script: Script, problems: int) -> dict[str, float]:
    """All columns, each the least of its rounds."""
    rounds = [one_round(folder, case, script, problems // ROUNDS) for _ in range(ROUNDS)]
    us = {name: min(row[name] for row in rounds) for name in rounds[0]}
    return {
        "floor": us["floor"],
        "driver, list": us["in_list"],
        "driver, list, × floor": us["in_list"] / us["floor"],
        "driver, file": us["in_file"],
        "driver, file, × floor": us["in_file"] / us["floor"],
        "sorting the file, once at the end": us["sort"],
        "strategy": us["strategy"],
        "whole run, list": us["whole"],
    }


def one_round(folder: Path, case: Case, script: Script, problems: int) -> dict[str, float]:
    """µs per request of every column, one after another."""
    file = JsonLines(folder / "trace.jsonl")

    async def floor() -> None:
        for _ in range(problems):
            await bare(script)

    async def strategy() -> None:
        for seed in range(problems):
            by_hand(case(seed), script)

    async def in_list() -> None:
        for _ in range(problems):
            await driven(script.again(), [].append)

    async def in_file() -> None:
        for _ in range(problems):
            await driven(script.again(), file)
        file.flush()

    async def sort() -> None:
        file.close()

    async def whole() -> None:
        for seed in range(problems):
            await driven(case(seed), [].append)

    runs = (floor, in_list, in_file, sort, strategy, whole)
    return {run.__name__: cpu_us(run()) / (problems * script.n_requests) for run in runs}


def per_sample(rows: Sequence[dict[str, float]], script: Script) -> str:
    """The whole run again, by samples drawn."""
    share = script.n_requests / script.n_samples
    return spread([row["whole run, list"] * share for row in rows], "8.1f")


def judge(name: str, rows: Sequence[dict[str, float]]) -> "list[Bar]":
    """The bars of (a) for one case."""
    return [
        Bar(
            f"(a) {name}, trace in a {kind}: {what}",
            median(row[f"driver, {kind}{key}"] for row in rows),
            limit,
        )
        for kind in ("list", "file")
        for what, key, limit in (("µs per request", "", BAR_US), ("× floor", ", × floor", BAR_RATIO))
    ]


def its_hub(problems: int, repeats: int) -> dict[str, Any]:
    """Its figures, from a run in its own environment."""
    script = Path(__file__).with_name("its_hub_overhead.py")
    command = [environment(), str(script), str(problems), str(repeats)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SystemExit(f"its_hub failed:\n{answer.stderr}")
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def published(theirs: dict[str, Any]) -> None:
    """The table of (c)."""
    print(f"\n(c)  {PACKAGE}, whole run, µs CPU per call of its model (one conversation, one sample)\n")
    for name, figures in theirs.items():
        if "us" in figures:
            print(f"    {name:22} {figures['calls']:3} calls a run {spread(figures['us'], '8.1f')}")
    if not theirs:
        print("    left out")


# ---------------------------------------------------------------- (d) width


def width(repeats: int, theirs: dict[str, Any]) -> "list[Bar]":
    """The table of (d)."""
    print("\n(d)  256 calls of 50 ms at once: 50 ms / wall time\n")
    ours = [0.05 / wide() for _ in range(repeats)]
    print(f"    {'abduce':26} {spread(ours, '5.2f')}")
    for name, label in {
        "wide, limit 32": "its_hub as it comes (32)",
        "wide, no limit": "its_hub, no limit",
    }.items():
        if name in theirs:
            print(f"    {label:26} {spread([0.05 / s for s in theirs[name]], '5.2f')}")
    return [Bar("(d) 256 calls of 50 ms: share of ideal", median(ours), BAR_WIDTH, least=True)]


def wide() -> float:
    """Wall seconds of one run."""

    def flow() -> Flow[Any]:
        return (yield [Generate(Prompt.user(QUESTION)) for _ in range(256)])

    async def timed() -> float:
        services = Services({"policy": Scripted(STEP, latency_s=0.05)})
        began = time.perf_counter()
        await Driver(services, budget=BUDGET, observers=[[].append]).run(flow())
        return time.perf_counter() - began

    return asyncio.run(timed())


# ---------------------------------------------------------------- measuring and printing


@dataclass(frozen=True)
class Bar:
    """A figure and what it must not exceed, or with `least` not fall below."""

    name: str
    figure: float
    limit: float
    least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.figure >= self.limit if self.least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.least else "≤"
        return f"{self.name:62} {self.figure:8.2f} {sign} {self.limit:<7g} {met(self.met)}"


def judged(bars: Sequence[Bar]) -> int:
    """Print the bars; 1 if any is not met."""
    print()
    for bar in bars:
        print(bar)
    return 0 if all(bar.met for bar in bars) else 1


def cpu_us(run: Coroutine[Any, Any, None]) -> float:
    """CPU microseconds of this process while it runs."""
    gc.collect()

    async def timed() -> float:
        began = time.process_time()
        await run
        return time.process_time() - began

    return asyncio.run(timed()) * 1e6


def setting(problems: int, repeats: int) -> str:
    """Where and how."""
    return (
        f"{machine()}\n"
        f"{problems} problems a repeat, in {ROUNDS} rounds; {repeats} repeats after one to warm up: "
        "median (min to max)\n"
        "CPU time of the process; ledger (tokens, calls, seconds), trace and path seeds on"
    )


if __name__ == "__main__":
    sys.exit(main())

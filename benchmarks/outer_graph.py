"""What the outer graph costs: a particle filter with 8 particles and 10 steps, alone and in a graph.

    python benchmarks/outer_graph.py            figures, and exit code 1 if the bar is missed

Both run in turn, on a scripted engine without latency, so that nothing hides the graph's own time; CPU time,
median of the pairs' differences over the median of the bare runs. `kept` runs have a journal and a trace on
disk, as those of the command line. The bar: at most 20 % above the bare driver, and as many journal rows as
without the graph: nothing is checkpointed per particle.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

from printing import met

import abduce
from abduce.orchestrator.doors import Doors
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.workflow import as_workflow
from abduce.serving.flow import Generate
from abduce.serving.scripted import Scripted

BAR = 0.20
PAIRS = 200


def say(request: Generate, seed: int) -> str:
    """A step that never ends the solution; no two are alike."""
    return f"step {seed}\n\n"


def pipeline() -> abduce.Pipeline:
    """8 particles, 10 steps, a score for each."""
    engine = Scripted(say, rate=lambda request: 0.5)
    policy = {"preset": "cot", "max_steps": 10}
    return abduce.build(
        strategy="particle_filter", particles=8, max_steps=10, model=engine, reward="rate", policy=policy
    )


async def timed(run: Callable[[], Awaitable[object]]) -> float:
    """CPU seconds of one run."""
    began = time.process_time()
    await run()
    return time.process_time() - began


async def compared(bare: Doors, graph: Doors, store: Runs | None, pairs: int) -> tuple[float, float]:
    """Median CPU seconds of a bare run, and of what the graph adds."""
    alone, more = [], []
    for i in range(pairs + 10):
        first = await timed(lambda: bare.asolve("?", store=store))
        second = await timed(lambda: graph.asolve("?", store=store))
        if i >= 10:  # warm
            alone.append(first)
            more.append(second - first)
    return statistics.median(alone), statistics.median(more)


def main() -> int:
    """Print the figures."""
    bare = pipeline()
    graph = as_workflow(bare)
    usage = bare.solve("?").usage
    print(f"{usage.calls} calls, {usage.reward_passes} scores; {PAIRS} pairs of runs, CPU time")
    good = True
    for name in ("in memory", "kept"):
        with tempfile.TemporaryDirectory() as folder:
            store = Runs(folder) if name == "kept" else None
            alone, more = asyncio.run(compared(bare, graph, store, PAIRS))
            ratio = more / alone
            good &= ratio <= BAR
            print(f"{name:9}  bare {alone * 1e3:6.2f} ms   graph +{more * 1e3:.2f} ms   {ratio:+.1%}")
            if store is not None:
                rows = {len(store.open(run).replies()) for run in store.names()}
                print(f"journal rows of a run, bare and in the graph: {sorted(rows)}")
                good &= len(rows) == 1
    print(f"at most {BAR:.0%} above the bare driver, and no more rows: {met(good)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""How much longer than its longest chain does a graph of calls take? Random graphs, failures and slow nodes.

    python benchmarks/dag.py [--graphs 1000] [--at-once 40] [--seed 0]

Each graph runs through the driver, with an account of what it spends, as any strategy's would. Nodes take
0.2 to 0.4 s, slow ones 1 to 3 s. Prints how much longer than its longest chain each took, which is the least
that a graph can take; and than the sleeps of that chain by themselves, done at the same time, since others
work on the machine and sleeps wake late.
"""

import asyncio
import random
import time
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple

from arguments import command

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.flow import CallTool, Failure, Flow, ToolResult
from abduce.tools.dag import Dag, Node


class Sleep:
    """A tool that takes its time, and fails where it is told to."""

    effect = "pure"

    def __init__(self) -> None:
        self.called: list[int] = []

    async def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Wait."""
        self.called.append(arguments["node"])
        await asyncio.sleep(arguments["seconds"])
        return ToolResult("", ok=arguments["ok"])


def work(node: int, seconds: float, ok: bool) -> Any:
    """One call as the work of a node."""

    def flow(parents: Mapping[Any, Any]) -> Flow[Any]:
        [reply] = yield [CallTool("sleep", {"node": node, "seconds": seconds, "ok": ok})]
        return reply if reply.ok else Failure("tool", "it failed")

    return flow


class Row(NamedTuple):
    """Seconds that a graph took, that its longest chain should take, and that the chain took by itself."""

    took: float
    chain: float
    bare: float
    once: bool  # no node ran twice


async def one(draw: random.Random) -> Row:
    """A random graph, and beside it, at the same time, nothing but the sleeps of its longest chain."""
    n, density = draw.randint(1, 24), draw.random() ** 2
    parents = {i: tuple(j for j in range(i) if draw.random() < density) for i in range(n)}
    slow = {i for i in parents if draw.random() < 0.1}
    seconds = {i: draw.uniform(1, 3) if i in slow else draw.uniform(0.2, 0.4) for i in parents}
    failing = {i for i in parents if draw.random() < 0.08}
    tool = Sleep()
    driver = Driver(Services(tools={"sleep": tool}))
    nodes = [Node(i, work(i, seconds[i], i not in failing), of) for i, of in parents.items()]
    ends: dict[int, tuple[float, list[float]]] = {}  # of those that will run: when, and the sleeps up to it
    for i, of in parents.items():
        if all(p in ends and p not in failing for p in of):
            until, sleeps = max((ends[p] for p in of), default=(0.0, []))
            ends[i] = until + seconds[i], [*sleeps, seconds[i]]
    chain, sleeps = max(ends.values())
    took, bare = await asyncio.gather(
        timed(driver.run(Dag(max_parallel=32).run(nodes))), timed(slept(sleeps))
    )
    return Row(took, chain, bare, len(set(tool.called)) == len(tool.called) == len(ends))


async def slept(sleeps: list[float]) -> None:
    """One after another."""
    for each in sleeps:
        await asyncio.sleep(each)


async def timed(work: Coroutine[Any, Any, Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def main() -> None:
    """Run them all."""
    parser = command(__doc__)
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    await one(random.Random(0))  # imports
    gate = asyncio.Semaphore(options.at_once)

    async def in_turn(number: int) -> Row:
        async with gate:
            if number < options.at_once:
                await asyncio.sleep(0.1 * number)  # else all begin at once, and wait for each other
            return await one(random.Random(f"{options.seed} {number}"))

    rows = await asyncio.gather(*map(in_turn, range(options.graphs)))
    print(f"{options.graphs} graphs, seed {options.seed}; every node once: {all(row.once for row in rows)}")
    for name, ratios in (
        ("time / longest chain", sorted(row.took / row.chain for row in rows)),
        ("time / the chain's sleeps alone, at the same time", sorted(row.took / row.bare for row in rows)),
    ):
        within = sum(ratio <= 1.1 for ratio in ratios)
        at = [ratios[int(q * (len(ratios) - 1))] for q in (0.5, 0.95, 0.99, 1)]
        print("{}: median {:.3f}, 95 % {:.3f}, 99 % {:.3f}, worst {:.3f}".format(name, *at), end="")
        print(f"; {within} within 10 %")


if __name__ == "__main__":
    asyncio.run(main())

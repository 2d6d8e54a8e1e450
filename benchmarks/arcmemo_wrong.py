"""What a memory of wrong concepts costs a run that learns, and what contains it.

    python benchmarks/arcmemo_wrong.py [--puzzles 240] [--seeds 201 202 …] [--all]

Puzzles of 2 or 3 planted operations in batches of 10, two attempts each, by a solver that knows these 8
operations: it needs no memory. The memory holds all other operations and the selecting model never names one
that is needed, so whatever is shown misleads. Against no memory with two attempts: both attempts see the
memory; or one is a control, so that what harms is retired, and the memory withheld once enough speaks
against it. `--all`: the right concepts and a good choice too, which should be neither retired nor withheld.
Seeds below 200 were looked at while the rule was made.
"""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arcmemo_arms import HEAD, TALKS, Arm, arm, course, only, told
from arcmemo_planted import PLANTED, Expert, planted
from arguments import command
from intervals import paired
from intervals import told as shown

from abduce.memory.concepts import Library, seeds
from abduce.memory.in_memory import InMemory
from abduce.serving.flow import Usage
from abduce.strategies.arcmemo import ArcMemo
from tests.strategies.arcmemo.skilled import PLAIN


def main() -> None:
    """Seed by seed, and all of them together."""
    parser = command(__doc__)
    parser.add_argument("--puzzles", type=int, default=240)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(201, 209)))
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    together: dict[str, list[Arm]] = {}
    print(HEAD)
    for seed in options.seeds:
        print(f"seed {seed}", flush=True)
        for found in asyncio.run(contained(options.puzzles, seed, options.all)):
            together.setdefault(found.name, []).append(found)
    print("all seeds")
    rows = [pooled(arms) for arms in together.values()]
    for row in rows:
        print(row.row(None if row is rows[0] else rows[0]))


def pooled(arms: list[Arm]) -> Arm:
    """The same arm on several sets of puzzles as one."""
    usage = sum((each.usage for each in arms), Usage())
    solved = tuple(row for each in arms for row in each.solved)
    return Arm(arms[0].name, solved, usage, sum(each.attributed for each in arms))


async def contained(n: int, seed: int, everything: bool) -> list[Arm]:
    """The arms of one seed, the one without a memory first."""
    puzzles, labels = planted(n, seed=seed)
    wrong = only(seeds(), [name for name in PLAIN if name not in PLANTED])
    misled = Expert(misled=True)
    base = await arm("no memory, 2 samples", misled, puzzles, labels, read="none", samples=2)
    print(base.row(), flush=True)
    arms = [base]
    ways: list[tuple[str, Library, Any, int]] = [
        ("wrong, both attempts see it", wrong, misled, 0),
        ("wrong, one is a control", wrong, misled, 1),
        ("right, one is a control", seeds(), Expert(), 1),
    ]
    for name, memory, say, control in ways if everything else ways[1:2]:
        store = InMemory()
        await store.write(memory.entries())
        strategy = ArcMemo(
            policy=TALKS, min_used=0, max_passes=1, samples=2 - control, control=control, examples=""
        )
        learned, usage = await course(strategy, say, puzzles, store, batch=10)
        found = told(name, learned.solved, labels, usage)
        arms.append(found)
        print(found.row(base))
        gone = [(i + 1, len(each.retired)) for i, each in enumerate(learned.rounds) if each.retired]
        off = [i + 1 for i, each in enumerate(learned.rounds) if each.withheld]
        print(f"    retired (batch, concepts): {gone or 'none'}; withheld after batch: {off or 'never'}")
        half = n // 2
        late, basis = replace(found, solved=found.solved[half:]), replace(base, solved=base.solved[half:])
        gain = shown(paired(late.solved, basis.solved))
        print(f"    second half: {sum(late.solved)}/{n - half}, gain {gain}", flush=True)
    return arms


if __name__ == "__main__":
    main()

"""What a memory of concepts gains, on puzzles made of planted operations and on ARC, with scripted solvers.

    python benchmarks/arcmemo.py transfer [--puzzles 48]
    python benchmarks/arcmemo.py search [--puzzles 48]
    python benchmarks/arcmemo.py arc FILE [--limit 400] [--cells 150]

`transfer`: puzzles composed of 2 or 3 of 8 operations; a scripted solver can do nothing but what its prompt
names. `search`: the same puzzles, and a solver that knows 22 operations and guesses compositions, those
of operations that it is shown first; so a memory narrows its search, and a wrong one misleads it. Each way to
read, the continual run, and no memory with as many tokens. `arc`: ARC's training tasks with the first solver.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arcmemo_arms import HEAD, TALKS, Arm, arm, course, matched, only, told
from arcmemo_planted import PLANTED, Guesser, composed, planted
from arguments import command

from abduce.memory.concepts import Lesson, Library, seeds
from abduce.memory.in_memory import InMemory
from abduce.serving.flow import Usage
from abduce.strategies.arcmemo import ArcMemo, Puzzle, read, scoring
from abduce.strategies.arcmemo.puzzle import Labels
from tests.strategies.arcmemo.skilled import PLAIN, Skilled, fitting, written


def main() -> int:
    """Run what is asked for."""
    parser = command(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("transfer", "search"):
        verbs.add_parser(name).add_argument("--puzzles", type=int, default=48)
    arc = verbs.add_parser("arc")
    arc.add_argument("file", type=Path)
    arc.add_argument("--limit", type=int, default=400)
    arc.add_argument("--cells", type=int, default=150, help="leave out puzzles with a larger grid")
    options = parser.parse_args()
    work = {"transfer": transfer, "search": search, "arc": on_arc}
    asyncio.run(work[options.verb](options))
    return 0


# ---------------------------------------------------------------- transfer


async def transfer(options: argparse.Namespace) -> None:
    """A solver that can only use operations named in its prompt."""
    puzzles, labels = planted(options.puzzles)
    skilled = Skilled(depth=3)
    print(f"{len(puzzles)} puzzles of 2 or 3 of 8 planted operations; the solver does what is named.\n")
    print(HEAD)
    base = await arm("no memory", skilled, puzzles, labels, read="none")
    print(base.row())
    found = await arm("34 seeds, selected", skilled, puzzles, labels, seeds())
    print((await matched(skilled, puzzles, labels, found, base)).row(base))
    print(instances(puzzles, labels).row(base))
    print((await arm("the 8 concepts, selected", skilled, puzzles, labels, only(seeds(), PLANTED))).row(base))
    print(found.row(base))


def instances(puzzles: Mapping[str, Puzzle], labels: Mapping[str, Labels]) -> Arm:
    """Whole programs of all other puzzles in the place of concepts: such a solver can but run them as they
    are, so that is done without a prompt; the tokens are those of three of the programs."""
    programs = {}
    for name, puzzle in puzzles.items():
        found = fitting(PLANTED, _pairs(puzzle), 3)
        programs[name] = written(found) if found else ""
    right, tokens = [], 0
    for name, puzzle in puzzles.items():
        others = [code for other, code in programs.items() if other != name and code]
        tokens += sum(len(code) // 4 for code in others[:3])
        right.append(any(_fits(code, puzzle, labels[name]) for code in others))
    return Arm("whole solutions of all others", tuple(right), Usage(input_tokens=tokens))


def _pairs(puzzle: Puzzle) -> list[tuple[list[list[int]], list[list[int]]]]:
    return [([list(r) for r in a], [list(r) for r in b]) for a, b in puzzle.train]


def _fits(code: str, puzzle: Puzzle, label: Labels) -> bool:
    space: dict[str, Any] = {}
    exec(code, space)
    rows = [*puzzle.train, *zip(puzzle.test, label, strict=True)]
    try:
        return all(space["transform"]([list(r) for r in a]) == [list(r) for r in b] for a, b in rows)
    except (IndexError, ValueError):
        return False


# ---------------------------------------------------------------- search


async def search(options: argparse.Namespace) -> None:
    """A solver that searches, by itself or among what it is shown; tokens matched."""
    puzzles, labels = planted(options.puzzles)
    guesser = Guesser()
    known = seeds()
    print(
        f"{len(puzzles)} puzzles; the solver knows 22 operations and considers 100 compositions an attempt.\n"
    )
    print(HEAD)
    base = await arm("no memory", guesser, puzzles, labels, read="none")
    selected = await arm("PS, selected", guesser, puzzles, labels, known)
    as_many = await matched(guesser, puzzles, labels, selected, base)
    print(base.row())
    print(as_many.row(base))
    print(f"the gains below are over {as_many.name}, which takes as many tokens as PS\n")
    print(selected.row(as_many))
    print(
        (
            await arm("PS, selected, 2 retries", guesser, puzzles, labels, known, max_passes=3, reselect=True)
        ).row(as_many)
    )
    print((await arm("PS, no selection", guesser, puzzles, labels, known, read="all")).row(as_many))
    print((await arm("PS, names only", guesser, puzzles, labels, known, read="names")).row(as_many))
    print((await arm("OE, selected", guesser, puzzles, labels, lessons(), format="oe")).row(as_many))
    for passes in (1, 2):
        print((await continual(guesser, puzzles, labels, passes)).row(as_many))
    print("\nwrong concepts: the memory has everything but what is needed, or the choice is always wrong")
    wrong = only(seeds(), [name for name in PLAIN if name not in PLANTED])
    print((await arm("PS, wrong concepts", guesser, puzzles, labels, wrong)).row(base))
    print((await arm("PS, wrong choice", Guesser(misled=True), puzzles, labels, known)).row(base))
    print("(over no memory with one attempt, as these have)")
    two = await arm("no memory, 2 samples", guesser, puzzles, labels, read="none", samples=2)
    print(two.row(base))
    print((await arm("PS, wrong concepts, 1 control", guesser, puzzles, labels, wrong, control=1)).row(two))
    print(
        (
            await arm("PS, wrong choice, 1 control", Guesser(misled=True), puzzles, labels, known, control=1)
        ).row(two)
    )
    print((await arm("PS, selected, 1 control", guesser, puzzles, labels, known, control=1)).row(two))
    print("(over no memory with two attempts, as these have)")


def lessons() -> Library:
    """The planted operations as lessons."""
    found = [Lesson(seeds().concepts[name].cues[0], name, "seed") for name in PLANTED]
    return Library().learn(found).library


async def continual(
    guesser: Guesser, puzzles: Mapping[str, Puzzle], labels: Mapping[str, Labels], passes: int
) -> Arm:
    """From an empty memory: first a puzzle for each single operation, then the others, in batches of 10."""
    rng = Random(1)
    singles: dict[str, Puzzle] = {}
    for name in PLANTED:
        made = None
        while made is None:
            made = composed([name], rng)
        singles[f"single {name}"] = made[0]
    memory = InMemory()
    strategy = ArcMemo(policy=TALKS, min_used=0, max_passes=1, examples="")
    learned, usage = await course(strategy, guesser, {**singles, **puzzles}, memory, batch=10, passes=passes)
    name = f"PS, continual, {passes} pass{'es' * (passes > 1)}"
    return told(name, learned.solved, labels, usage)


# ---------------------------------------------------------------- ARC


async def on_arc(options: argparse.Namespace) -> None:
    """Training tasks of ARC-AGI-1, with and without the seeds, by the solver that only does what is named."""
    every, all_labels = read(options.file)
    puzzles = {
        name: puzzle
        for name, puzzle in list(every.items())[: options.limit]
        if max(len(g) * len(g[0]) for g in (*(g for pair in puzzle.train for g in pair), *puzzle.test))
        <= options.cells
    }
    labels = {name: all_labels[name] for name in puzzles}
    print(f"{len(puzzles)} of ARC's training tasks, those of at most {options.cells} cells a grid.\n")
    print(HEAD)
    base = await arm("no memory", Skilled(), puzzles, labels, read="none")
    print(base.row())
    print((await arm("34 seeds, selected", Skilled(), puzzles, labels, seeds())).row(base))
    memory = InMemory()
    strategy = ArcMemo(policy=TALKS, min_used=0, max_passes=1, seeds="grids")
    learned, usage = await course(strategy, Skilled(), puzzles, memory, batch=10, passes=2)
    print(told("seeds, continual, 2 passes", learned.solved, labels, usage).row(base))
    passed = {name for each in learned.rounds for name in each.solved}
    right = {n for n in passed if all(scoring.right(learned.solved[n][-1].result.answer, labels[n]))}
    failing = sorted(passed - right)
    print(f"\nby the training pairs {len(passed)} are solved, of which {len(failing)} fail a test: {failing}")
    versions = [(each.read, each.version) for each in learned.rounds]
    ordered = all(a <= b for a, b in versions) and all(p[1] == q[0] for p, q in pairwise(versions))
    tried = list(learned.order[: len(puzzles)]) == list(puzzles)
    print(f"versions 1 to {versions[-1][1]} in {len(versions)} batches, no gap: {ordered}; in order: {tried}")


if __name__ == "__main__":
    sys.exit(main())

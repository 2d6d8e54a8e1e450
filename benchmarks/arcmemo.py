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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from abduce.memory.concepts import Lesson, Library, seeds
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.services import Services
from abduce.serving.flow import Usage
from abduce.serving.scripted import Scripted
from abduce.strategies.arcmemo import ArcMemo, Puzzle, learn, read, scoring
from abduce.strategies.arcmemo.attempts import Solved
from abduce.strategies.arcmemo.puzzle import Labels
from abduce.strategies.policy import policy
from abduce.tools.python import Python
from tests.strategies.arcmemo.skilled import (
    PLAIN,
    Skilled,
    fitting,
    function,
    puzzle_of,
    shown_names,
    written,
)

PLANTED = (
    "mirror left to right",
    "transpose",
    "repeat below",
    "join with its mirror to the right",
    "let cells fall",
    "rotate a quarter turn",
    "cut off the top part",
    "drop repeated lines",
)
TALKS = policy({"preset": "plain", "sampling": {"max_tokens": 4000}})


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("transfer", "search"):
        verbs.add_parser(name).add_argument("--puzzles", type=int, default=48)
    arc = verbs.add_parser("arc")
    arc.add_argument("file", type=Path)
    arc.add_argument("--limit", type=int, default=400)
    arc.add_argument("--cells", type=int, default=150, help="leave out puzzles with a larger grid")
    chosen = parser.parse_args()
    work = {"transfer": transfer, "search": search, "arc": on_arc}
    asyncio.run(work[chosen.verb](chosen))
    return 0


# ---------------------------------------------------------------- arms


@dataclass(frozen=True)
class Arm:
    """What came of one way to read, puzzle by puzzle in a fixed order."""

    name: str
    solved: tuple[bool, ...]
    usage: Usage
    attributed: int = 0

    def row(self, base: "Arm | None" = None) -> str:
        """Rate with its interval, tokens a puzzle, share of solves that use a selected concept, gain."""
        n, k = len(self.solved), sum(self.solved)
        low, high = wilson(k, n)
        tokens = (self.usage.input_tokens + self.usage.output_tokens) / n
        share = f"{self.attributed / k:4.0%}" if k else "   -"
        gain = ""
        if base is not None:
            mean, low_gain, high_gain = paired(self.solved, base.solved)
            gain = f"{mean:+.3f} [{low_gain:+.3f}, {high_gain:+.3f}]"
        return (
            f"{self.name:34} {k:3}/{n:<3} {k / n:.3f} [{low:.3f}, {high:.3f}] {tokens:8.0f} {share}  {gain}"
        )


HEAD = f"{'':34} {'solved':7} rate, 95 % interval      tokens attr.  gain over no memory, paired, 95 %"


def paired(one: Sequence[bool], other: Sequence[bool], draws: int = 4000) -> tuple[float, float, float]:
    """Mean difference of two arms on the same puzzles, with its bootstrap interval."""
    gains = [int(a) - int(b) for a, b in zip(one, other, strict=True)]
    rng, n = Random(0), len(gains)
    means = sorted(sum(rng.choices(gains, k=n)) / n for _ in range(draws))
    return sum(gains) / n, means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


async def arm(
    name: str,
    say: Any,
    puzzles: Mapping[str, Puzzle],
    labels: Mapping[str, Labels],
    library: Library | None = None,
    **options: Any,
) -> Arm:
    """Each puzzle by itself, with a frozen memory."""
    memory = InMemory()
    if library is not None:
        await memory.write(library.entries())
    settings = {"policy": TALKS, "min_used": 0, "max_passes": 1, "write": False, **options}
    learned, usage = await course(ArcMemo(**settings), say, puzzles, memory, freeze=True)
    return told(name, learned.solved, labels, usage)


def told(
    name: str, solved: Mapping[str, Sequence[Solved]], labels: Mapping[str, Labels], usage: Usage
) -> Arm:
    """An arm from what a run made of its puzzles, those in `labels`."""
    right, uses = [], 0
    for key, label in labels.items():
        good = any(all(scoring.right(each.result.answer, label)) for each in solved[key])
        right.append(good)
        last = solved[key][-1]
        uses += good and bool(scoring.attributed(last.result.text, last.selected))
    return Arm(name, tuple(right), usage, uses)


async def course(
    strategy: ArcMemo, say: Any, puzzles: Mapping[str, Puzzle], memory: InMemory, **options: Any
) -> tuple[Any, Usage]:
    """A continual run, and what it consumed."""
    tools = {tool.name: tool for tool in Python(seconds=2).tools()}
    engine = say if hasattr(say, "capabilities") else Scripted(say)
    driver = Driver(Services({"policy": engine}, tools=tools, memory=memory), seed=0, concurrency=8)
    tasks = [puzzle.task(name) for name, puzzle in puzzles.items()]
    learned = await driver.run(learn(strategy, tasks, seed=0, **options))
    return learned, driver.ledger.usage


def planted(n: int, seed: int = 0) -> tuple[dict[str, Puzzle], dict[str, Labels]]:
    """Puzzles of two or three planted operations, of which no single one of all known fits."""
    rng = Random(seed)
    puzzles: dict[str, Puzzle] = {}
    labels: dict[str, Labels] = {}
    while len(puzzles) < n:
        steps = rng.sample(PLANTED, 2 + len(puzzles) % 2)
        made = composed(steps, rng)
        if made is None:
            continue
        puzzle, label = made
        pairs = [([list(r) for r in a], [list(r) for r in b]) for a, b in puzzle.train]
        if any(a == b for a, b in pairs) or fitting(list(PLAIN), pairs, 1):
            continue
        name = f"planted {len(puzzles)}"
        puzzles[name], labels[name] = puzzle, label
    return puzzles, labels


def composed(steps: Sequence[str], rng: Random) -> tuple[Puzzle, Labels] | None:
    """Seven grids, and what the steps make of them."""
    rows = []
    for _ in range(7):
        height, width = rng.choice((2, 4)), rng.randint(3, 4)
        given = [[rng.choice((0, 0, 1, 2, 3)) for _ in range(width)] for _ in range(height)]
        wanted = given
        for step in steps:
            wanted = function(PLAIN[step].replace("{n}", "2"))(wanted)
        if not wanted or not wanted[0]:
            return None
        rows.append((tuple(map(tuple, given)), tuple(map(tuple, wanted))))
    return Puzzle(tuple(rows[:5]), tuple(a for a, _ in rows[5:])), tuple(b for _, b in rows[5:])


# ---------------------------------------------------------------- transfer


async def transfer(chosen: argparse.Namespace) -> None:
    """A solver that can only use operations named in its prompt."""
    puzzles, labels = planted(chosen.puzzles)
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


def only(library: Library, names: Sequence[str]) -> Library:
    """A library with these concepts."""
    return replace(library, concepts={name: library.concepts[name] for name in names}, solutions={})


# ---------------------------------------------------------------- search


async def matched(
    say: Any, puzzles: Mapping[str, Puzzle], labels: Mapping[str, Labels], than: Arm, base: Arm
) -> Arm:
    """No memory, with so many samples that it takes as many tokens as another arm."""
    samples, found = 1, base
    while found.usage.tokens < than.usage.tokens:
        samples = max(samples + 1, int(samples * than.usage.tokens / found.usage.tokens))
        name = f"no memory, {samples} samples"
        found = await arm(name, say, puzzles, labels, read="none", samples=samples)
    return found


class Guesser(Skilled):
    """Knows 22 operations. An attempt considers `tries` compositions of 1 to 3 of them, drawn at random, and
    writes each down; half of them of those operations that it is shown, if any. As the selecting model it
    names, of the operations that the memory names, those that it would need, each with probability `sees`,
    and as many others."""

    knows: Sequence[str] = tuple(PLAIN)

    def __init__(self, tries: int = 100, sees: float = 0.8, misled: bool = False) -> None:
        super().__init__(depth=3)
        self.tries, self.sees, self.misled = tries, sees, misled
        self.seed = 0

    def __call__(self, request: Any, seed: int) -> Any:
        """One reply for each sample."""
        self.seed = seed
        if request.n > 1:
            replies = []
            for i in range(request.n):
                self.seed = seed + i
                replies.append(super().__call__(request, seed))
            return replies
        return super().__call__(request, seed)

    @staticmethod
    def kind(text: str) -> str:
        """What a prompt asks for."""
        if "Which lessons fit the description" in text:
            return "pick"
        if text.startswith("Describe this problem"):
            return "describe"
        return Skilled.kind(text)

    def describe(self, text: str) -> str:
        """The problem as it is."""
        return text

    def pick(self, text: str) -> str:
        """The numbers of lessons that suggest what it would need."""
        wanted = self._needed(text)
        rows = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("   Try: ")]
        numbers = [i for i, row in enumerate(rows, 1) if row in wanted]
        return "```yaml\n" + "\n".join(f"- {i}" for i in numbers or [1]) + "\n```"

    def select(self, text: str) -> str:
        """What it would need, as far as it sees that, and as much else."""
        names = [
            name for name in PLAIN if f"- {name}\n" in text or f"; {name}" in text or f": {name};" in text
        ]
        wanted = [name for name in self._needed(text) if name in names]
        if self.misled:
            wanted = []
        rng = Random(self.seed)
        others = [name for name in names if name not in wanted]
        chosen = [*wanted, *rng.sample(others, min(len(others), max(1, len(wanted))))]
        return "```yaml\n" + "\n".join(f"- {name}" for name in chosen) + "\n```"

    def _needed(self, text: str) -> list[str]:
        """What the solution uses, as far as it sees that."""
        found = fitting(PLANTED, puzzle_of(text), 3) or []
        rng = Random(self.seed)
        return [name for name, _ in found if rng.random() < self.sees]

    def solve(self, text: str) -> str:
        """Guess until something fits, or enough was considered."""
        rng, pairs = Random(self.seed), puzzle_of(text)
        lessons = [line.removeprefix("   Try: ") for line in text.splitlines() if line.startswith("   Try: ")]
        shown = [name for name in [*shown_names(text), *lessons] if name in PLAIN]
        bodies = {name: PLAIN[name].replace("{n}", "2").replace("{color}", "1") for name in PLAIN}
        functions = {name: function(body) for name, body in bodies.items()}
        thoughts = []
        for turn in range(self.tries):
            known = shown if shown and turn % 2 else self.knows
            names = [rng.choice(known) for _ in range(rng.choice((1, 2, 2, 3, 3, 3)))]
            thoughts.append(", then ".join(names))
            if all(_made(functions, names, a) == b for a, b in pairs):
                program = written([(name, bodies[name]) for name in names])
                return "\n".join((*thoughts, f"```python\n{program}```"))
        return "\n".join((*thoughts, "I see no rule here."))


class Expert(Guesser):
    """Knows the 8 planted operations alone, and so is good without a memory."""

    knows = PLANTED


def _made(functions: Mapping[str, Any], names: Sequence[str], given: Any) -> Any:
    for name in names:
        given = functions[name](given)
        if not given or not given[0] or len(given) * len(given[0]) > 900:
            return None
    return given


async def search(chosen: argparse.Namespace) -> None:
    """A solver that searches, by itself or among what it is shown; tokens matched."""
    puzzles, labels = planted(chosen.puzzles)
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
    await contained(wrong)


async def contained(wrong: Library) -> None:
    """Wrong concepts in a continual run: controls tell what is reached without, and what harms is retired."""
    puzzles, labels = planted(240, seed=7)
    expert = Expert(misled=True)
    print(
        f"\n{len(puzzles)} puzzles in batches of 10; the solver knows the 8 operations, the memory is wrong\n"
    )
    print(HEAD)
    base = await arm("no memory, 2 samples", expert, puzzles, labels, read="none", samples=2)
    print(base.row())
    for name, memory, control in (
        ("wrong, never retired", wrong, 0),
        ("wrong, retired", wrong, 1),
        ("right, retired if bad", seeds(), 1),
    ):
        store = InMemory()
        await store.write(memory.entries())
        say = expert if memory is wrong else Expert()
        strategy = ArcMemo(
            policy=TALKS, min_used=0, max_passes=1, samples=2 - control, control=control, examples=""
        )
        learned, usage = await course(strategy, say, puzzles, store, batch=10)
        print(told(name, learned.solved, labels, usage).row(base))
        gone = [(i + 1, len(each.retired)) for i, each in enumerate(learned.rounds) if each.retired]
        left = [e for e in await store.everything(kinds=("structure", "routine")) if e.status == "active"]
        late = dict(list(labels.items())[120:])
        kept, basis = (
            told("second half", learned.solved, late, usage),
            replace(base, solved=base.solved[120:]),
        )
        mean, low, high = paired(kept.solved, basis.solved)
        print(f"    retired (batch, concepts): {gone or 'none'}; active at the end: {len(left)}")
        print(f"    second half alone: {sum(kept.solved)}/120, gain {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


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


async def on_arc(chosen: argparse.Namespace) -> None:
    """Training tasks of ARC-AGI-1, with and without the seeds, by the solver that only does what is named."""
    every, all_labels = read(chosen.file)
    puzzles = {
        name: puzzle
        for name, puzzle in list(every.items())[: chosen.limit]
        if max(len(g) * len(g[0]) for g in (*(g for pair in puzzle.train for g in pair), *puzzle.test))
        <= chosen.cells
    }
    labels = {name: all_labels[name] for name in puzzles}
    print(f"{len(puzzles)} of ARC's training tasks, those of at most {chosen.cells} cells a grid.\n")
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

"""Grid puzzles made of planted operations, and scripted solvers that guess. Used by `arcmemo*.py`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from abduce.strategies.arcmemo import Puzzle
from abduce.strategies.arcmemo.puzzle import Labels
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


# ---------------------------------------------------------------- solvers


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

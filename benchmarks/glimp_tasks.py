"""Problems for two models that write a solution in lines, with examples that show how.

Made ones, each class the same in every run of a seed, or a file of questions and answers. The made ones:

    sums       three numbers, added one after the other
    products   two digits times one, by parts; there are 266
    words      word problems of two steps
    links      "7 leads to 2. …" in any order: go on from a digit three times
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from abduce.orchestrator.evaluate import read_problems
from abduce.strategies.base import Task

Shots = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asked:
    """A problem, its right answer, and a number that names it."""

    task: Task
    gold: str
    number: int


def sums(rng: random.Random) -> tuple[str, str]:
    """Three numbers added one after the other."""
    a, b, c = (rng.randint(2, 20) for _ in range(3))
    return f"{a} + {b} + {c} =", _solution(
        [f"{a} + {b} = {a + b}", f"{a + b} + {c} = {a + b + c}"], a + b + c
    )


def products(rng: random.Random) -> tuple[str, str]:
    """A number of two digits times one of one digit, by parts."""
    a, b = rng.randint(12, 49), rng.randint(3, 9)
    tens = a - a % 10
    lines = [f"{tens} x {b} = {tens * b}", f"{a % 10} x {b} = {a % 10 * b}"]
    return f"{a} x {b} =", _solution([*lines, f"{tens * b} + {a % 10 * b} = {a * b}"], a * b)


def words(rng: random.Random) -> tuple[str, str]:
    """A word problem of two steps, one of four stories."""
    name, thing = rng.choice(("Tom", "Mia", "Ada", "Ben", "Eva")), rng.choice(("pens", "coins", "cards"))
    a, b, c = rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 5)
    total = a * b
    story = rng.randrange(4)
    if story == 0:
        asked = f"{name} has {a} boxes with {b} {thing} each and gives {c} {thing} away. How many are left?"
        return asked, _solution([f"{a} * {b} = {total}", f"{total} - {c} = {total - c}"], total - c)
    if story == 1:
        asked = f"{name} buys {a} bags with {b} {thing} each and had {c} before. How many {thing} now?"
        return asked, _solution([f"{a} * {b} = {total}", f"{total} + {c} = {total + c}"], total + c)
    if story == 2:
        asked = f"{name} had {a + b} {thing}, lost {c} and then found {a}. How many {thing} does {name} have?"
        left = a + b - c
        return asked, _solution([f"{a + b} - {c} = {left}", f"{left} + {a} = {left + a}"], left + a)
    asked = f"{name} has {a} red and {b} blue {thing}. Each costs {c} dollars. What do all of them cost?"
    return asked, _solution([f"{a} + {b} = {a + b}", f"{a + b} * {c} = {(a + b) * c}"], (a + b) * c)


def links(rng: random.Random) -> tuple[str, str]:
    """Three links of a chain of six digits, which are told of in any order."""
    path = rng.sample(range(1, 10), 6)
    chain = [f"{a} leads to {b}." for a, b in pairwise(path)]
    asked = " ".join(rng.sample(chain, len(chain)))
    return f"{asked} Go on from {path[0]} three times.", _solution(chain[:3], path[3])


def _solution(lines: Sequence[str], answer: int) -> str:
    return "\n".join([*lines, f"The answer is {answer}."])


MADE: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "sums": sums,
    "products": products,
    "words": words,
    "links": links,
}
N_SHOTS = 4  # of a made task
N_BARREN = 10_000  # draws without a new problem, after which a made task is taken to have no more
SHOTS_OF_A_FILE: Shots = (
    (
        "A baker makes 5 trays with 12 rolls each. He sells 48 of them. How many rolls are left?",
        "The baker makes 5 * 12 = 60 rolls.\nHe sells 48 of them, so 60 - 48 = 12 rolls are left.\n"
        "The answer is 12.",
    ),
    (
        "Lena reads 15 pages a day for 6 days. Her book has 140 pages. How many pages has she still to read?",
        "In 6 days Lena reads 15 * 6 = 90 pages.\nThere are 140 - 90 = 50 pages still to read.\n"
        "The answer is 50.",
    ),
    (
        "A shirt costs 20 dollars, a pair of shoes three times as much. What do 2 shirts and a pair cost?",
        "The shoes cost 20 * 3 = 60 dollars.\nTwo shirts cost 20 * 2 = 40 dollars.\n"
        "Together that is 60 + 40 = 100 dollars.\nThe answer is 100.",
    ),
)


def problems(task: str, n: int, seed: int) -> tuple[Shots, list[Asked]]:
    """Examples and `n` different problems, or all that there are, of a made task or of a file of questions
    and answers."""
    if task not in MADE:
        rows = read_problems(Path(task))
        random.Random(seed).shuffle(rows)
        return SHOTS_OF_A_FILE, [Asked(row.task, row.answer, i) for i, row in enumerate(rows[:n])]
    rng = random.Random(seed)
    made: dict[str, str] = {}
    barren = 0
    while len(made) < n + N_SHOTS and barren < N_BARREN:
        question, solution = MADE[task](rng)
        barren = barren + 1 if question in made else 0
        made[question] = solution
    pairs = list(made.items())
    return tuple(pairs[:N_SHOTS]), [
        Asked(Task(question), solution.rpartition(" ")[2].rstrip("."), i)
        for i, (question, solution) in enumerate(pairs[N_SHOTS:])
    ]

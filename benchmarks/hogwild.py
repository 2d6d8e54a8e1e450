"""What do two workers on one cache save over one? Calls of the small model, and right answers.

    python benchmarks/hogwild.py [--problems 12] [--tokens 48] [--seed 0]

One-step word problems with numbers up to 9, the preset few_shot, greedy. Every row may write --tokens
tokens, all workers together; where that gave no answer, one is forced with 16 more. A call of the model is
one step in sequence: it gives a token to every worker. Needs torch and transformers; CPU seconds are those of
this process, reading the prompt included.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from random import Random
from time import process_time
from typing import NamedTuple

from arguments import command
from printing import table_head, table_row
from solving import solved

from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.services import Services
from abduce.serving.transformers import Transformers
from abduce.strategies.base import Result, Strategy, Task
from abduce.strategies.hogwild import TIME_IS_UP, Hogwild
from abduce.strategies.policy import policy
from abduce.strategies.self_consistency import SelfConsistency

TEMPLATES = (
    ("A shelf holds {a} books. How many books are on {b} shelves?", lambda a, b: a * b),
    ("Ben had {c} marbles. He gave {a} to his sister. How many are left?", lambda a, b: b),
    ("Ann picked {a} red flowers and {b} blue ones. How many flowers did she pick?", lambda a, b: a + b),
)


class Row(NamedTuple):
    """One problem in one setting."""

    right: bool
    by_itself: bool  # stated without being forced
    tokens: int
    calls: int
    cpu_s: float


def problems(n: int, seed: int) -> list[tuple[str, int]]:
    """Questions with their answers."""
    rng, made = Random(seed), []
    for i in range(n):
        question, answer = TEMPLATES[i % len(TEMPLATES)]
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        made.append((question.format(a=a, b=b, c=a + b), answer(a, b)))
    return made


def settings(tokens: int) -> dict[str, Strategy]:
    """The rows of the table; one worker without any marks is the first."""
    greedy = {"preset": "few_shot", "sampling": {"temperature": 0.0}}
    plain = policy(greedy)
    whole = policy({**greedy, "max_solution_tokens": tokens})
    half = tokens // 2
    return {
        "one, ordinary decoding": SelfConsistency(policy=whole, n=1),
        "one, with marks": Hogwild(policy=plain, workers=1, calls=tokens, openings=()),
        "two, combined": Hogwild(policy=plain, calls=half, openings=()),
        "two, interleaved": Hogwild(policy=plain, calls=half, openings=(), layout="interleaved"),
        "two, contiguous": Hogwild(policy=plain, calls=half, openings=(), layout="contiguous"),
        "two, combined, greeting": Hogwild(policy=plain, calls=half),
    }


def measured(result: Result, strategy: Strategy, answer: int, cpu_s: float) -> Row:
    """What a result says of a setting."""
    calls = tokens = result.diagnostics["tokens"]
    if isinstance(strategy, Hogwild):
        group = result.diagnostics["calls_per_worker"]
        calls = group + tokens - group * strategy.workers
    told = "answer is" in result.text and TIME_IS_UP not in result.text
    return Row(result.answer == str(answer), told, tokens, calls, cpu_s)


def line(name: str, rows: Sequence[Row]) -> None:
    """A line of the table."""
    n = len(rows)
    right = sum(row.right for row in rows)
    low, high = wilson(right, n)
    tokens, calls = (sum(getattr(row, key) for row in rows) for key in ("tokens", "calls"))
    itself, cpu_s = sum(row.by_itself for row in rows), sum(row.cpu_s for row in rows)
    shown = f"{right}/{n} ({low:.2f} – {high:.2f})"
    means = (f"{tokens / n:.1f}", f"{calls / n:.1f}", f"{calls / tokens:.2f}", f"{cpu_s / calls:.3f}")
    table_row(name, shown, f"{itself}/{n}", *means)


async def measure(options: argparse.Namespace) -> None:
    """Print the table, a line as soon as it is known."""
    engine = Transformers(device="cpu", slots=2, context=1024, threads=1)
    await engine.ready()
    print(f"{options.problems} problems, {options.tokens} tokens, seed {options.seed}, greedy, float32 CPU\n")
    columns = ("workers", "right (95 %)", "answered unforced", "tokens", "calls", "calls a token")
    table_head(*columns, "CPU s a call")
    asked, services = problems(options.problems, options.seed), Services({"policy": engine})
    for name, strategy in settings(options.tokens).items():
        rows = []
        for question, answer in asked:
            start = process_time()
            result, _ = await solved(strategy, Task(question), services, seed=options.seed)
            rows.append(measured(result, strategy, answer, process_time() - start))
        line(name, rows)
    await engine.close()


def main() -> int:
    """Run it."""
    parser = command(__doc__)
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(measure(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a memory of concepts gains the small model: on rules that nobody can know, and on ARC.

    python benchmarks/arcmemo_model.py rules [--rules 32]
    python benchmarks/arcmemo_model.py arc FILE [--limit 12]

`rules`: what animals that do not exist eat; the memory holds 8 of them at a time, right or wrong ones.
`arc`: the shortest of ARC's training tasks, one attempt each, with the seeds and without.
"""

import argparse
import asyncio
import sys
from itertools import product
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from abduce.memory.concepts import Concept, Library, seeds
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.flow import Sampling, Usage
from abduce.strategies.arcmemo import ArcMemo, read
from abduce.strategies.base import Check, Task
from abduce.strategies.policy import StepPolicy, policy
from benchmarks.arcmemo import HEAD, Arm, arm


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("rules").add_argument("--rules", type=int, default=32)
    arc = verbs.add_parser("arc")
    arc.add_argument("file", type=Path)
    arc.add_argument("--limit", type=int, default=12)
    chosen = parser.parse_args()
    asyncio.run({"rules": on_rules, "arc": on_arc}[chosen.verb](chosen))
    return 0


# ---------------------------------------------------------------- rules that nobody can know

THINGS = ("mip", "zarn", "tolp", "quev", "brim", "fosk", "dral", "nulk")
THINGS += ("vep", "gosh", "wint", "yab", "kerl", "sump", "lath", "oxen")
FOODS = (
    "acorns",
    "bread",
    "carrots",
    "dates",
    "eggs",
    "figs",
    "garlic",
    "honey",
    "ice",
    "jam",
    "kale",
    "lemons",
)
FOODS += (
    "milk",
    "nuts",
    "olives",
    "pears",
    "radish",
    "salt",
    "turnips",
    "walnuts",
    "yams",
    "cheese",
    "paper",
)
ASKS = StepPolicy(
    prompt="{question}",
    examples=(
        ("Question: What does a horse eat?\nAnswer:", " hay"),
        ("Question: What does a cow eat?\nAnswer:", " grass"),
    ),
    chat=False,
    delimiter=None,
    stop=("\n",),
    answer_kind="text",
    sampling=Sampling(temperature=0.3, max_tokens=6),
)


async def on_rules(chosen: argparse.Namespace) -> None:
    """Rules that nobody can know: what animals that do not exist eat, 8 rules in view at a time."""
    from abduce.serving.embedded import Embedded

    engine = Embedded(slots=4, context=2048, threads=2)
    rng = Random(3)
    names = [f"{a}{b}" for a, b in product(THINGS, ("", "ian"))][: chosen.rules]
    food = {name: rng.choice(FOODS) for name in names}
    wrong = {name: rng.choice([c for c in FOODS if c != food[name]]) for name in names}
    arms = [
        ("no memory", None, 1),
        ("rules in view", food, 1),
        ("wrong rules in view", wrong, 1),
        ("no memory, 16 samples", None, 16),
    ]
    print(f"{len(names)} rules, 8 in view at a time\n")
    print(HEAD)
    base = None
    for name, rules, samples in arms:
        right: list[bool] = []
        usage = Usage()
        for first in range(0, len(names), 8):
            group = names[first : first + 8]
            memory = InMemory()
            if rules is not None:
                told_rules = [
                    Concept(f"what a {n} eats", "structure", description=f"A {n} eats {rules[n]}.")
                    for n in group
                ]
                await memory.write(Library().write(told_rules).library.entries())
            for n in group:
                check = Check("equals", {"value": food[n]})
                task = Task(f"Question: What does a {n} eat?\nAnswer:", checks=(check,), metadata={"id": n})
                strategy = ArcMemo(
                    policy=ASKS, read="all" if rules else "none", write=False, max_passes=1, samples=samples
                )
                driver = Driver(Services({"policy": engine}, memory=memory), seed=1)
                result = await driver.run(strategy.solve(task, seed=1))
                right.append(
                    result.answer is not None and str(result.answer).strip(" .").casefold() == food[n]
                )
                usage += driver.ledger.usage
        found = Arm(name, tuple(right), usage)
        print(found.row(base), flush=True)
        base = base or found
    await engine.close()


async def on_arc(chosen: argparse.Namespace) -> None:
    """The small model on ARC, with and without the seeds."""
    from abduce.serving.embedded import Embedded

    engine = Embedded(slots=2, context=8192, threads=2)
    every, all_labels = read(chosen.file)
    puzzles = dict(sorted(every.items(), key=lambda item: len(item[1].text))[: chosen.limit])
    labels = {name: all_labels[name] for name in puzzles}
    short = policy({"preset": "plain", "sampling": {"max_tokens": 300, "temperature": 0.3}})
    answers = Sampling(temperature=0.3, max_tokens=100)
    print(f"the {len(puzzles)} shortest of ARC's training tasks, one attempt of 300 tokens\n")
    print(HEAD)
    base = await arm("no memory", engine, puzzles, labels, read="none", policy=short)
    print(base.row(), flush=True)
    found = await arm(
        "34 seeds, selected", engine, puzzles, labels, seeds(), policy=short, select_sampling=answers
    )
    print(found.row(base))
    await engine.close()


if __name__ == "__main__":
    sys.exit(main())

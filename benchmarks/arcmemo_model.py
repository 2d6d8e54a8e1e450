"""What a memory of concepts gains the small model: on rules that nobody can know, and on ARC.

    python benchmarks/arcmemo_model.py rules [--family question sentence] [--rules 96] [--rows FILE]
    python benchmarks/arcmemo_model.py arc FILE [--limit 12]

`rules`: what animals that do not exist eat; the memory's rules are in view, right or wrong ones, and against
them no memory with one attempt and with as many tokens. Two families: `question` puts 8 rules in view and
asks a question; `sentence` puts in view the one that a selection leaves, and is answered by going on with a
sentence in the rule's own words, which a model that can only copy can do. `arc`: the shortest of ARC's
training tasks, one attempt each, with the seeds, without, and without with as many tokens.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from abduce.memory.concepts import Concept, Library, seeds
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.flow import Sampling, Usage
from abduce.strategies.arcmemo import ArcMemo, read
from abduce.strategies.base import Task
from abduce.strategies.policy import StepPolicy, policy
from benchmarks.arcmemo_arms import HEAD, Arm, arm, matched


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    rules = verbs.add_parser("rules")
    rules.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    rules.add_argument("--rules", type=int, default=96)
    rules.add_argument("--rows", type=Path, help="keep answers here, and go on from those that there are")
    arc = verbs.add_parser("arc")
    arc.add_argument("file", type=Path)
    arc.add_argument("--limit", type=int, default=12)
    chosen = parser.parse_args()
    asyncio.run({"rules": on_rules, "arc": on_arc}[chosen.verb](chosen))
    return 0


# ---------------------------------------------------------------- rules that nobody can know

ENDINGS = ("olp", "arv", "usp", "emk", "imv", "onz")
NAMES = [first + last for last, first in product(ENDINGS, (*"mztqfnvgwykslp", "br", "dr"))]
FOODS = (
    *(
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
    ),
    *("milk", "nuts", "olives", "pears", "radish", "salt", "turnips", "walnuts", "yams", "cheese", "paper"),
)


@dataclass(frozen=True)
class Family:
    """How a question is put, after two examples, and how many rules are in view."""

    view: int
    ask: str
    examples: tuple[tuple[str, str], ...]

    def policy(self) -> StepPolicy:
        """A line, in the form of the examples."""
        return StepPolicy(
            prompt="{question}",
            examples=self.examples,
            chat=False,
            delimiter=None,
            stop=("\n",),
            answer_kind="text",
            sampling=Sampling(temperature=0.3, max_tokens=6),
        )


_Q = "Question: What does a {} eat?\nAnswer:"
_S = "A {} eats"
FAMILIES = {
    "question": Family(8, _Q, ((_Q.format("horse"), " hay"), (_Q.format("cow"), " grass"))),
    "sentence": Family(1, _S, ((_S.format("horse"), " hay."), (_S.format("cow"), " grass."))),
}


@dataclass
class Asked:
    """The model's answers, by family, arm and name; those in a file are not asked for again."""

    engine: Any
    file: Path | None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            for line in self.file.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["key"]] = row

    async def answers(
        self, key: str, family: Family, name: str, rules: Mapping[str, str] | None, samples: int
    ) -> tuple[list[str], Usage]:
        """So many answers to one question, with these rules in view."""
        key = f"{key}/{samples}/{name}"
        if key not in self.rows:
            memory = InMemory()
            if rules is not None:
                told = [
                    Concept(f"what a {n} eats", "structure", description=f"A {n} eats {rules[n]}.")
                    for n in rules
                ]
                await memory.write(Library().write(told).library.entries())
            strategy = ArcMemo(
                policy=family.policy(),
                read="all" if rules else "none",
                write=False,
                max_passes=1,
                samples=samples,
            )
            driver = Driver(Services({"policy": self.engine}, memory=memory), seed=NAMES.index(name))
            task = Task(family.ask.format(name), metadata={"id": name})
            result = await driver.run(strategy.solve(task, seed=NAMES.index(name)))
            usage = driver.ledger.usage
            texts = [str(each.answer).strip(" .").casefold() for each in result.candidates]
            row = {"key": key, "answers": texts, "input": usage.input_tokens, "output": usage.output_tokens}
            self.rows[key] = row
            if self.file is not None:
                with self.file.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        row = self.rows[key]
        return row["answers"], Usage(input_tokens=row["input"], output_tokens=row["output"])


Judged = Callable[[Sequence[str], str], bool]


def voted(answers: Sequence[str], right: str) -> bool:
    """Whether the most frequent answer is right, the first of equals; of one answer, whether it is."""
    return bool(answers) and Counter(answers).most_common(1)[0][0] == right


def picked(answers: Sequence[str], right: str) -> bool:
    """Whether any is right: what somebody with the key to the answers could pick."""
    return right in answers


async def on_rules(chosen: argparse.Namespace) -> None:
    """Both families."""
    from abduce.serving.embedded import Embedded

    asked = Asked(Embedded(slots=8, context=2048, threads=1), chosen.rows)
    for name in chosen.family:
        await on_family(asked, name, NAMES[: chosen.rules])
    await asked.engine.close()


async def on_family(asked: Asked, family_name: str, names: Sequence[str]) -> None:
    """All arms on the same questions; which rules are in view together is drawn."""
    family, rng = FAMILIES[family_name], Random(5)
    names = rng.sample(names, len(names))
    food = {name: rng.choice(FOODS) for name in names}
    wrong = {name: rng.choice([other for other in FOODS if other != food[name]]) for name in names}

    async def one(
        title: str, key: str, rules: Mapping[str, str] | None, n: int, *judges: Judged
    ) -> list[Arm]:
        right: list[list[bool]] = [[] for _ in judges]
        usage = Usage()
        for i, name in enumerate(names):
            group = names[i - i % family.view : i - i % family.view + family.view]
            shown = None if rules is None else {other: rules[other] for other in group}
            answers, used = await asked.answers(f"{family_name}/{len(names)}/{key}", family, name, shown, n)
            usage += used
            for rows, judged in zip(right, judges, strict=True):
                rows.append(judged(answers, food[name]))
        titles = (f"{title}, {_HOW[judged]}" if n > 1 else title for judged in judges)
        return [Arm(each, tuple(rows), usage) for each, rows in zip(titles, right, strict=True)]

    print(f"\n{family_name}: {len(names)} rules, {family.view} in view at a time\n")
    print(HEAD)
    [base] = await one("no memory", "none", None, 1, voted)
    print(base.row(), flush=True)
    [found] = await one("right rules in view", "right", food, 1, voted)
    [misled] = await one("wrong rules in view", "wrong", wrong, 1, voted)
    print(found.row(base))
    print(misled.row(base), flush=True)
    spent = [base]
    n, each = 1, max(1.0, base.usage.output_tokens / len(names))
    while spent[0].spent < found.spent:
        n += max(1, int((found.spent - spent[0].spent) / len(names) / each) + 1)
        spent = await one(f"no memory, {n} samples", "none", None, n, voted, picked)
    for other in spent:
        print(other.row(base))
    print("right rules in view, over no memory with at least as many tokens")
    for other in spent:
        print(replace(found, name=f"  over {other.name.partition(', ')[2]}").row(other), flush=True)


_HOW = {voted: "vote", picked: "any right"}


# ---------------------------------------------------------------- ARC


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
    print(found.row(base), flush=True)
    print((await matched(engine, puzzles, labels, found, base, policy=short)).row(base))
    await engine.close()


if __name__ == "__main__":
    sys.exit(main())

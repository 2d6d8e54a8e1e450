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
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from arcmemo_arms import HEAD, Arm, arm, matched
from arguments import command, keeps_rows
from rows import Row, Rows
from solving import solved

from abduce.memory.concepts import Concept, Library, seeds
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.services import Services
from abduce.serving.flow import Sampling, Usage
from abduce.strategies.arcmemo import ArcMemo, read
from abduce.strategies.base import Task
from abduce.strategies.policy import StepPolicy, policy


def main() -> int:
    """Run what is asked for."""
    parser = command(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    rules = verbs.add_parser("rules")
    rules.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    rules.add_argument("--rules", type=int, default=96)
    keeps_rows(rules)
    arc = verbs.add_parser("arc")
    arc.add_argument("file", type=Path)
    arc.add_argument("--limit", type=int, default=12)
    options = parser.parse_args()
    asyncio.run({"rules": on_rules, "arc": on_arc}[options.verb](options))
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


async def answers(
    engine: Any, family: Family, name: str, rules: Mapping[str, str] | None, samples: int
) -> Row:
    """So many answers to one question, with these rules in view, and what they took."""
    memory = InMemory()
    if rules is not None:
        told = [
            Concept(f"what a {n} eats", "structure", description=f"A {n} eats {rules[n]}.") for n in rules
        ]
        await memory.write(Library().write(told).library.entries())
    strategy = ArcMemo(
        policy=family.policy(), read="all" if rules else "none", write=False, max_passes=1, samples=samples
    )
    task = Task(family.ask.format(name), metadata={"id": name})
    services = Services({"policy": engine}, memory=memory)
    result, usage = await solved(strategy, task, services, seed=NAMES.index(name))
    texts = [str(each.answer).strip(" .").casefold() for each in result.candidates]
    return {"answers": texts, "input": usage.input_tokens, "output": usage.output_tokens}


Judged = Callable[[Sequence[str], str], bool]


def voted(answers: Sequence[str], right: str) -> bool:
    """Whether the most frequent answer is right, the first of equals; of one answer, whether it is."""
    return bool(answers) and Counter(answers).most_common(1)[0][0] == right


def picked(answers: Sequence[str], right: str) -> bool:
    """Whether any is right: what somebody with the key to the answers could pick."""
    return right in answers


async def on_rules(options: argparse.Namespace) -> None:
    """Both families."""
    from abduce.serving.embedded import Embedded

    engine = Embedded(slots=8, context=2048, threads=1)
    for name in options.family:
        await on_family(engine, options.rows, name, NAMES[: options.rules])
    await engine.close()


async def on_family(engine: Any, known: Rows, family_name: str, names: Sequence[str]) -> None:
    """All arms on the same questions; which rules are in view together is drawn."""
    family, rng = FAMILIES[family_name], Random(5)
    names = rng.sample(names, len(names))
    food = {name: rng.choice(FOODS) for name in names}
    wrong = {name: rng.choice([other for other in FOODS if other != food[name]]) for name in names}

    async def one(
        title: str, key: str, rules: Mapping[str, str] | None, n: int, *judges: Judged
    ) -> list[Arm]:
        async def asked(name: str) -> Row:
            i = names.index(name)
            group = names[i - i % family.view : i - i % family.view + family.view]
            shown = None if rules is None else {other: rules[other] for other in group}
            return await answers(engine, family, name, shown, n)

        rows = await known.each(names, lambda name: [family_name, len(names), key, n, name], asked)
        usage = Usage(
            input_tokens=sum(row["input"] for row in rows), output_tokens=sum(row["output"] for row in rows)
        )
        titles = (f"{title}, {_HOW[judged]}" if n > 1 else title for judged in judges)
        right = (
            tuple(judged(row["answers"], food[name]) for name, row in zip(names, rows, strict=True))
            for judged in judges
        )
        return [Arm(each, rights, usage) for each, rights in zip(titles, right, strict=True)]

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


_HOW: dict[Judged, str] = {voted: "vote", picked: "any right"}


# ---------------------------------------------------------------- ARC


async def on_arc(options: argparse.Namespace) -> None:
    """The small model on ARC, with and without the seeds."""
    from abduce.serving.embedded import Embedded

    engine = Embedded(slots=2, context=8192, threads=2)
    every, all_labels = read(options.file)
    puzzles = dict(sorted(every.items(), key=lambda item: len(item[1].text))[: options.limit])
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

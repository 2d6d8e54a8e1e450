"""Does every packaged recipe load, come back from YAML as it was, compile and run, on the small model?

    python benchmarks/recipes.py                  3 problems each, and exit code 1 if a run fails
    python benchmarks/recipes.py --n 5 retry-products revised-math

Products for the recipes of that name, one question of its own for a recipe that is about something else,
word problems for the others. `hogwild-math` and `query-ttt` need torch, for the engine `transformers`. The
human of a recipe that asks knows the answer. A small model gets many wrong; what must hold is that every run
ends, with an answer or because its budget of 3,000 tokens is used up.
"""

import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from os import environ
from pathlib import Path
from time import perf_counter

from arguments import command

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.trace import Event, NodeStarted
from abduce.strategies.base import Check, Result, Task

PRODUCTS = [("7 x 6 =", "42"), ("12 x 5 =", "60"), ("9 x 9 =", "81"), ("11 x 6 =", "66"), ("8 x 3 =", "24")]
LONG = [("24 x 3", "72"), ("31 x 4", "124"), ("17 x 6", "102"), ("42 x 3", "126"), ("53 x 2", "106")]
WORDS = [
    ("A box holds 8 pens. How many pens are in 3 boxes?", "24"),
    ("Tom has 4 bags with 6 apples each. He eats 5 apples. How many apples are left?", "19"),
    ("Mia reads 12 pages a day. How many pages does she read in 5 days?", "60"),
    (
        "A ticket costs 7 dollars. Ann buys 2 tickets and pays with 20 dollars. How much does she get back?",
        "6",
    ),
    ("There are 15 birds on a tree. 6 fly away and 2 come back. How many birds are on the tree?", "11"),
]
OWN = {
    "agent-tools": ("How much is 37 * 43 - 91?", "1500"),
    "arcmemo-grids": (
        '{"train": [{"input": [[0, 1]], "output": [[1, 0]]}, {"input": [[2, 0]], "output": [[0, 2]]}], '
        '"test": [{"input": [[3, 0]]}]}',
        "[[[0, 3]]]",
    ),
    "planner-tools": ("Which is more, 31 * 12 or 29 * 13?", "377"),
    "rag-auto": ("Where was the writer of the novel The Salt Road born?", "Lindry"),
    "rag-iterative": ("Where was the writer of the novel The Salt Road born?", "Lindry"),
    "rag-one-call": ("Where was the writer of the novel The Salt Road born?", "Lindry"),
    "thinksum-choices": ("home town", "native city"),
    "thinksum-odd-one-out": ("Pick the odd word out: white, black, red, apple", "apple"),
}
CHOICES = {"home town": ("town center", "location", "native city", "home run")}


def main() -> int:
    """Run them, print the table."""
    parser = command(__doc__)
    parser.add_argument("recipes", nargs="*", default=recipe.packaged())
    parser.add_argument("--n", type=int, default=3, help="problems of each")
    options = parser.parse_args()
    print(f"{'recipe':26} {'ran':>5} {'right':>5} {'steps':>6} {'calls':>6} {'tokens':>7} {'s/problem':>9}")
    failed = 0
    with tempfile.TemporaryDirectory() as home:  # for memories
        environ["ABDUCE_HOME"] = str(Path(home))
        for name in options.recipes:
            asked = problems(name)[: options.n]
            failed += measured(name, asked) < len(asked)
    print(f"{len(options.recipes)} recipes, {failed} with runs that failed")
    return 1 if failed else 0


def problems(name: str) -> Sequence[tuple[str, str]]:
    """Questions and answers for a recipe, by its name."""
    if name in OWN:
        return [OWN[name]]
    return LONG if "long" in name else PRODUCTS if name.endswith("products") else WORDS


def measured(name: str, asked: Sequence[tuple[str, str]]) -> int:
    """Run one recipe and print its row; how many runs ended with an answer or within what they may spend."""
    found = recipe.read(name, ["budget.tokens=3000"])
    assert recipe.check(strict_yaml.parse(found.yaml())) == found
    pipeline = found.pipeline()
    pipeline.solve(task(*asked[0]), human=human(asked[0][1]))  # loads the model
    steps: list[Event] = []
    results: list[Result] = []
    right, began = 0, perf_counter()
    for question, answer in asked:
        result = pipeline.solve(task(question, answer), observers=[steps.append], human=human(answer))
        results.append(result)
        right += same_answer(result.answer, answer, CHOICES.get(question, ()))
    seconds = (perf_counter() - began) / len(asked)
    n_steps = sum(isinstance(event, NodeStarted) for event in steps) / len(asked)
    calls = sum(result.usage.calls for result in results)
    tokens = sum(r.usage.input_tokens - r.usage.cached_tokens + r.usage.output_tokens for r in results)
    ran = sum(result.answer is not None or "stopped" in result.diagnostics for result in results)
    print(
        f"{name:26} {ran:>5} {right:>5} {n_steps or 1:>6.1f} {calls:>6} {tokens:>7} {seconds:>9.2f}",
        flush=True,
    )
    return ran


def task(question: str, answer: str) -> Task:
    """With a check, for the recipes that have one pass."""
    kind = "numeric" if answer.isdecimal() else "equals"
    return Task(question, choices=CHOICES.get(question, ()), checks=(Check(kind, {"value": answer}),))


def human(answer: str) -> Callable[[str, Sequence[str]], Awaitable[str]]:
    """Somebody who knows the answer, and says whether it is in the question."""

    async def says(question: str, choices: Sequence[str]) -> str:
        return "yes" if answer in question.replace(":", " ").split() else "no"

    return says


if __name__ == "__main__":
    sys.exit(main())

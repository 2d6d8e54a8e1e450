"""ThinkSum on BIG-bench tasks beside direct scoring and direct prompting of the same model.

    python benchmarks/thinksum.py FOLDER [TASK ...] [--engine SPEC] [--limit 40] [--shuffle] [--efficiency]

FOLDER holds BIG-bench's task files (`odd_one_out.json` …). Each item is answered three times by one model:

    ThinkSum    by the program of that name
    direct      the choices scored after the plain question, as a ratio to their scores without it
    prompted    the model is shown question and lettered choices, and writes the answer (greedy)

Printed: accuracy with 95 % Wilson intervals; the paired difference to `direct` with a 95 % bootstrap interval
over items; calls and tokens per item. With `--shuffle` every item is asked again with its choices (and the
words in its question) in another order: the share of answers that change. Codenames are right if the set is;
which share of the words is right is told too, beside that of words taken at random.

`--engine sglang` starts a server of the small model on the CPU (`make test-sglang` makes its environment);
`{"engine": "sglang", "url": …}` uses one that runs. With `--efficiency` the tokens that ThinkSum's own calls
computed are held against the sum over its contexts and its continuations; nothing is kept between items.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called, Event
from abduce.serving import engine
from abduce.serving.base import Engine, Served
from abduce.serving.flow import Completion, Generate, LogLikelihood, LogProb, Prompt, Sampling, Usage
from abduce.strategies.base import Result, Task
from abduce.strategies.chain_of_thought import ChainOfThought
from abduce.strategies.policy import StepPolicy, policy
from abduce.strategies.thinksum import ThinkSum

PROGRAMS = {
    "odd_one_out": "odd_one_out",
    "phrase_relatedness": "phrase_relatedness",
    "logical_deduction__three_objects": "logical_deduction",
    "logical_deduction__five_objects.head200": "logical_deduction",
    "logical_deduction__seven_objects.head200": "logical_deduction",
    "codenames": "codenames",
    "conceptual_combinations__invented_words": "invented_words",
    "conceptual_combinations__homonyms": "invented_word",
    "conceptual_combinations__surprising_uncommon_combinations": "invented_word",
    "conceptual_combinations__contradictions": "concepts",
    "conceptual_combinations__emergent_properties": "concepts",
    "conceptual_combinations__fanciful_fictional_combinations": "concepts",
    "emoji_movie": "emoji_movie",
    "misconceptions_russian": "misconceptions_russian",
    "sports_understanding.head200": "sports_understanding",
    "known_unknowns": "known_unknowns",
}
PLAIN = policy("plain")
PROMPTED = StepPolicy(
    prompt="{question}\nAnswer with the letter of one choice.",
    delimiter=None,
    answer_kind="choice",
    cue="\nThe answer is (",
    sampling=Sampling(temperature=0, max_tokens=16),
)


WRITTEN = StepPolicy(
    prompt="{question}\nAnswer:",
    delimiter=None,
    answer_kind="text",
    sampling=Sampling(temperature=0, max_tokens=32, stop=("\n",)),
)


class Remembered(Engine):
    """An engine whose likelihoods are kept: a pair that an earlier item asked for is not computed again."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name = inner.name
        self.max_concurrency = inner.max_concurrency
        vars(self)["capabilities"] = inner.capabilities
        self._known: dict[LogProb, Served[LogLikelihood]] = {}

    async def ready(self) -> None:
        """Its own."""
        await self.inner.ready()

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """Its own."""
        return await self.inner.generate(request, seed=seed)

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """Its own, once; then it costs a call and no token."""
        if request in self._known:
            return Served(self._known[request].value, Usage(calls=1))
        self._known[request] = await self.inner.logprob(request)
        return self._known[request]

    def count_tokens(self, prompt: Prompt) -> int:
        """Its own."""
        return self.inner.count_tokens(prompt)

    async def close(self) -> None:
        """Close it."""
        await self.inner.close()


@dataclass(frozen=True)
class Item:
    """A question and its right answer."""

    task: Task
    gold: str


def main() -> int:
    """Print a row for each task."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("tasks", nargs="*", default=list(PROGRAMS))
    arguments.add_argument("--engine", default="", help="as in recipes; default: the small model")
    arguments.add_argument("--limit", type=int, default=40, help="items of a task")
    arguments.add_argument("--shuffle", action="store_true")
    arguments.add_argument("--efficiency", action="store_true")
    chosen = arguments.parse_args()
    with ExitStack() as stack:
        if chosen.engine == "sglang":
            from abduce.serving.hf_folder import small_model
            from tests.serving.sglang_env import launcher

            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
            server = launcher.server(small_model(), log, environment={"SGLANG_PLUGINS": "none"})
            stack.enter_context(launcher.running(server))
            chosen.engine = json.dumps({"engine": "sglang", "url": server.url})
        return asyncio.run(measure(chosen))


async def measure(chosen: argparse.Namespace) -> int:
    """All tasks on one engine."""
    spec: Any = {"engine": "embedded", "slots": 4, "context": 1024}
    if chosen.engine:
        spec = json.loads(chosen.engine) if chosen.engine.startswith("{") else chosen.engine
    inner = engine(spec)
    served = Remembered(inner)
    print(
        f"model: {chosen.engine or 'SmolLM2-135M-Instruct (embedded)'}, first {chosen.limit} items",
        flush=True,
    )
    try:
        for name in chosen.tasks:
            if chosen.efficiency:
                await efficiency(name, items(chosen.folder / f"{name}.json", chosen.limit), inner)
                continue
            await task_row(name, items(chosen.folder / f"{name}.json", chosen.limit), served, chosen.shuffle)
    finally:
        await served.close()
    return 0


async def task_row(name: str, asked: Sequence[Item], served: Engine, shuffle: bool) -> None:
    """One task: three ways, and again in another order."""
    began = perf_counter()
    thinking = ThinkSum(policy=PLAIN, program=PROGRAMS[name], compare=True)
    told: dict[str, list[bool]] = {"ThinkSum": [], "direct": [], "prompted": []}
    changed: dict[str, int] = dict.fromkeys(told, 0)
    found: dict[str, list[float]] = {"ThinkSum": [], "prompted": [], "at random": []}
    usage, pairs, abstained = Usage(), 0, 0
    for i, item in enumerate(asked):
        answers, facts, spent = await answered(thinking, item.task, served, i)
        usage, pairs, abstained = usage + spent, pairs + facts["pairs"], abstained + ("abstained" in facts)
        for way, answer in answers.items():
            told[way].append(right(answer, item))
            if not item.task.choices:
                gold = words(item.gold)
                found[way].append(len(words(answer) & gold) / len(gold))
        if not item.task.choices:
            offered = item.task.question.partition("list: ")[2].partition(".")[0].split(",")
            found["at random"].append(len(words(item.gold)) / len(offered))
        if shuffle:
            again, _, _ = await answered(thinking, shuffled(item.task, i), served, i)
            for way in answers:
                changed[way] += not same(answers[way], again[way], item.task)
    n = len(asked)
    print(f"{name}: {n} items, {perf_counter() - began:.0f} s; ThinkSum and direct together", end=" ")
    print(f"{usage.calls / n:.0f} calls, {usage.tokens / n:.0f} tokens an item; {abstained} abstained")
    for way, marks in told.items():
        if marks:
            low, high = wilson(sum(marks), len(marks))
            order = f"  changes under shuffling {changed[way] / n:.2f}" if shuffle else ""
            print(f"    {way:9} {sum(marks) / n:.3f}  [{low:.3f}, {high:.3f}]{order}")
    shares = [f"{way} {sum(each) / n:.3f}" for way, each in found.items() if each]
    if shares:
        print(f"    share of the words: {', '.join(shares)}")
    if told["direct"]:
        gain, low, high = difference(told["ThinkSum"], told["direct"])
        verdict = "met" if gain >= 0.10 and low > 0 else "NOT met"
        print(f"    over direct {gain:+.3f}  [{low:+.3f}, {high:+.3f}]  (bar: +0.10, above 0) {verdict}")
    sys.stdout.flush()


async def efficiency(name: str, asked: Sequence[Item], served: Engine) -> None:
    """What was computed, against each context and each continuation once."""
    computed = contexts = continuations = calls = distinct = 0
    for i, item in enumerate(asked):
        seen: list[Called] = []
        thinking = ThinkSum(policy=PLAIN, program=PROGRAMS[name])
        driver = Driver(Services({"policy": served}), seed=i, observers=[partial(_keep, seen)])
        await driver.run(thinking.solve(item.task, seed=i))
        sizes = {e.request.prompt: served.count_tokens(e.request.prompt) for e in seen}
        calls, distinct, contexts = calls + len(seen), distinct + len(sizes), contexts + sum(sizes.values())
        continuations += sum(e.usage.input_tokens - sizes[e.request.prompt] for e in seen)
        computed += sum(e.usage.tokens for e in seen)
    most = contexts + continuations
    print(f"{name}: {len(asked)} items, {calls} calls, {distinct} contexts of {contexts} tokens", end=", ")
    print(f"continuations {continuations}; computed {computed}, {computed / most:.3f} of their sum", end=" ")
    print(f"(bar: 1.05) {'met' if computed <= 1.05 * most else 'NOT met'}", flush=True)


def _keep(seen: list[Called], event: Event) -> None:
    if isinstance(event, Called) and isinstance(event.request, LogProb):
        seen.append(event)


async def answered(
    thinking: ThinkSum, task: Task, served: Engine, seed: int
) -> tuple[dict[str, Any], dict[str, Any], Usage]:
    """The three answers, what ThinkSum tells, and what it and direct scoring spent."""
    result, spent = await run(thinking, task, served, seed)
    facts = dict(result.diagnostics)
    answers = {"ThinkSum": result.answer}
    if task.choices:
        answers["direct"] = facts.get("direct", result.answer)
        drawn, _ = await run(ChainOfThought(policy=PROMPTED), task, served, seed)
        letter = str(drawn.answer or "")
        known = len(letter) == 1 and ord(letter) - ord("A") < len(task.choices)
        answers["prompted"] = task.choices[ord(letter) - ord("A")] if known else None
    else:
        drawn, _ = await run(ChainOfThought(policy=WRITTEN), task, served, seed)
        answers["prompted"] = drawn.text
    return answers, facts, spent


async def run(strategy: Any, task: Task, served: Engine, seed: int) -> tuple[Result, Usage]:
    """One strategy on one task."""
    driver = Driver(Services({"policy": served}), seed=seed)
    return await driver.run(strategy.solve(task, seed=seed)), driver.ledger.usage


def items(file: Path, limit: int) -> list[Item]:
    """The first items of a BIG-bench file."""
    found = []
    for row in json.loads(file.read_text(encoding="utf-8"))["examples"][:limit]:
        scores = row.get("target_scores", {})
        gold = next((c for c, score in scores.items() if score), row.get("target", ""))
        found.append(Item(Task(row["input"], choices=tuple(scores)), gold))
    return found


def right(answer: Any, item: Item) -> bool:
    """Whether an answer is the right choice, or the right set."""
    return same(answer, item.gold, item.task)


def same(one: Any, other: Any, task: Task) -> bool:
    """Whether two answers say the same."""
    if not task.choices:
        return words(one) == words(other)
    return same_answer(one, str(other), task.choices)


def words(answer: Any) -> set[str]:
    """The words of an answer that lists some."""
    return {word.strip(" .").casefold() for word in str(answer).split(",")}


def shuffled(task: Task, seed: int) -> Task:
    """The same with its choices in another order, in the question too where they stand there as a list."""
    choices = list(task.choices)
    random.Random(f"order {seed}").shuffle(choices)
    listed = ", ".join(task.choices)
    return replace(task, choices=tuple(choices), question=task.question.replace(listed, ", ".join(choices)))


def difference(one: Sequence[bool], other: Sequence[bool], draws: int = 10_000) -> tuple[float, float, float]:
    """Mean paired difference, and its 95 % percentile bootstrap interval over items."""
    gaps = [int(a) - int(b) for a, b in zip(one, other, strict=True)]
    rng = random.Random(0)
    means = sorted(sum(rng.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(draws))
    return sum(gaps) / len(gaps), means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


if __name__ == "__main__":
    sys.exit(main())

"""What does ThinkSum bring over direct scoring and direct prompting of the same model, on BIG-bench tasks?

    python benchmarks/thinksum.py FOLDER [TASK ...] [--engine SPEC] [--limit 40] [--rows FILE] [--shuffle]
    python benchmarks/thinksum.py FOLDER [TASK ...] --efficiency

FOLDER holds BIG-bench's task files (`odd_one_out.json` …). Each item is answered three times by one model:

    ThinkSum    by the program of that name
    direct      the choices scored after the plain question, as a ratio to their scores without it
    prompted    the model is shown question and lettered choices, and writes the answer (greedy)

What a task's file puts before every question (`task_prefix`) the last two are shown too; a program reads the
question alone, but that on the table of penguins, which stands there.

Printed: accuracy with 95 % Wilson intervals; the paired difference to `direct` with a 95 % bootstrap interval
over items, and one over questions where several items share one, as the items on a story of a deduction do;
fewer than six questions are too few to tell that the bar is met; calls and tokens per item. With `--shuffle`
every item is asked again with its choices (and the words in its question) in another order: the share of
answers that change. Codenames are right if the set is; which share of the words is right is told too, beside
that of words taken at random.

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

from arguments import checked, command, keeps_rows
from intervals import FEWEST_GROUPS, paired
from printing import met
from rows import Row, Rows
from solving import solved

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called, Event
from abduce.serving import engine
from abduce.serving.base import Engine, Served
from abduce.serving.flow import Completion, Generate, LogLikelihood, LogProb, Prompt, Sampling, Usage
from abduce.strategies.base import Task
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
    "penguins_in_a_table": "penguins_in_a_table",
}
READS_PREFIX = {"penguins_in_a_table"}
ASKED = {"misconceptions_russian": "Какое утверждение верно?"}  # its file asks nothing
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
    """A question as the program reads it, and with all that the file says; its right answer."""

    task: Task
    whole: Task
    gold: str


def main() -> int:
    """Print a row for each task."""
    parser = command(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", default=list(PROGRAMS))
    parser.add_argument("--engine", default="", help="as in recipes; default: the small model")
    parser.add_argument("--limit", type=int, default=40, help="items of a task")
    parser.add_argument("--shuffle", action="store_true")
    parser.add_argument("--efficiency", action="store_true")
    keeps_rows(parser)
    options = parser.parse_args()
    options.tasks = checked(parser, options.tasks, PROGRAMS)
    options.label = options.engine
    with ExitStack() as stack:
        if options.engine == "sglang":
            from abduce.serving.hf_folder import small_model
            from tests.serving.sglang_env import launcher

            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
            server = launcher.server(small_model(), log, environment={"SGLANG_PLUGINS": "none"})
            stack.enter_context(launcher.running(server))
            options.engine = json.dumps({"engine": "sglang", "url": server.url})
        return asyncio.run(measure(options))


async def measure(options: argparse.Namespace) -> int:
    """All tasks on one engine."""
    spec: Any = {"engine": "embedded", "slots": 4, "context": 1024}
    if options.engine:
        spec = json.loads(options.engine) if options.engine.startswith("{") else options.engine
    inner = engine(spec)
    served = Remembered(inner)
    print(
        f"model: {options.engine or 'SmolLM2-135M-Instruct (embedded)'}, first {options.limit} items",
        flush=True,
    )
    try:
        for name in options.tasks:
            if options.efficiency:
                await efficiency(name, items(options.folder / f"{name}.json", options.limit), inner)
                continue
            asked = items(options.folder / f"{name}.json", options.limit)
            report(name, asked, await answers(name, asked, served, options), options.shuffle)
    finally:
        await served.close()
    return 0


async def answers(name: str, asked: Sequence[Item], served: Engine, options: argparse.Namespace) -> list[Row]:
    """A row for each item: what the three ways say of it, and again in another order."""

    async def row_of(i: int) -> Row:
        item, began = asked[i], perf_counter()
        said, facts, spent = await answered(PROGRAMS[name], item, served, i)
        row: Row = {
            "said": said,
            "right": {way: right(answer, item) for way, answer in said.items()},
            "calls": spent.calls,
            "tokens": spent.tokens,
            "abstained": facts.get("abstained"),
        }
        if not item.task.choices:
            gold = words(item.gold)
            row["found"] = {way: len(words(answer) & gold) / len(gold) for way, answer in said.items()}
            offered = item.task.question.partition("list: ")[2].partition(".")[0].split(",")
            row["found"]["at random"] = len(gold) / len(offered)
        if options.shuffle:
            turned = replace(item, task=shuffled(item.task, i), whole=shuffled(item.whole, i))
            again, _, _ = await answered(PROGRAMS[name], turned, served, i)
            row["changed"] = {way: not same(said[way], again[way], item.task) for way in said}
        return {**row, "seconds": perf_counter() - began}

    rows: Rows = options.rows
    return await rows.each(range(len(asked)), lambda i: [name, options.label, i, options.shuffle], row_of)


def report(name: str, asked: Sequence[Item], rows: Sequence[Row], shuffle: bool) -> None:
    """The figures of a task."""
    n = len(rows)
    alike = [item.task.question or str(i) for i, item in enumerate(asked)]
    questions = len({*alike})
    calls, tokens = (sum(row[key] for row in rows) / n for key in ("calls", "tokens"))
    lost = sum(row["abstained"] is not None for row in rows)
    print(
        f"{name}: {n} items, {sum(row['seconds'] for row in rows):.0f} s; ThinkSum and direct together",
        end=" ",
    )
    print(f"{calls:.0f} calls, {tokens:.0f} tokens an item; {questions} questions; {lost} abstained")
    told = {way: [row["right"][way] for row in rows] for way in rows[0]["right"]}
    for way, marks in told.items():
        low, high = wilson(sum(marks), n)
        changed = sum(row["changed"][way] for row in rows) / n if shuffle else 0
        order = f"  changes under shuffling {changed:.2f}" if shuffle else ""
        print(f"    {way:9} {sum(marks) / n:.3f}  [{low:.3f}, {high:.3f}]{order}")
    if "found" in rows[0]:
        shares = {way: sum(row["found"][way] for row in rows) / n for way in rows[0]["found"]}
        print(f"    share of the words: {', '.join(f'{way} {share:.3f}' for way, share in shares.items())}")
    for way in ("direct", "prompted"):
        if way in told:
            by = [None, alike] if questions < n else [None]
            found = [paired(told["ThinkSum"], told[way], by=groups, draws=10_000) for groups in by]
            gain, lowest = found[0][0], min(low for _, low, _ in found)
            shown = ", by questions ".join(f"[{low:+.3f}, {high:+.3f}]" for _, low, high in found)
            passed = verdict(gain, lowest, questions)
            print(f"    over {way} {gain:+.3f}  {shown}  (bar: +0.10, above 0) {passed}")
    sys.stdout.flush()


def verdict(gain: float, low: float, questions: int) -> str:
    """Whether the bar is met. An interval over a few questions is above 0 wherever all of them gain."""
    held = gain >= 0.10 and low > 0
    return met(held) if not held or questions >= FEWEST_GROUPS else "too few questions to tell"


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
        continuations += sum(len(e.reply.logprobs) for e in seen)
        computed += sum(e.usage.tokens for e in seen)
    most = contexts + continuations
    print(f"{name}: {len(asked)} items, {calls} calls, {distinct} contexts of {contexts} tokens", end=", ")
    print(f"continuations {continuations}; computed {computed}, {computed / most:.3f} of their sum", end=" ")
    print(f"(bar: 1.05) {met(computed <= 1.05 * most)}", flush=True)


def _keep(seen: list[Called], event: Event) -> None:
    if isinstance(event, Called) and isinstance(event.reply, LogLikelihood):
        seen.append(event)


async def answered(
    program: str, item: Item, served: Engine, seed: int
) -> tuple[dict[str, Any], dict[str, Any], Usage]:
    """The answers, what ThinkSum tells, and what it and direct scoring spent."""
    run = partial(solved, services=Services({"policy": served}), seed=seed)
    result, spent = await run(ThinkSum(policy=PLAIN, program=program), item.task)
    said = {"ThinkSum": result.answer}
    if item.task.choices:
        plain, more = await run(ThinkSum(policy=PLAIN), item.whole)
        said["direct"], spent = plain.answer, spent + more
        drawn, _ = await run(ChainOfThought(policy=PROMPTED), item.whole)
        letter, choices = str(drawn.answer or ""), item.whole.choices
        known = len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(choices)
        said["prompted"] = choices[ord(letter) - ord("A")] if known else None
    else:
        drawn, _ = await run(ChainOfThought(policy=WRITTEN), item.whole)
        said["prompted"] = drawn.text
    return said, dict(result.diagnostics), spent


def items(file: Path, limit: int) -> list[Item]:
    """The first items of a BIG-bench file. Where the right choice is always the first, all are shuffled."""
    told = json.loads(file.read_text(encoding="utf-8"))
    prefix = told.get("task_prefix", "") or ASKED.get(file.stem, "")
    found = []
    scored = [row.get("target_scores", {}) for row in told["examples"]]
    sorted_so = all(next(iter(scores.values()), 0) for scores in scored)
    for i, row in enumerate(told["examples"][:limit]):
        gold = next((c for c, score in scored[i].items() if score), row.get("target", ""))
        task = Task(row["input"], choices=tuple(scored[i]))
        task = shuffled(task, i) if sorted_so else task
        question = f"{prefix.rstrip()}\n\n{row['input'].strip()}".strip()
        whole = replace(task, question=question) if prefix else task
        found.append(Item(whole if PROGRAMS[file.stem] in READS_PREFIX else task, whole, gold))
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


if __name__ == "__main__":
    sys.exit(main())

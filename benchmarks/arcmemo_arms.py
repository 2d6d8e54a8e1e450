"""Ways to use a memory of concepts on the same problems, measured side by side. Used by `arcmemo*.py`."""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from intervals import paired
from intervals import told as shown

from abduce.memory.concepts import Library
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.services import Services
from abduce.serving.flow import ToolResult, Usage
from abduce.serving.scripted import Scripted
from abduce.strategies.arcmemo import ArcMemo, Puzzle, learn, scoring
from abduce.strategies.arcmemo.attempts import Solved
from abduce.strategies.arcmemo.puzzle import Labels
from abduce.strategies.policy import policy
from abduce.tools.python import ENDED, Python

TALKS = policy({"preset": "plain", "sampling": {"max_tokens": 4000}})


@dataclass(frozen=True)
class Arm:
    """What came of one way to read, puzzle by puzzle in a fixed order."""

    name: str
    solved: tuple[bool, ...]
    usage: Usage
    attributed: int = 0

    @property
    def spent(self) -> int:
        """Tokens read and written, those of a prefix cache included."""
        return self.usage.input_tokens + self.usage.output_tokens

    def row(self, base: "Arm | None" = None) -> str:
        """Rate with its interval, tokens a puzzle, share of solves that use a selected concept, gain."""
        n, k = len(self.solved), sum(self.solved)
        low, high = wilson(k, n)
        tokens = self.spent / n
        share = f"{self.attributed / k:4.0%}" if k else "   -"
        gain = ""
        if base is not None:
            gain = shown(paired(self.solved, base.solved))
        return (
            f"{self.name:34} {k:3}/{n:<3} {k / n:.3f} [{low:.3f}, {high:.3f}] {tokens:8.0f} {share}  {gain}"
        )


HEAD = f"{'':34} {'solved':7} rate, 95 % interval      tokens attr.  gain over no memory, paired, 95 %"


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
    """A continual run, and what it consumed. A scripted solver's programs are made of operations known here,
    so they run in this process; a model's go to the sandbox."""
    scripted = not hasattr(say, "capabilities")
    tools: dict[str, Any] = {tool.name: tool for tool in Python(seconds=2).tools()}
    tools |= {"python": Here()} if scripted else {}
    engine = Scripted(say) if scripted else say
    driver = Driver(Services({"policy": engine}, tools=tools, memory=memory), seed=0, concurrency=8)
    tasks = [puzzle.task(name) for name, puzzle in puzzles.items()]
    learned = await driver.run(learn(strategy, tasks, seed=0, **options))
    return learned, driver.ledger.usage


class Here:
    """The tool `python` for programs that are trusted: no process, no limits."""

    async def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """What the program prints."""
        printed = StringIO()
        try:
            with redirect_stdout(printed):
                exec(arguments["code"], {})
        except Exception as error:
            return ToolResult(f"{printed.getvalue()}\n{ENDED} {error!r}", ok=False)
        return ToolResult(printed.getvalue())


async def matched(
    say: Any,
    puzzles: Mapping[str, Puzzle],
    labels: Mapping[str, Labels],
    than: Arm,
    base: Arm,
    **options: Any,
) -> Arm:
    """No memory, with so many samples that it takes as many tokens as another arm."""
    samples, found = 1, base
    while found.spent < than.spent:
        samples = max(samples + 1, int(samples * than.spent / found.spent))
        name = f"no memory, {samples} samples"
        found = await arm(name, say, puzzles, labels, read="none", samples=samples, **options)
    return found


def only(library: Library, names: Sequence[str]) -> Library:
    """A library with these concepts."""
    return replace(library, concepts={name: library.concepts[name] for name in names}, solutions={})

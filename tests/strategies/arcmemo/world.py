"""What the tests of ArcMemo share: puzzles, a memory, a run."""

from pathlib import Path
from typing import Any

from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.scripted import Scripted
from abduce.strategies.arcmemo import ArcMemo, Puzzle, read
from abduce.strategies.policy import policy
from abduce.tools.python import Python

PUZZLES, LABELS = read(Path(__file__).parents[2] / "data" / "arc_training.json")
POLICY = policy({"preset": "plain", "sampling": {"max_tokens": 4000}})
MIRROR = Puzzle(
    train=((((1, 0), (2, 3)), ((0, 1), (3, 2))), (((4, 5, 6),), ((6, 5, 4),))),
    test=(((7, 8),),),
)
RIGHT = "```python\ndef transform(g):\n    return [row[::-1] for row in g]\n```"
WRONG = "```python\ndef transform(g):\n    return g\n```"


def arcmemo(**options: Any) -> ArcMemo:
    return ArcMemo(**{"policy": POLICY, "min_used": 0, **options})


def services(say: Any, memory: Any = None, seconds: float = 2) -> Services:
    tools = {tool.name: tool for tool in Python(seconds=seconds, memory_mb=256).tools()}
    return Services({"policy": Scripted(say)}, tools=tools, memory=memory)


async def run(flow: Any, say: Any, memory: Any = None, **options: Any) -> Any:
    return await Driver(services(say, memory), seed=0, **options).run(flow)


async def solved(say: Any, memory: Any = None, task: Any = None, **options: Any) -> Any:
    return await run(arcmemo(**options).solve(task or MIRROR.task("mirror"), seed=0), say, memory)


async def filled(text: str = "") -> InMemory:
    """A memory of the seeds, or of some YAML."""
    from abduce.memory.concepts import load, seeds

    memory = InMemory()
    await memory.write((load(text).library if text else seeds()).entries())
    return memory


class Said:
    """A script that says its texts in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.asked: list[str] = []

    def __call__(self, request: Any, seed: int) -> str:
        self.asked.append("\n".join(message.content for message in request.prompt.messages))
        return self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]

"""What the tests of the REPL share: a sitting to talk to, and what it shows."""

import io

from rich.console import Console, RenderableType

from abduce.orchestrator.recipe import from_data
from abduce.orchestrator.repl.sitting import Sitting
from abduce.orchestrator.runs import Runs


def shown(*parts: RenderableType) -> str:
    """What is on the screen, without colours."""
    console = Console(file=io.StringIO(), width=110, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


class Talk:
    """A sitting and what it has told."""

    def __init__(self, store: Runs, recipe: dict[str, object]) -> None:
        self.news: list[RenderableType] = []
        self.sitting = Sitting(store, from_data(recipe), tell=self.news.append)

    def say(self, *lines: str) -> str:
        """Type lines, waiting after each until the run stands still; what the last one showed."""
        parts: list[RenderableType] = []
        for line in lines:
            parts = self.sitting.do(line)
            assert self.sitting.wait(20), line
        return shown(*parts)

    def told(self) -> str:
        """What the runs have told since the last time."""
        news, self.news[:] = list(self.news), []
        return shown(*news)

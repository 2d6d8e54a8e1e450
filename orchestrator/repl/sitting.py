"""A sitting: commands in, what they show out. It starts runs, holds them, goes back in them and forks them.

    sitting = Sitting(store, recipe, tell=print)
    sitting.do("24 x 3")        the run goes on in the background; `tell` hears when it comes to stand still
    sitting.do("pause"); sitting.wait(); sitting.do("back 3"); sitting.do("fork k=4")

It knows no terminal. `back` is a fork of the run with fewer replies: the search runs again from the start,
is sent those, and stands still where they end. So nothing is ever lost.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ...serving.errors import UsageError
from ...strategies.base import Check, Result, Task
from ..again import again, recipe_of, task_of
from ..runs import Run, Runs
from ..services import meant
from . import pictures, settings
from .branch import Branch, letters
from .breakpoints import Breakpoint, breakpoint_on
from .desk import Desk
from .evidence import origin
from .language import COMMANDS, LOOKING, count, parse, words
from .player import Player
from .replay import Replay
from .saved import Entry, saved

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..solve import Pipeline
    from ..workflow import Workflow

_PATIENCE_S = 30.0  # with calls in flight, where a command needs the run to stand still


class Sitting(Desk):
    """`tell` is called from the run's thread; `prepare` before a pipeline is first used, to fetch models."""

    def __init__(
        self,
        store: Runs,
        recipe: "Recipe",
        *,
        checks: Sequence[Check] = (),
        tell: Callable[[RenderableType], None] = lambda _: None,
        prepare: Callable[["Pipeline | Workflow"], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.store = store
        self.recipe = recipe
        self.checks = tuple(checks)
        self.log: list[Entry] = []
        self.replay: Replay | None = None
        self.breakpoints: list[Breakpoint] = []
        self._tell = tell
        self._prepare = prepare
        self._letters = letters()
        self._players: dict[str, Player] = {}
        self._changes: dict[str, list[str]] = {}  # what was set since each run began: a fork of it begins so

    @property
    def front(self) -> Desk:
        """The desk to look at: a replay's while there is one."""
        return self.replay or self

    # ------------------------------------------------------------ commands

    def do(self, line: str) -> list[RenderableType]:
        """Carry out a line and return what it shows. Raises UsageError for a mistake in it."""
        if not line.strip():
            return []
        if self.replay is not None and line.strip() != "close":
            return self.replay.do(line)
        name, rest = ("answer", line.strip()) if self._is_answer(line) else parse(line)
        before, where = len(self.log), self.where()
        try:
            shown = self._done(name, rest)
        except UsageError as error:  # of a recipe's reader, which names options of the command line
            raise UsageError(re.sub(r"^--(set )?", "", str(error), flags=re.MULTILINE)) from None
        if name not in ("save", "replay", "close", "quit"):  # before what has come of it meanwhile
            current = self.current.name if self.current is not None else ""
            self.log.insert(before, Entry("typed", line.strip(), where, current))
        return [] if shown is None else [shown]

    def _done(self, name: str, rest: str) -> RenderableType | None:
        if name in LOOKING:
            return self.look(name, rest)
        if name in settings.COMMANDS:
            return settings.COMMANDS[name](self, rest)
        doing: Mapping[str, Callable[[str], RenderableType | None]] = {
            "solve": self._solve,
            "check": self._check,
            "step": self._step,
            "run": self._run,
            "pause": self._pause,
            "back": self._back,
            "fork": self._fork,
            "goto": self._goto,
            "break": self._break,
            "answer": self._answer,
            "save": self._save,
            "replay": self._replay,
            "close": self._close,
            "quit": lambda _: None,
        }
        return doing[name](rest)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until the run looked at stands still; False if it does not within the time."""
        player = self._players.get(self.current.name) if self.current is not None else None
        return player is None or player.wait(timeout_s)

    def interrupt(self) -> RenderableType | None:
        """What Ctrl-C does: the run pauses; where it already pauses, its calls in flight are cut off."""
        if self.replay is not None or self.current is None or self.current.stands:
            return Text("Nothing is going on. quit, or Ctrl-D, leaves.", style="dim")
        if self.current.state == "pausing":
            self._players[self.current.name].stop()
            return None
        self.do("pause")
        return None

    def close(self) -> None:
        """Stop what is going on; the runs stay in the store."""
        for player in self._players.values():
            player.stop()

    def unfinished(self) -> list[Branch]:
        """Runs that could be gone on with."""
        return [each for each in self.branches.values() if each.state not in ("ended", "failed")]

    # ------------------------------------------------------------ running

    def _solve(self, text: str) -> None:
        if not text:
            raise UsageError("What is to be solved? Write e.g. solve 24 x 3.")
        reward = self.recipe.reward
        if reward is not None and reward.name == "checks" and not self.checks:
            raise UsageError("The reward 'checks' has nothing to check. Write first e.g. check numeric=72.")
        self._stand_still()
        pipeline = self.recipe.pipeline()
        task, seed = Task(text, checks=self.checks), self.recipe.seed
        run = self.store.create({**pipeline.settings, "task": task, "seed": seed})
        self._begin(run, "", inf, pipeline, task)

    def _begin(
        self,
        run: Run,
        parent: str,
        steps: float,
        pipeline: "Pipeline | Workflow | None" = None,
        task: Task | None = None,
    ) -> None:
        """Put a new run on the desk and play it."""
        branch = Branch(next(self._letters), run.id, run.record, parent)
        self.branches[branch.name] = self.current = branch
        self._changes[branch.name] = []
        self._play(branch, run, steps, pipeline, task)

    def _play(
        self,
        branch: Branch,
        run: Run,
        steps: float,
        pipeline: "Pipeline | Workflow | None" = None,
        task: Task | None = None,
    ) -> None:
        pipeline = pipeline or again(branch.record)
        asked, seed = task_of(branch.record)
        self._prepare(pipeline)

        async def work(gate: Any, observer: Any, human: Any) -> Result:
            with_human = replace(pipeline, services=replace(pipeline.services, human=human))
            return await with_human.asolve(task or asked, seed=seed, observers=[observer], run=run, gate=gate)

        player = Player(branch, work, known=run.journal(), breakpoints=self.breakpoints, told=self._stood)
        self._players[branch.name] = player
        player.play(steps)

    def _stood(self, branch: Branch) -> None:
        current = self.current.name if self.current is not None else ""
        self.log.append(Entry("stood", branch.name, self.where(), current, branch.state, branch.why))
        self._tell(pictures.ending(branch))

    def _step(self, text: str) -> None:
        self._go_on(count("step", text))

    def _run(self, text: str) -> None:
        words("run", text, 0, 0)
        self._go_on(inf)

    def _go_on(self, steps: float) -> None:
        branch = self.here()
        if branch.state == "ended":
            raise UsageError(f"Run {branch.name} has ended. Go back in it, fork it, or type another problem.")
        if branch.state == "asking":
            raise UsageError(f"Run {branch.name} waits for an answer. Write e.g. answer yes.")
        if branch.state in ("failed", "stopped"):
            branch.begin_again()
            self._play(branch, self.store.open(branch.run), steps)
        else:
            self._players[branch.name].play(steps)

    def _pause(self, text: str) -> None:
        words("pause", text, 0, 0)
        branch = self.here()
        if branch.stands:
            raise UsageError(f"Run {branch.name} is not going on: it {pictures.standing(branch)}.")
        self._players[branch.name].pause()

    def _stand_still(self) -> Branch | None:
        """The run looked at, once it stands still."""
        branch = self.current
        if branch is not None and not branch.stands:
            self._players[branch.name].pause()
            if not self.wait(_PATIENCE_S):
                raise UsageError(
                    f"Run {branch.name} still has calls in flight. Try again, or cut them off with Ctrl-C."
                )
        return branch

    def _answer(self, text: str) -> None:
        branch = self.here()
        if branch.state != "asking":
            raise UsageError("Nothing was asked.")
        if not text:
            raise UsageError("answer takes a text. Write e.g. answer yes.")
        player = self._players[branch.name]
        if player.choices and not (text := meant(text, player.choices)):
            raise UsageError(f"Answer one of: {', '.join(player.choices)}.")
        player.answer(text)

    def _is_answer(self, line: str) -> bool:
        asking = self.current is not None and self.current.state == "asking"
        return asking and line.split()[0] not in COMMANDS

    # ------------------------------------------------------------ going back, and elsewhere

    def _back(self, text: str) -> None:
        steps = count("back", text)
        self.here()
        branch = self._stand_still()
        assert branch is not None
        if steps > branch.steps:
            raise UsageError(f"Run {branch.name} has {branch.steps} steps: back takes 1 to {branch.steps}.")
        self._back_to(branch, branch.steps - steps)

    def _fork(self, text: str) -> None:
        self.here()
        branch = self._stand_still()
        assert branch is not None
        changes = self._with(self._changes[branch.name], pairs("fork", text))
        self._fork_at(branch, branch.steps, changes)

    def _goto(self, text: str) -> RenderableType | None:
        [where] = words("goto", text, 1, 1)
        if where.upper() in self.branches:
            self._stand_still()
            self.current = self.branch(where)
            return pictures.ending(self.current)
        self._stand_still()
        branch, node = self.node(where)
        found = origin(branch.rows(), node)
        assert found is not None  # the view has it from the same events
        steps = min(branch.steps_at(found.event) + 1, branch.steps)
        if steps < branch.steps or branch.state != "paused":
            self._back_to(branch, steps)
            return None
        if branch is self.current:
            raise UsageError(f"Run {branch.name} stands there already.")
        self.current = branch
        return pictures.ending(branch)

    def _back_to(self, branch: Branch, steps: int) -> None:
        self._fork_at(branch, steps, ())
        assert self.current is not None
        self._changes[self.current.name] = list(self._changes[branch.name])

    def _fork_at(self, branch: Branch, steps: int, changes: Sequence[str]) -> None:
        """A new run that begins with the replies of the first steps of another, and stands still there."""
        until = branch.arrived_s(steps)
        run = self.store.open(branch.run)
        keep = sum(reply.arrived <= until for reply in run.replies())
        forked = self.store.fork(run, keep=keep, changes=list(changes))
        self._begin(forked, branch.name, 0)

    def _break(self, text: str) -> RenderableType:
        verb, _, rest = text.partition(" ")
        if verb == "on" and rest.strip():
            self.breakpoints.append(breakpoint_on(rest, tuple(self.recipe.nodes)))
        elif verb == "off":
            which = count("break", rest.strip(), 0)
            if which > len(self.breakpoints):
                raise UsageError(f"There is no breakpoint {which}. break alone lists them.")
            del self.breakpoints[slice(which - 1, which) if which else slice(None)]
        elif verb:
            raise UsageError(f"break {text}: write break on {text}, e.g. {COMMANDS['break'].example}.")
        if not self.breakpoints:
            return Text("no breakpoints", style="dim")
        return Group(*(Text(f"{i} stops on {each.text}") for i, each in enumerate(self.breakpoints, 1)))

    # ------------------------------------------------------------ what is asked next

    def _check(self, text: str) -> RenderableType:
        if text == "off":
            self.checks = ()
        elif text:
            self.checks = settings.checks(text)
        return Text(" ".join(settings.told(check) for check in self.checks) or "no checks", style="dim")

    def change(self, changes: Sequence[str]) -> None:
        """Change the recipe for what is asked next. Raises UsageError if it would be none."""
        self.recipe = recipe_of({"run": "of this sitting", "recipe": self.recipe.data()}, changes)
        for name, before in self._changes.items():
            self._changes[name] = self._with(before, changes)

    def _with(self, before: Sequence[str], changes: Sequence[str]) -> list[str]:
        """Changes after others; with another strategy, the parameters of the old one are gone."""
        if any(change.partition("=")[0] == "strategy" for change in changes):
            kept = type(self.recipe).model_fields
            before = [each for each in before if each.partition("=")[0].split(".")[0] in kept]
        return [*before, *changes]

    # ------------------------------------------------------------ files

    def _save(self, text: str) -> RenderableType:
        [name] = words("save", text, 1, 1)
        file = File(name).expanduser()
        self._stand_still()
        kept = [(each, self._replies(each)) for each in self.branches.values()]
        saved(kept, self.log).write(file)
        return Text(f"{len(kept)} runs saved to {file}; look again with: replay {file}", style="dim")

    def _replies(self, branch: Branch) -> list[tuple[Any, bool]]:
        """The rows of a run's journal, and whether they are inherited."""
        inherited, own = self.store.store.replies(branch.run)
        return [*((row, True) for row in inherited), *((row, False) for row in own)]

    def _replay(self, text: str) -> RenderableType:
        [name] = words("replay", text, 1, 1)
        self._stand_still()
        self.replay = Replay(File(name).expanduser(), tell=self._tell)
        return self.replay.welcome()

    def _close(self, text: str) -> RenderableType:
        words("close", text, 0, 0)
        if self.replay is None:
            raise UsageError("There is no replay to close. quit leaves the sitting.")
        told, self.replay = self.replay.file, None
        return Text(f"The replay of {told} is closed.", style="dim")


def pairs(name: str, text: str) -> list[str]:
    """`key=value` texts, quoted where they hold blanks. Raises UsageError for what is none."""
    try:
        found = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{name} {text}: {error}.") from None
    for each in found:
        key, equals, _ = each.partition("=")
        if not equals or not key:
            raise UsageError(f"{name} {each}: write key=value, e.g. {COMMANDS[name].example}.")
    return found

"""`solve` and `asolve`: one question, one strategy, one result.

build(strategy="particle_filter", model="embedded", reward="self_eval") ─► Pipeline
Pipeline.asolve(task)  ─► Driver.run(strategy.solve(task)) ─► Result, with journal and trace if stored
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..serving import ENGINES, engine
from ..serving.base import Engine
from ..serving.errors import MissingCapability, SearchEnded, UnknownName, UsageError
from ..strategies import strategy as strategy_class
from ..strategies.base import Policy, Result, Reward, Strategy, Task, requirements
from .background import wait_for
from .driver import Driver
from .ledger import Budget
from .runs import Run, Runs
from .services import Services
from .trace import JsonLines, Observer, RunEnded, RunStarted


@dataclass(frozen=True)
class Pipeline:
    """A strategy with everything it needs, ready to solve tasks."""

    strategy: Strategy
    services: Services
    budget: Budget = field(default_factory=Budget)
    concurrency: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # what it was built from, as JSON

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(
                f"concurrency must be at least 1, got {self.concurrency}. Leave it out for no limit."
            )
        for role, needed in requirements(self.strategy).items():
            served = self.services.engine(role)
            if missing := needed - served.capabilities:
                able = ", ".join(name for name, gives in ENGINES.items() if needed <= gives.capabilities)
                raise MissingCapability(
                    f"The engine {served.name!r} (role {role!r}) cannot {' or '.join(sorted(missing))}, "
                    f"which {type(self.strategy).__name__} needs here. Engines that can: {able or 'none'}."
                )

    async def asolve(
        self,
        task: Task | str,
        *,
        seed: int = 0,
        observers: Iterable[Observer] = (),
        store: Runs | None = None,
        run: Run | None = None,
    ) -> Result:
        """Solve a task. With a `store` the run is journaled and traced there; with `run` that one goes on."""
        task = Task(task) if isinstance(task, str) else task
        if run is None and store is not None:
            run = store.create({**self.settings, "task": task, "seed": seed})
        with ExitStack() as files:
            watching = list(observers)
            journal = None
            if run is not None:
                files.enter_context(run.held())
                journal = run.journal()
                files.callback(journal.close)
                trace = JsonLines(run.trace)
                files.callback(trace.close)
                watching.append(trace)
            driver = Driver(
                self.services,
                seed=seed,
                budget=self.budget,
                journal=journal,
                observers=watching,
                concurrency=self.concurrency,
            )
            started = RunStarted(run.id if run else "", task.question, seed, self.settings)
            for observer in watching:
                observer(started)
            result = await self._search(driver, task, seed)
            ended = RunEnded(
                result.answer, result.complete, result.usage, driver.elapsed_s, result.diagnostics
            )
            for observer in watching:
                observer(ended)
        if run is not None:
            run.finish(result)
        return result

    def solve(self, task: Task | str, **options: Any) -> Result:
        """`asolve`, synchronously; also inside a running event loop."""
        return wait_for(self.asolve(task, **options))

    async def _search(self, driver: Driver, task: Task, seed: int) -> Result:
        try:
            result = await driver.run(self.strategy.solve(task, seed=seed))
        except SearchEnded as end:  # a strategy that has nothing to show for it
            result = Result(None, "", complete=False, diagnostics={"stopped": str(end)})
        return replace(result, usage=driver.ledger.usage)


def build(
    *,
    strategy: str | Strategy = "best_of_n",
    model: str | Engine | Mapping[str, Any] = "embedded",
    models: Mapping[str, str | Engine | Mapping[str, Any]] | None = None,
    policy: str | Policy | Mapping[str, Any] = "cot",
    reward: str | Reward | Mapping[str, Any] | None = None,
    tools: Iterable[str] = (),
    budget: str | Budget | Mapping[str, Any] | None = None,
    concurrency: int | None = None,
    **params: Any,
) -> Pipeline:
    """A pipeline from names or objects; `params` are the strategy's own parameters.

    `models` gives further roles their engines ("reward", "judge"). Raises UsageError for anything that
    does not exist or does not fit, MissingCapability if an engine cannot do what is asked of it.
    """
    from ..strategies import rewards
    from ..strategies.policy import policy as named_policy
    from ..tools import toolbox

    words: dict[str, Any] = {"strategy": strategy, "model": model, "models": models, "policy": policy}
    words |= {"reward": reward, "tools": list(tools), "budget": budget, "concurrency": concurrency}
    words["params"] = params
    if isinstance(strategy, str):
        drawn_by = policy if isinstance(policy, Policy) else named_policy(policy)
        kind = strategy_class(strategy)
        known = {f.name for f in fields(kind)}
        parts: dict[str, Any] = {"policy": drawn_by}
        if "reward" in known:
            named = reward if reward is not None else "self_eval"
            parts["reward"] = named if isinstance(named, Reward) else rewards.reward(named, policy=drawn_by)
        elif reward is not None:
            raise UsageError(f"The strategy {strategy!r} uses no reward. Leave reward out.")
        for key in params:
            if key not in known - {"policy", "reward"}:
                raise UnknownName(f"parameter of {strategy}", key, known - {"policy", "reward"})
        made: Strategy = kind(**parts, **params)
    elif params:
        raise UsageError(f"{', '.join(params)}: parameters go into the strategy object, since one was given.")
    elif not hasattr(strategy, "solve"):
        raise UsageError(
            f"A strategy is a name or an object with solve(task, seed=…), got {strategy!r:.200}."
        )
    else:
        made = strategy
    roles = {"policy": model, **(models or {})}
    services = Services({role: _engine(spec) for role, spec in roles.items()}, tools=toolbox(tools))
    return Pipeline(made, services, _budget(budget), concurrency, _settings(words))


async def asolve(
    question: str | Task,
    *,
    seed: int = 0,
    observers: Iterable[Observer] = (),
    store: Runs | None = None,
    **options: Any,
) -> Result:
    """Solve a question; `options` are those of `build`. Returns the best result found, always.

    A run that was ended early has `complete=False` and says in `diagnostics["stopped"]` by what.
    """
    return await build(**options).asolve(question, seed=seed, observers=observers, store=store)


def solve(question: str | Task, **options: Any) -> Result:
    """`asolve`, synchronously; also inside a running event loop, such as a notebook's."""
    return wait_for(asolve(question, **options))


_engines: dict[str, Engine] = {}


def _engine(spec: str | Engine | Mapping[str, Any]) -> Engine:
    """The engine of a spec; one for each spec in a process, since loading a model takes time."""
    if isinstance(spec, Engine):
        return spec
    key = repr(spec)
    if key not in _engines:
        _engines[key] = engine(spec)
    return _engines[key]


def _budget(words: str | Budget | Mapping[str, Any] | None) -> Budget:
    if words is None or isinstance(words, Budget):
        return words or Budget()
    if isinstance(words, str):
        return Budget.parse(words)
    known = [f.name for f in fields(Budget)]
    for key in words:
        if key not in known:
            raise UnknownName("budget", key, known)
    return Budget(**words)


def _settings(words: Mapping[str, Any]) -> dict[str, Any]:
    """What can be written down of a pipeline's parts; objects appear by their type."""
    return {key: _named(value) for key, value in words.items() if value not in (None, [], {})}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(part) for key, part in value.items()}
    plain = value is None or isinstance(value, (str, int, float, list, tuple, Budget))
    return value if plain else f"<{type(value).__name__}>"

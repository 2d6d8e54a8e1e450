"""What a recipe says, as an object: `Recipe`. It holds plain data only, so it can be written down again.

Recipe(name="quick", strategy="best_of_n")                                         one step
Recipe(name="checked", nodes={"solve": Solve(solver=…), "verify": Verify(by=…)}, edges=…)   a graph
recipe.graph()      what the outer graph does       recipe.data(), recipe.yaml()    the normal form
recipe.pipeline()   the recipe ready to run
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...serving.errors import UnknownName, UsageError
from .. import strict_yaml
from ..steps import (
    Branch,
    Call,
    Edge,
    Graph,
    Named,
    Recall,
    Revise,
    Solve,
    Solver,
    Step,
    Text,
    Verify,
    kind_of,
    plain,
)
from . import laws, secrets

if TYPE_CHECKING:
    from ..solve import Pipeline
    from ..workflow import Workflow

WORDS: Mapping[str, str] = {"model": "engine", "reward": "kind", "policy": "preset", "strategy": "name"}
"""The key under which a part's mapping says its name."""


class Memory(BaseModel):
    """Where concepts are kept, how many a `recall` without a number of its own looks up, and what turns them
    into vectors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: Text
    recall: int = Field(4, ge=1, le=100)
    embedder: Text | dict[str, Any] = "auto"


class Settings(BaseModel):
    """The fields of a recipe that are plain values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)
    description: str = ""
    tools: tuple[str | dict[str, Any], ...] = ()
    memory: Memory | None = None
    budget: dict[str, Any] = {}
    seed: int = Field(0, ge=0, lt=1 << 63, strict=True)
    concurrency: int | None = Field(None, ge=1, strict=True)

    @field_validator("budget", mode="before")
    @classmethod
    def _amounts(cls, value: Any) -> Any:
        from ..ledger import Budget

        if not isinstance(value, str):
            return value
        try:
            return Budget.parse(value).limits()
        except UsageError as error:
            raise ValueError(str(error)) from None

    @field_validator("tools", mode="before")
    @classmethod
    def _names_or_settings(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        for tool in value:
            if not isinstance(tool.get("name") if isinstance(tool, dict) else tool, str):
                raise ValueError("a tool is a name, or a mapping such as {name: search, folder: docs}")
        return tuple(map(plain, value))

    @field_validator("memory", mode="before")
    @classmethod
    def _store(cls, value: Any) -> Any:
        return {"store": value} if isinstance(value, str) else value


class Recipe(Settings):
    """A run written down: parts by name, and the graph of steps that they take.

    `strategy=` is short for a graph whose only step solves with it.
    """

    model: Named = Named(name="embedded")
    models: Mapping[str, Named] = {}
    reward: Named | None = None
    policy: Named | None = None
    solvers: Mapping[str, Solver] = {}
    nodes: Mapping[str, Step]
    edges: tuple[Edge, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _one_step(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "strategy" not in data:
            return data
        if "nodes" in data:
            raise ValueError("give strategy or nodes, not both")
        rest = {key: value for key, value in data.items() if key != "strategy"}
        solver = Solver(strategy=Named.model_validate(data["strategy"]))
        return {**rest, "nodes": {"solve": Solve(solver=solver)}}

    @property
    def strategy(self) -> Named:
        """The strategy of the first step that solves."""
        for step in self.nodes.values():
            if isinstance(step, Solve | Revise | Branch):
                return self.solver(step.solver).strategy
        return Named(name="none")

    def graph(self) -> Graph:
        """The steps and the edges between them: the normal form of every recipe."""
        return Graph(nodes=self.nodes, edges=self.edges)

    def solver(self, solver: str | Solver) -> Solver:
        """One of the recipe's solvers by name, or the one written in a step."""
        if isinstance(solver, Solver):
            return solver
        if solver not in self.solvers:
            raise UnknownName("solver", solver, self.solvers)
        return self.solvers[solver]

    def solvers_used(self) -> Iterator[Solver]:
        """Whoever solves or scores in some step, in the order of the steps; names of none are left out."""
        for step in self.nodes.values():
            if isinstance(step, Solve | Revise | Branch):
                if isinstance(step.solver, Solver) or step.solver in self.solvers:
                    yield self.solver(step.solver)
            elif isinstance(step, Verify) and step.by == "reward":
                yield Solver(strategy=Named(name="best_of_n"), reward=step.reward)

    def scoring(self) -> Iterator[Solver]:
        """Those of the solvers used that take a reward."""
        for solver in self.solvers_used():
            with suppress(UsageError):  # no such strategy, which is told elsewhere
                if scored(solver.strategy.name):
                    yield solver

    def options(self, solver: str | Solver | None = None) -> dict[str, Any]:
        """Arguments of `solve.build` for one solver, with what it takes over from the recipe, secrets in
        place; without one, for the recipe's only step."""
        if solver is None:
            [solver] = self.solvers_used()
        own = self.solver(solver)
        models = {**self.models, **own.models}
        if models and len(self.nodes) > 1:  # other solvers' roles are left out; alone, one is a mistake
            asked = {*self.roles(own), *own.models}
            models = {role: model for role, model in models.items() if role in asked}
        rest: dict[str, Any] = {"tools": self.tools, "budget": self.budget, "concurrency": self.concurrency}
        rest["models"] = {role: spec(model, "model") for role, model in models.items()}
        found = self._search(own) | {key: value for key, value in rest.items() if value}
        resolved: dict[str, Any] = secrets.resolve(found)
        return resolved

    def remembers(self) -> bool:
        """Whether some strategy reads and writes the memory itself."""
        from ...strategies import strategy as strategy_class

        for solver in self.solvers_used():
            with suppress(UsageError):  # no such strategy, which is told elsewhere
                if getattr(strategy_class(solver.strategy.name), "remembers", False):
                    return True
        return False

    def roles(self, solver: Solver) -> set[str]:
        """The roles of engines that a solver asks."""
        from ..solve import roles

        return roles(**self._search(solver), models={**self.models, **solver.models})

    def _search(self, own: Solver) -> dict[str, Any]:
        """The arguments of `solve.build` that say how to search."""
        found: dict[str, Any] = {"strategy": own.strategy.name, **own.strategy.params}
        found["model"] = spec(own.model or self.model, "model")
        if (policy := own.policy or self.policy) is not None:
            found["policy"] = spec(policy, "policy")
        takes = len(self.nodes) == 1 or scored(own.strategy.name)  # alone, a reward too many is a mistake
        if (reward := own.reward or (self.reward if takes else None)) is not None:
            found["reward"] = spec(reward, "reward")
        return found

    def pipeline(self, *, functions: Mapping[str, Callable[..., Any]] | None = None) -> "Pipeline | Workflow":
        """The recipe ready to run: a `Pipeline` if all it does is solve, else a `Workflow`. `functions` are
        those that `call` steps name."""
        if wrong := list(laws.faults(self)):
            raise UsageError("\n".join(f"{told(fault.path)}: {fault.message}" for fault in wrong))
        if len(self.nodes) == 1 and isinstance(next(iter(self.nodes.values())), Solve) and not self.edges:
            from ...memory.registry import open_store
            from ..solve import build

            made = build(**self.options())
            if self.memory is not None:
                kept = open_store(self.memory.store, embedder=self.memory.embedder)
                made = replace(made, services=replace(made.services, memory=kept))
            return replace(made, seed=self.seed, settings={"recipe": self.data()})
        from ..workflow import compile_workflow

        return compile_workflow(self, functions=functions or {})

    def data(self) -> dict[str, Any]:
        """The recipe as plain data, defaults left out: what its YAML holds. `recipe.from_data` reads it."""
        found: dict[str, Any] = self.model_dump(mode="json", include={"name", "description"})
        found = {key: value for key, value in found.items() if value}
        if self.model != Named(name="embedded"):
            found["model"] = spec(self.model, "model")
        if self.models:
            found["models"] = {role: spec(model, "model") for role, model in self.models.items()}
        found |= {key: spec(part, key) for key in ("reward", "policy") if (part := getattr(self, key))}
        rest = self.model_dump(mode="json", exclude_defaults=True, include={*Settings.model_fields})
        found |= {key: value for key, value in rest.items() if key not in found}
        if self.solvers:
            found["solvers"] = {name: _solver(solver) for name, solver in self.solvers.items()}
        if (strategy := self._only_strategy()) is not None:
            return {**found, "strategy": strategy}
        recall = self.memory.recall if self.memory else 0
        found["nodes"] = {name: _step(step, recall) for name, step in self.nodes.items()}
        if self.edges:
            found["edges"] = [_edge(edge) for edge in self.edges]
        return found

    def yaml(self) -> str:
        """The recipe as a file's text, in its normal form."""
        return strict_yaml.write(self.data())

    def _only_strategy(self) -> str | dict[str, Any] | None:
        """The strategy of a recipe that is nothing but one."""
        step = self.nodes.get("solve")
        if len(self.nodes) > 1 or self.edges or not isinstance(step, Solve) or isinstance(step.solver, str):
            return None
        alone = step.solver == Solver(strategy=step.solver.strategy)
        return spec(step.solver.strategy, "strategy") if alone else None


def spec(part: Named, key: str) -> Any:
    """A part as it is written under `key`: its name, or a mapping that says it under the key's word."""
    return {WORDS[key]: part.name, **part.params} if part.params else part.name


def scored(strategy: str) -> bool:
    """Whether a strategy takes a reward."""
    from ...strategies import strategy as strategy_class

    kind = strategy_class(strategy)
    return is_dataclass(kind) and any(f.name == "reward" for f in fields(kind))


def told(path: tuple[str | int, ...]) -> str:
    """A path as it is said to the user: keys with dots between them, on one line and not too long."""
    keys = (str(key) for key in path)
    return ".".join(key if _fit(key) else f"{key[:50]!a}" for key in keys)


def _fit(key: str) -> bool:
    return key.isprintable() and key.strip() == key != "" and len(key) <= 60


def _solver(solver: Solver) -> dict[str, Any]:
    found = {"strategy": spec(solver.strategy, "strategy")}
    found |= {
        key: spec(part, key)
        for key in ("model", "policy", "reward")
        if (part := getattr(solver, key)) is not None
    }
    if solver.models:
        found["models"] = {role: spec(model, "model") for role, model in solver.models.items()}
    return found


def _step(step: Step, recall: int) -> Any:
    """A step as a pipeline or a node would write it; `recall` is how many one looks up that says nothing."""
    kind = kind_of(step)
    if isinstance(step, Call):
        return {kind: step.function}
    if isinstance(step, Recall):
        return {kind: {"k": step.k}} if step.k != recall else kind
    body = step.model_dump(mode="json", exclude_defaults=True)
    if isinstance(step, Solve | Revise | Branch):
        solver = step.solver if isinstance(step.solver, str) else _solver(step.solver)
        if not isinstance(step, Branch):
            return {kind: solver}
        del body["solver"]
        body["solve"] = solver
    if (reward := getattr(step, "reward", None)) is not None:
        body["reward"] = spec(reward, "reward")
    return {kind: body} if body else kind


def _edge(edge: Edge) -> Any:
    rest = plain(edge.model_dump(mode="json", exclude_defaults=True, include={"when", "at_most"}))
    if not rest and " -> " not in edge.source + edge.target:
        return f"{edge.source} -> {edge.target}"
    return {"from": edge.source, "to": edge.target, **rest}

"""A model of the gateway: the pipeline of a recipe, or an engine passed through, tailored to each request."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, TypeVar

from ...serving import engine
from ...serving.errors import SearchEnded, UsageError
from ...serving.flow import Flow, Prompt, Sampling
from ...strategies.base import Policy, Result, State, Task
from ...strategies.chain_of_thought import ChainOfThought
from ...strategies.policy import StepPolicy
from ...strategies.search import Search
from ..ledger import Budget
from ..recipe import read
from ..services import Services
from ..solve import Pipeline
from ..steps import AskHuman, Verify
from ..workflow import Workflow
from .asked import Asked
from .errors import bad

P = TypeVar("P", bound=Pipeline | Workflow)


@dataclass(frozen=True, kw_only=True)
class PassThrough:
    """One sample of the engine, nothing else: no wording, no search, no forced answer."""

    policy: Policy

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draw it."""
        search = Search(task, self.policy, None, seed)
        try:
            leaves = yield from search.complete(search.root, 1)
        except SearchEnded as end:
            return search.result(None, stopped=end)
        return search.result(leaves[0] if leaves else None)


class RawPolicy(StepPolicy):
    """Goes on from the question, with no chat template and not a space changed."""

    def prompt_for(self, state: State, prefix: str | None = None) -> Prompt:
        """The question and what was written after it."""
        return Prompt(prefix=state.task.question + (state.text if prefix is None else prefix))


_PLAIN = Sampling(temperature=1.0, max_tokens=1024)  # OpenAI's default is the model's own distribution
_CHAT = StepPolicy(prompt="plain", delimiter=None, answer_kind="text", sampling=_PLAIN)
_RAW = RawPolicy(prompt="plain", delimiter=None, answer_kind="text", sampling=_PLAIN, chat=False)


@dataclass(frozen=True)
class Served:
    """One model: its name, and the pipelines that answer chats and texts to go on with."""

    name: str
    chat: Pipeline | Workflow
    text: Pipeline | Workflow
    description: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def one_sample(self) -> bool:
        """Whether an answer is a single sample of the engine, whose log-probs are then the answer's."""
        return isinstance(self.chat, Pipeline) and isinstance(
            self.chat.strategy, (ChainOfThought, PassThrough)
        )

    def tailored(self, asked: Asked) -> Pipeline | Workflow:
        """The pipeline with what the request changes in it. Raises ApiError where it cannot."""
        pipeline = self.text if asked.raw else self.chat
        if asked.logprobs and not self.one_sample:
            raise bad(
                f"{self.name} searches: its answer is no single sample. Leave logprobs out.", "logprobs"
            )
        if asked.sampling or asked.logprobs:
            redrawn = _redrawn(pipeline, asked)
            if redrawn is None:
                raise bad(f"{self.name} draws in a way of its own: no temperature, top_p, top_k or logprobs.")
            pipeline = redrawn
        if asked.budget is not None:
            pipeline = replace(pipeline, budget=least(pipeline.budget, asked.budget))
        return pipeline


def _redrawn(pipeline: Pipeline | Workflow, asked: Asked) -> Pipeline | Workflow | None:
    """The pipeline, all of whose searches draw as the request says; None if one cannot."""
    if isinstance(pipeline, Pipeline):
        strategy = _resampled(pipeline.strategy, asked)
        return None if strategy is None else replace(pipeline, strategy=strategy)
    nodes: dict[str, Any] = dict(pipeline.nodes)
    for name, node in pipeline.nodes.items():
        if (strategy := getattr(node, "strategy", None)) is not None:
            if (changed := _resampled(strategy, asked)) is None:
                return None
            nodes[name] = replace(node, strategy=changed)  # type: ignore[type-var]
    return replace(pipeline, nodes=nodes)


def _resampled(part: Any, asked: Asked) -> Any:
    """A strategy or policy whose innermost policy draws as the request says; None if there is none such."""
    if isinstance(part, StepPolicy):
        sampling = replace(part.sampling, **asked.sampling)
        return replace(part, sampling=sampling, logprobs=part.logprobs or asked.logprobs)
    inner = getattr(part, "policy", None)
    if inner is None or not is_dataclass(part) or (changed := _resampled(inner, asked)) is None:
        return None
    return replace(part, policy=changed)  # type: ignore[type-var]


def least(ours: Budget, theirs: Budget) -> Budget:
    """The smaller of each two limits."""
    known, wanted = ours.limits(), theirs.limits()
    limits = {name: min(known.get(name, limit), limit) for name, limit in wanted.items()}
    return Budget(**{**known, **limits}, finish=ours.finish)


# ---------------------------------------------------------------- what the command line names


def from_recipe(source: str, limit_s: float) -> Served:
    """The model of a recipe, a packaged one or a file. Raises UsageError if it cannot be served."""
    recipe = read(source)
    rewards = {part.name for part in (recipe.reward, *(s.reward for s in recipe.solvers_used())) if part}
    steps = recipe.nodes.values()
    if "checks" in rewards or any(isinstance(step, Verify) and step.by == "checks" for step in steps):
        raise UsageError(
            f"The recipe {recipe.name} works with checks, which no chat request brings. Serve a recipe with "
            "another reward, such as self_eval, or with none."
        )
    if any(isinstance(step, AskHuman) for step in steps):
        raise UsageError(f"The recipe {recipe.name} asks a human, whom a chat request cannot reach.")
    pipeline = _limited(recipe.pipeline(), limit_s)
    return Served(recipe.name, pipeline, pipeline, recipe.description)


def passed_through(spec: str, limit_s: float) -> Served:
    """The model of an engine as it is."""
    services = Services({"policy": engine(spec)})
    chat, text = (
        _limited(Pipeline(PassThrough(policy=policy), services), limit_s) for policy in (_CHAT, _RAW)
    )
    return Served(spec, chat, text, "The engine as it is: one sample.")


def _limited(pipeline: P, limit_s: float) -> P:
    """With the time that the gateway gives a request."""
    return replace(pipeline, budget=least(pipeline.budget, Budget(seconds=limit_s)))


def by_name(models: Iterable[Served]) -> Mapping[str, Served]:
    """The models, each under its name. Raises UsageError where two share one."""
    found: dict[str, Served] = {}
    for model in models:
        if model.name in found:
            raise UsageError(f"Two models are named {model.name!r}. Give one of the recipes another name.")
        found[model.name] = model
    if not found:
        raise UsageError("There is nothing to serve. Name a recipe, e.g. abduce serve self-consistency-math.")
    return found


def worst_case(pipeline: Pipeline | Workflow, asked: Asked) -> tuple[float | None, float | None]:
    """Tokens and dollars that the request can spend at most; None where nothing bounds them."""
    limits = pipeline.budget.limits()
    tokens, usd = limits.get("tokens"), limits.get("cost_usd")
    policy = getattr(getattr(pipeline, "strategy", None), "policy", None)
    plain = isinstance(pipeline, Pipeline) and isinstance(pipeline.strategy, PassThrough)
    if tokens is None and plain and isinstance(policy, StepPolicy):
        prompt = policy.prompt_for(State(asked.task))
        most = asked.task.max_tokens or policy.sampling.max_tokens
        tokens = pipeline.services.engine("policy").count_tokens(prompt) + most
    return (None if tokens is None else tokens * asked.n), (None if usd is None else usd * asked.n)

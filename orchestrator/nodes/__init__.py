"""The steps of a recipe as nodes: what each does."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...strategies.base import Policy, Reward, Strategy
from .. import steps
from ..services import Services
from .ask import AskNode
from .base import Node, Progress, Update, Visit
from .branch import BranchNode
from .call import CallNode
from .knowledge import RecallNode, RememberNode
from .route import RouteByModel, RouteByQuestion
from .solve import ReviseNode, SolveNode, solved
from .verify import VerifyByAgreement, VerifyByCalculator, VerifyByPython, VerifyByReward

if TYPE_CHECKING:
    from ..solve import Pipeline


class Parts:
    """What the nodes of a recipe are made from: the services that all share, whoever solves, what scores."""

    def __init__(
        self,
        services: Services,
        policy: Policy,
        solver: "Callable[[str | steps.Solver], Pipeline]",
        reward: "Callable[[steps.Named | None], Pipeline]",
    ) -> None:
        self.services = services
        self.policy = policy
        self._solver = solver
        self._reward = reward

    def solver(self, solver: str | steps.Solver) -> tuple[Services, Strategy]:
        """The strategy of a solver, and who answers it."""
        made = self._solver(solver)
        return made.services, made.strategy

    def reward(self, spec: steps.Named | None) -> tuple[Services, Reward]:
        """A reward, by default the recipe's, and who answers it."""
        made = self._reward(spec)
        reward: Reward = made.strategy.reward  # type: ignore[attr-defined]
        return made.services, reward


def node(step: steps.Step, parts: Parts) -> Node:
    """The node of a step."""
    services = parts.services
    match step:
        case steps.Recall():
            return RecallNode(services, step.k)
        case steps.Remember():
            return RememberNode(services, step.when == "always")
        case steps.Route():
            kind = RouteByModel if step.by == "model" else RouteByQuestion
            return kind(services, step.ways)
        case steps.Solve():
            return SolveNode(*parts.solver(step.solver))
        case steps.Revise():
            return ReviseNode(*parts.solver(step.solver))
        case steps.Branch():
            return BranchNode(*parts.solver(step.solver), step.by, step.most)
        case steps.AskHuman():
            return AskNode(services, step.question, step.choices, step.use)
        case steps.Call():
            return CallNode(services, step.function)
        case steps.Verify():
            return _verify(step, parts)


def _verify(step: steps.Verify, parts: Parts) -> Node:
    if step.by == "calculator":
        return VerifyByCalculator(parts.services)
    if step.by == "python":
        return VerifyByPython(parts.services)
    if step.by == "agreement":
        return VerifyByAgreement(parts.services, parts.policy)
    if step.by == "checks":
        all_of_them = steps.Named.model_validate({"name": "checks", "all_or_nothing": True})
        return VerifyByReward(*parts.reward(all_of_them), at_least=1.0, by="tests")
    return VerifyByReward(*parts.reward(step.reward), at_least=step.at_least)


__all__ = ["Node", "Parts", "Progress", "SolveNode", "Update", "Visit", "node", "solved"]

"""One strategy on one task, and what it consumed."""

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.flow import Usage
from abduce.strategies.base import Result, Strategy, Task


async def solved(strategy: Strategy, task: Task, services: Services, *, seed: int) -> tuple[Result, Usage]:
    """Its result, and the ledger's account of the run."""
    driver = Driver(services, seed=seed)
    result: Result = await driver.run(strategy.solve(task, seed=seed))
    return result, driver.ledger.usage

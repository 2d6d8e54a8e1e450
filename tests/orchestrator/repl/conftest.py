import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from abduce.orchestrator.runs import Runs

sys.path.insert(0, str(Path(__file__).parent))

from talking import Talk


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Callable[..., Talk]]:
    """Sittings over the synthetic model: `talk(strategy=…, …)`."""
    made: list[Talk] = []

    def start(strategy: object = "particle_filter", **more: object) -> Talk:
        recipe = {"name": "run", "model": {"engine": "synthetic", "depth": 4}, "reward": "rate"}
        if strategy in ("self_consistency", "chain_of_thought"):
            del recipe["reward"]
        made.append(Talk(Runs(tmp_path / "runs"), {**recipe, "strategy": strategy, **more}))
        return made[-1]

    yield start
    for each in made:
        each.sitting.close()

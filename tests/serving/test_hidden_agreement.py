"""States that a probe reads from SGLang are those of transformers, cold and warm; what is cached."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from abduce.serving.flow import Generate, Hidden, Sampling
from abduce.serving.sglang import Sglang, launch
from abduce.strategies.base import State, Task
from abduce.strategies.diffadapt.modes import MODES, in_mode
from abduce.strategies.diffadapt.probe import SAME, cosine
from abduce.strategies.policy import StepPolicy

from .sglang_env import launcher

pytestmark = pytest.mark.sglang

POLICY = StepPolicy(prompt="plain")
TASKS = [
    Task("What is 417 x 23, and is the result an odd number?"),
    Task("A train leaves at 14:05 and arrives at 16:50. How long does it take?"),
    Task("Name the largest prime below one hundred, and say why it is one."),
]


@pytest.fixture
async def engine(sglang_server: launch.Server) -> AsyncIterator[Sglang]:
    async with Sglang(sglang_server.url) as engine:
        yield engine


def reference(folder: Path, rows: list[list[int]]) -> list[list[float]]:
    """What transformers computes: see `sglang_env/states.py`."""
    states: list[list[float]] = launcher.told("states.py", folder=str(folder), rows=rows)
    return states


async def test_cold_and_warm_states_are_those_of_transformers(engine: Sglang, hf_model: Path) -> None:
    prompts = [POLICY.prompt_for(State(task)) for task in TASKS]
    cold = [(await engine.hidden(Hidden(prompt))).value for prompt in prompts]
    warm = [(await engine.hidden(Hidden(prompt))).value for prompt in prompts]
    rows = [list(await engine._ids(prompt)) for prompt in prompts]
    for told, first, again in zip(reference(hf_model, rows), cold, warm, strict=True):
        assert cosine(told, first) >= SAME
        assert cosine(told, again) >= SAME


async def test_the_answer_finds_the_question_that_was_read_in_the_cache(engine: Sglang) -> None:
    for mode, task in zip(MODES, TASKS, strict=True):
        read, prompt = POLICY.prompt_for(State(task)), in_mode(POLICY, mode).prompt_for(State(task))
        await engine.hidden(Hidden(read))
        seen, asked = await engine._ids(read), await engine._ids(prompt)
        shared = next(i for i, (a, b) in enumerate(zip(seen, asked, strict=False)) if a != b)
        _, usage = await engine.generate(Generate(prompt, sampling=Sampling(max_tokens=1)), seed=0)
        assert usage.cached_tokens >= shared - 1
        assert shared >= len(task.question.split())

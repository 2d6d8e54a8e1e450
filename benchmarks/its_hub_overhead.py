"""its_hub 1.2.0's side of `benchmarks/driver.py`, run under the python of its own environment.

Best-of-8 and an 8-particle filter of 10 steps on a model that answers at once, and 256 calls of 50 ms.
Prints JSON: µs CPU per call of the model (one conversation, one sample) for each repeat; wall seconds.

    ~/.cache/abduce/bench/its_hub/bin/python benchmarks/its_hub_overhead.py 200 7
"""

import asyncio
import gc
import json
import sys
import time
from typing import Any

from its_hub.api import AbstractLanguageModel, AbstractOutcomeRewardModel, AbstractProcessRewardModel
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.step_generation import StepGeneration
from its_hub.core.orchestrator import LMOrchestrator

QUESTION = "What is 7 times 8, and how do you know?"
STEP = "Seven eights are fifty-six.\n\n"
STEPS = 10
ROUNDS = 3  # of a repeat; the least counts


class Scripted(AbstractLanguageModel):
    """Always says the same. A batch is answered by `asyncio.gather`, as the package's own client does."""

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self.calls = 0

    async def agenerate_single(self, messages: Any, stop: Any = None, **_: Any) -> dict[str, str]:
        """One conversation."""
        self.calls += 1
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        return {"role": "assistant", "content": STEP}

    async def agenerate(self, messages: Any, stop: Any = None, **_: Any) -> Any:
        """A batch of conversations."""
        return await asyncio.gather(*(self.agenerate_single(chat, stop) for chat in messages))


class Fair(AbstractProcessRewardModel, AbstractOutcomeRewardModel):
    """Scores everything ½."""

    def score(self, prompt: Any, steps: Any = None, **_: Any) -> list[float]:
        """One score for each."""
        return [0.5] * len(prompt if steps is None else steps)

    async def ascore(self, prompt: Any, steps: Any = None, **_: Any) -> list[float]:
        """The same."""
        return self.score(prompt, steps)


def main(problems: int, repeats: int) -> None:
    """Measure everything, print it."""
    steps = StepGeneration(
        STEPS - 1, step_token=["\n\n"], include_stop_str_in_output=True
    )  # it counts from 0
    methods = {
        "best-of-8": BestOfN(Fair(), LMOrchestrator()),
        "best-of-8, no limit": BestOfN(Fair(), LMOrchestrator(-1)),
        "particle filter 8×10": ParticleFiltering(steps, Fair()),
    }
    found: dict[str, Any] = {name: per_call(method, problems, repeats) for name, method in methods.items()}
    for name, limit in {"wide, limit 32": 32, "wide, no limit": -1}.items():
        found[name] = [wall_s(BestOfN(Fair(), LMOrchestrator(limit))) for _ in range(repeats)]
    print(json.dumps(found))


def per_call(method: Any, problems: int, repeats: int) -> dict[str, Any]:
    """µs CPU per call of the model, and its calls in a run."""
    one_round(method, problems // ROUNDS)
    found = [min(one_round(method, problems // ROUNDS) for _ in range(ROUNDS)) for _ in range(repeats)]
    return {"calls": found[0][1], "us": [us for us, _ in found]}


def one_round(method: Any, problems: int) -> tuple[float, int]:
    """µs CPU per call of the model, and its calls in a run."""
    model = Scripted()

    async def timed() -> float:
        began = time.process_time()
        for _ in range(problems):
            await method.ainfer(model, QUESTION, 8, return_response_only=False)
        return time.process_time() - began

    gc.collect()
    return asyncio.run(timed()) / model.calls * 1e6, model.calls // problems


def wall_s(method: Any) -> float:
    """Wall seconds of 256 calls of 50 ms."""

    async def timed() -> float:
        began = time.perf_counter()
        await method.ainfer(Scripted(0.05), QUESTION, 256)
        return time.perf_counter() - began

    return asyncio.run(timed())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""Small engines and flows that the tests of the driver share."""

import asyncio
import random
from collections.abc import Callable

from abduce.serving.base import Engine, Served
from abduce.serving.flow import Completion, Flow, Fork, Generate, Note, Prompt, Sampling, Usage

Say = Callable[[Generate, int], str]


class Echo(Engine):
    """Says what `say` says, after a random delay; counts what is in flight."""

    name = "echo"
    capabilities = frozenset({"generate"})

    def __init__(self, say: Say = lambda request, seed: str(seed), *, delay_s: float = 0.0, shuffle: int = 0):
        self.say = say
        self.delay_s = delay_s
        self.random = random.Random(shuffle)
        self.started: list[str] = []
        self.in_flight = 0
        self.peak = 0

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        self.started.append(request.prompt.prefix)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.random.random() * self.delay_s)
            text = self.say(request, seed)
        finally:
            self.in_flight -= 1
        n_tokens = min(len(text), request.sampling.max_tokens)
        completion = Completion(text[:n_tokens], n_tokens=n_tokens)
        return Served(
            (completion,) * request.n,
            Usage(input_tokens=len(request.prompt.prefix), output_tokens=n_tokens * request.n, calls=1),
        )

    def count_tokens(self, prompt: Prompt) -> int:
        return len(prompt.prefix)


def ask(name: str, cap: int = 256) -> Generate:
    return Generate(Prompt(prefix=name), sampling=Sampling(max_tokens=cap))


def chain(name: str, length: int, cap: int = 256) -> Flow[list[str]]:
    """`length` calls, one after another."""
    said: list[str] = []
    for i in range(length):
        [reply] = yield [ask(f"{name}{i}", cap)]
        said.append(getattr(reply[0], "text", "") if isinstance(reply, tuple) else reply.kind)
    return said


def garden(width: int, length: int) -> Flow[list[list[str]]]:
    """Branches of different lengths, with notes on the way."""
    yield [Note("begin", {"width": width})]
    branches = tuple(chain(f"b{b}.", 1 + (b * length) % (length + 1)) for b in range(width))
    [said] = yield [Fork(branches)]
    yield [Note("end", {"said": said})]
    return list(said)

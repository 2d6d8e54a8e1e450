"""ThinkSum on a real SGLang server: the embedded engine's likelihoods, in any order, from its cache."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called
from abduce.serving.base import Engine
from abduce.serving.embedded import Embedded
from abduce.serving.flow import LogProb, Prompt
from abduce.serving.sglang import Sglang, launch
from abduce.strategies.base import Task
from abduce.strategies.policy import policy
from abduce.strategies.thinksum import ThinkSum

pytestmark = pytest.mark.sglang

WORDS = ("white", "black", "red", "apple")


async def thought(engine: Engine, words: Sequence[str], seen: list[Called]) -> dict[tuple[str, str], float]:
    """The table of likelihoods, word after word; the answer must be the odd one."""
    driver = Driver(Services({"policy": engine}), observers=[partial(_keep, seen)])
    asked = Task(f"Pick the odd word out: {', '.join(words)}", choices=tuple(words))
    result = await driver.run(ThinkSum(policy=policy("plain"), program="odd_one_out").solve(asked, seed=0))
    assert result.answer == "apple" and result.complete
    told = result.diagnostics["table"]
    named = told["lists"]["words"]
    return {(named[i], named[j]): x for i, j, x in told["after"]["cells"]}


def _keep(seen: list[Called], event: Any) -> None:
    if isinstance(event, Called) and isinstance(event.request, LogProb):
        seen.append(event)


async def test_the_odd_word_is_found_by_the_embedded_engines_likelihoods_in_any_order(
    sglang_server: launch.Server, embedded: Embedded
) -> None:
    """What is computed anew is at most each context and each continuation once, and a token for each pair;
    with all in the server's cache, a token for each pair and its continuation."""
    server = Sglang(url=sglang_server.url)
    cold: list[Called] = []
    warm: list[Called] = []
    try:
        here = await thought(server, WORDS, cold)
        turned = await thought(server, WORDS[::-1], warm)
        contexts = {event.request.prompt: server.count_tokens(event.request.prompt) for event in cold}
    finally:
        await server.close()
    there = await thought(embedded, WORDS, [])
    assert here.keys() == turned.keys() == there.keys() and len(here) == 12
    assert all(abs(turned[pair] - here[pair]) < 1e-3 for pair in here)
    gaps = [abs(here[pair] - there[pair]) for pair in here]
    assert sum(gaps) / len(gaps) < 0.35, gaps  # the embedded weights have 4 bits
    most = sum(event.usage.input_tokens - contexts[event.request.prompt] + 1 for event in cold)
    assert _computed(cold) <= sum(contexts.values()) + most
    assert _computed(warm) <= most


def _computed(seen: list[Called]) -> int:
    return sum(event.usage.input_tokens - event.usage.cached_tokens for event in seen)


async def test_the_likelihood_of_two_words_is_that_of_the_first_and_of_the_second_after_it(
    sglang_server: launch.Server,
) -> None:
    server = Sglang(url=sglang_server.url)
    try:
        asked = [
            LogProb(Prompt(prefix="List of words:"), " red, blue"),
            LogProb(Prompt(prefix="List of words:"), " red,"),
            LogProb(Prompt(prefix="List of words: red,"), " blue"),
        ]
        whole, first, second = [
            each.value for each in await asyncio.gather(*(server.logprob(request) for request in asked))
        ]
    finally:
        await server.close()
    assert whole.total == pytest.approx(first.total + second.total, abs=1e-3)
    assert len(whole.logprobs) == len(first.logprobs) + len(second.logprobs)

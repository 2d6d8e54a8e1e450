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
from abduce.serving.flow import Generate, LogProb, Prompt, Sampling
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
    """What is computed anew is at most each context and each continuation once; with all in the server's
    cache, as many tokens as the continuations have: for each the last one of its context, and not its own
    last one."""
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
    continuations = sum(len(event.reply.logprobs) for event in cold)
    assert continuations == sum(e.usage.input_tokens - contexts[e.request.prompt] + 1 for e in cold)
    assert _computed(cold) <= sum(contexts.values()) + continuations - len(contexts)
    assert _computed(warm) == continuations


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


async def test_a_tokens_log_prob_does_not_depend_on_whether_it_is_the_last(
    sglang_server: launch.Server,
) -> None:
    """The last one is told as that of a token to come, the others as those of the input; beside samples that
    are drawn at another temperature, and cold and warm."""
    server = Sglang(url=sglang_server.url)
    prompt = Prompt(prefix="It is well known that the")
    beside = Generate(Prompt.user("What is the sea?"), n=2, sampling=Sampling(0.3, max_tokens=12))
    try:
        ids = await server._talk(server._tokens.continuation(prompt, " capital of France is Paris; 漢字"))
        lengths = (1, 2, 6, len(ids))
        asked = [LogProb(prompt, continuation_ids=ids[:n]) for n in lengths]
        drawn = asyncio.create_task(server.generate(beside, seed=0))
        cold, warm = [await asyncio.gather(*map(server.logprob, asked)) for _ in range(2)]
        await drawn
        n_prompt = server.count_tokens(prompt)
    finally:
        await server.close()
    whole = cold[-1].value.logprobs
    assert len(whole) == len(ids) > 6
    for n, *replies in zip(lengths, cold, warm, strict=True):
        for reply in replies:
            assert reply.value.logprobs == pytest.approx(whole[:n], abs=1e-4)
    assert sum(reply.usage.tokens for reply in cold) <= n_prompt - 1 + sum(lengths)
    assert [reply.usage.tokens for reply in warm] == [*lengths]

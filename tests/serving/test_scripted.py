import asyncio
import time

import pytest

from abduce.serving.errors import EngineError, TransientError
from abduce.serving.flow import Completion, Generate, LogProb, Prompt, Sampling
from abduce.serving.scripted import Scripted

ASK = Prompt.user("2+2?")


async def say(engine: Scripted, n: int = 1, **sampling: object) -> list[str]:
    asked = Generate(ASK, n=n, sampling=Sampling(**sampling))  # type: ignore[arg-type]
    return [c.text for c in (await engine.generate(asked, seed=0)).value]


async def test_a_constant() -> None:
    assert await say(Scripted("4"), n=2) == ["4", "4"]


async def test_a_list_is_used_up_in_order() -> None:
    engine = Scripted(["a", "b", Completion("c", n_tokens=7)])
    assert await say(engine, n=2) == ["a", "b"]
    assert await say(engine) == ["c"]
    with pytest.raises(EngineError, match="ended: 3 replies"):
        await say(engine)


async def test_a_mapping_looks_into_the_prompt() -> None:
    engine = Scripted({"3+3": "6", "2+2": ["4", "four"]})
    assert await say(engine, n=3) == ["4", "four", "4"]
    with pytest.raises(EngineError, match="no key"):
        await engine.generate(Generate(Prompt.user("1+1?")), seed=0)


async def test_a_function_sees_request_and_seed() -> None:
    engine = Scripted(lambda asked, seed: [f"{seed}.{i}" for i in range(asked.n)])
    completions, _ = await engine.generate(Generate(ASK, n=2), seed=7)
    assert [c.text for c in completions] == ["7.0", "7.1"]


@pytest.mark.parametrize("error", [TransientError("busy"), EngineError("broken")])
async def test_failures_are_injected(error: EngineError) -> None:
    def fail(asked: Generate, seed: int) -> str:
        raise error

    for engine in (Scripted(fail), Scripted([error])):
        with pytest.raises(type(error), match=str(error)):
            await say(engine)


async def test_a_failure_in_a_list_is_passed_once() -> None:
    engine = Scripted([TransientError("busy"), "4"])
    with pytest.raises(TransientError):
        await say(engine)
    assert await say(engine) == ["4"]


async def test_the_first_stop_string_ends_the_text() -> None:
    engine = Scripted("one. two\n\nthree")
    assert await say(engine, stop=("\n\n", ".")) == ["one."]
    assert await say(engine, stop=("\n\n",)) == ["one. two\n\n"]


async def test_tokens_are_words_and_the_length_is_in_tokens() -> None:
    engine = Scripted("one two\n\nthree", ids=True)
    assert await say(engine, max_tokens=2) == ["one two"]
    [c], usage = await engine.generate(Generate(ASK, logprobs=True), seed=0)
    assert (c.finish, len(c.ids), len(c.logprobs), c.n_tokens) == ("eos", 4, 4, 5)
    assert usage.output_tokens == 5


async def test_capabilities_are_those_of_the_script() -> None:
    assert "logprob" not in Scripted("x").capabilities
    engine = Scripted("x", logprob=lambda asked: -1.5)
    assert "logprob" in engine.capabilities
    assert (await engine.logprob(LogProb(ASK, "4"))).value.total == -1.5


async def test_latency() -> None:
    engine = Scripted("x", latency_s=lambda asked: 0.1 * asked.n)  # type: ignore[attr-defined]
    began = time.perf_counter()
    await asyncio.gather(*(say(engine, n=2) for _ in range(20)))
    assert 0.2 <= time.perf_counter() - began < 2  # one after the other: 4

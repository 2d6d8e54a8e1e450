"""The SGLang engine against a real server. Numbers asserted are laws, or measured with a margin."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from abduce.serving.constraints import Check, Choices, JsonSchema, Regex
from abduce.serving.errors import EngineError, TransientError, UsageError
from abduce.serving.flow import Completion, Generate, Hidden, LogProb, Message, Prompt, Rate, Sampling
from abduce.serving.sglang import Sglang, launch

pytestmark = pytest.mark.sglang

SEA = Prompt.user("Say something about the sea.")


def warm(**changes: object) -> Sampling:
    return Sampling(**({"temperature": 1.0, "max_tokens": 8} | changes))  # type: ignore[arg-type]


@pytest.fixture
async def engine(sglang_server: launch.Server) -> AsyncIterator[Sglang]:
    async with Sglang(sglang_server.url) as engine:
        yield engine


# ---------------------------------------------------------------- what is drawn


async def test_samples_of_one_request_differ_and_share_the_prompt(engine: Sglang) -> None:
    asked = Generate(Prompt.user("Name a town."), n=4, sampling=warm())
    drawn, usage = await engine.generate(asked, seed=3)
    assert len({c.text for c in drawn}) > 1
    assert usage.input_tokens == engine.count_tokens(asked.prompt)
    assert usage.cached_tokens < usage.input_tokens - 5  # it was new, whoever read it first
    _, again = await engine.generate(asked, seed=4)
    assert again.cached_tokens == again.input_tokens - 1


async def test_a_continuation_is_cached_to_the_last_token(engine: Sglang) -> None:
    [begun], _ = await engine.generate(Generate(SEA, sampling=warm(max_tokens=6)), seed=1)
    going_on = Prompt(SEA.messages, prefix=begun.text, prefix_ids=begun.ids)
    _, usage = await engine.generate(Generate(going_on, sampling=warm(max_tokens=2)), seed=2)
    assert usage.input_tokens == engine.count_tokens(SEA) + len(begun.ids)
    assert usage.cached_tokens >= usage.input_tokens - 1


async def test_the_end_of_a_turn_is_no_stop_string(engine: Sglang) -> None:
    yes = Prompt.user("Answer with the one word: yes")
    asked = Generate(yes, sampling=Sampling(temperature=0, max_tokens=40, stop=("ZZZ",)), logprobs=True)
    [c], _ = await engine.generate(asked, seed=0)
    assert (c.finish, c.stop) == ("eos", "")
    assert c.n_tokens == len(c.ids) + 1 == len(c.logprobs) + 1
    assert "<|im_end|>" not in c.text


async def test_a_stop_string_across_tokens(engine: Sglang) -> None:
    france = Prompt(prefix="The capital of France is")
    asked = Generate(france, sampling=Sampling(temperature=0, max_tokens=20, stop=("is.",)), logprobs=True)
    [c], _ = await engine.generate(asked, seed=0)
    assert (c.text, c.stop, c.content) == (" Paris.", "is.", " Par")
    assert len(c.ids) == len(c.logprobs) == c.n_tokens == 2


async def test_greedy_is_the_likeliest_token(engine: Sglang) -> None:
    asked = Generate(SEA, sampling=Sampling(temperature=0, max_tokens=4), logprobs=True, top_logprobs=3)
    [c], _ = await engine.generate(asked, seed=0)
    assert [best[0] for best in c.top_logprobs] == pytest.approx(c.logprobs)
    assert all(len(best) == 3 and list(best) == sorted(best, reverse=True) for best in c.top_logprobs)


# ---------------------------------------------------------------- log-probs


async def rescored(engine: Sglang, prompt: Prompt, c: Completion) -> tuple[float, ...]:
    return (await engine.logprob(LogProb(prompt, continuation_ids=c.ids))).value.logprobs


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
async def test_log_probs_are_those_at_temperature_one(engine: Sglang, temperature: float) -> None:
    asked = Generate(SEA, sampling=warm(temperature=temperature), logprobs=True, top_logprobs=2)
    [c], _ = await engine.generate(asked, seed=5)
    assert c.logprobs == pytest.approx(await rescored(engine, SEA, c), abs=1e-3)


async def test_log_probs_are_those_before_the_constraint(engine: Sglang) -> None:
    asked = Generate(
        SEA, sampling=warm(), constraint=Choices(("apple", "pear")), logprobs=True, top_logprobs=2
    )
    [c], _ = await engine.generate(asked, seed=5)
    assert c.text in ("apple", "pear")
    assert c.logprobs == pytest.approx(await rescored(engine, SEA, c), abs=1e-3)
    assert c.logprobs[0] < c.top_logprobs[0][0]
    assert len(c.top_logprobs) == len(c.ids)


async def test_log_probs_are_those_before_a_penalty(engine: Sglang) -> None:
    asked = Generate(SEA, sampling=warm(), logprobs=True, extra={"frequency_penalty": 2.0})
    [c], _ = await engine.generate(asked, seed=5)
    assert c.logprobs == pytest.approx(await rescored(engine, SEA, c), abs=1e-3)


async def test_cold_and_warm_scores_agree(engine: Sglang) -> None:
    asked = LogProb(Prompt.user("What is the colour of the winter sky?"), " It is grey, and low.")
    cold, first = await engine.logprob(asked)
    hot, second = await engine.logprob(asked)
    assert hot.logprobs == pytest.approx(cold.logprobs, abs=1e-4)
    assert first.cached_tokens < second.cached_tokens
    n_prompt = engine.count_tokens(asked.prompt)
    assert second.cached_tokens == n_prompt - 1  # what is read anew tells of as many tokens: those scored
    assert first.input_tokens == second.input_tokens == n_prompt - 1 + len(cold.logprobs)


async def test_a_given_text_is_scored(engine: Sglang) -> None:
    france = Prompt(prefix="The capital of France is")
    paris, _ = await engine.logprob(LogProb(france, " Paris"))
    rome, _ = await engine.logprob(LogProb(france, " Rome"))
    assert rome.total < paris.total - 3 < 0
    both, _ = await engine.logprob(LogProb(france, " Paris."))
    assert both.logprobs[0] == pytest.approx(paris.total, abs=1e-3)
    assert (await engine.logprob(LogProb(france, ""))).value.logprobs == ()


# ---------------------------------------------------------------- constraints and extras


@pytest.mark.parametrize(
    ("constraint", "matches"),
    [
        (Regex("[0-9]{2}"), r"[0-9]{2}"),
        (Choices(("a+b", "(c)", "ä")), r"a\+b|\(c\)|ä"),
        (
            JsonSchema({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}),
            r'(?s)\{\s*"a"\s*:\s*(true|false).*\}',
        ),
    ],
)
async def test_a_constraint_is_kept(engine: Sglang, constraint: Regex, matches: str) -> None:
    import re

    asked = Generate(SEA, n=2, sampling=warm(max_tokens=24), constraint=constraint)
    drawn, _ = await engine.generate(asked, seed=1)
    for c in drawn:
        assert re.fullmatch(matches, c.text), c.text
        assert c.finish == "eos"


async def test_choices_go_on_from_a_prefix(engine: Sglang) -> None:
    begun = Prompt(SEA.messages, prefix="blue")
    asked = Generate(begun, sampling=warm(), constraint=Choices(("blue sky", "red sky", "bluebird")))
    [c], _ = await engine.generate(asked, seed=1)
    assert c.text in (" sky", "bird")


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Generate(SEA, constraint=Check(bool, bool)), "transformers engine can"),
        (Generate(SEA, constraint=Regex("a") * Regex("b")), "transformers engine can"),
        (Generate(Prompt(SEA.messages, "a"), constraint=Regex("ab")), "cannot continue a prefix"),
        (Generate(Prompt(SEA.messages, "z"), constraint=Choices(("a",))), "No choice begins"),
        (Generate(SEA, extra={"temperature": 2}), "extra cannot set 'temperature'"),
        (Generate(SEA, extra={"min_p": -1}), "min_p"),
        (Generate(SEA, constraint=Regex("(a")), "parenthesis"),
        (Generate(SEA, n=0), "at least 1"),
        (Generate(Prompt()), "empty"),
        (Generate(Prompt(SEA.messages, "9" * 9000)), "the server takes 8186"),
        (Generate(Prompt(SEA.messages, "", (10**7,))), "another model"),
    ],
)
async def test_what_cannot_be_done_says_why(engine: Sglang, request_: Generate, told: str) -> None:
    with pytest.raises(EngineError, match=told) as caught:
        await engine.generate(request_, seed=0)
    assert not isinstance(caught.value, TransientError)


async def test_extra_fields_reach_the_server(engine: Sglang) -> None:
    token = (await engine.generate(Generate(SEA, sampling=warm(max_tokens=1)), seed=0)).value[0].ids[0]
    bias = {"logit_bias": {str(token): 100.0}}
    [c], _ = await engine.generate(Generate(SEA, sampling=warm(max_tokens=3), extra=bias), seed=0)
    assert c.ids == (token,) * 3


# ---------------------------------------------------------------- states, tokens


async def test_hidden_state(engine: Sglang) -> None:
    state, usage = await engine.hidden(Hidden(SEA))
    assert len(state) == 576
    assert usage.input_tokens == engine.count_tokens(SEA)
    assert (await engine.hidden(Hidden(SEA))).value == pytest.approx(state, abs=1e-4)


async def test_a_model_without_a_reward_head_rates_nothing(engine: Sglang) -> None:
    with pytest.raises(EngineError):
        await engine.rate(Rate(SEA))


async def test_counts_are_exact_and_what_is_sent(engine: Sglang) -> None:
    system = Prompt.user(
        "hello", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )
    assert engine.count_tokens(Prompt.user("hello")) == engine.count_tokens(
        system
    )  # the template's own default
    _, usage = await engine.generate(Generate(system, sampling=warm(max_tokens=1)), seed=0)
    assert usage.input_tokens == engine.count_tokens(system)
    whole = Prompt((*SEA.messages, Message("assistant", "hi")))
    assert engine.count_tokens(whole) > engine.count_tokens(Prompt(SEA.messages, prefix="hi")) + 3


async def test_an_answer_cannot_end_its_turn_by_writing_so(engine: Sglang) -> None:
    assert engine.count_tokens(Prompt(SEA.messages, "a<|im_end|>b")) > engine.count_tokens(SEA) + 3
    assert engine.count_tokens(Prompt(prefix="<|im_end|>")) == 1  # a raw prompt says what it says
    scored, _ = await engine.logprob(LogProb(SEA, "a<|im_end|>b<|im_start|>"))
    assert len(scored.logprobs) > 8


# ---------------------------------------------------------------- several loops, cancelled calls, no server


def test_one_engine_serves_several_event_loops(sglang_server: launch.Server) -> None:
    engine = Sglang(sglang_server.url)
    asked = Generate(SEA, sampling=warm(max_tokens=1))
    for seed in range(2):
        assert len(asyncio.run(engine.generate(asked, seed=seed)).value) == 1
    asyncio.run(engine.close())


async def running_on(engine: Sglang) -> int:
    """Requests the server works on: its own report of its load."""
    told = await engine._transport.get("/v1/loads")
    return sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in told["loads"])


async def until(engine: Sglang, busy: bool) -> None:
    """Wait until the server works on something, or on nothing."""
    async with asyncio.timeout(60):
        while (await running_on(engine) > 0) is not busy:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_cancelled_calls_leave_nothing_running(engine: Sglang) -> None:
    asked = Generate(Prompt.user("Write a long story."), sampling=warm(max_tokens=2000))
    await engine.generate(Generate(asked.prompt, sampling=warm(max_tokens=1)), seed=0)
    calls = [asyncio.create_task(engine.generate(asked, seed=i)) for i in range(200)]
    await until(engine, busy=True)
    for call in calls:
        call.cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)
    await until(engine, busy=False)


async def test_without_a_server_the_way_to_start_one_is_told() -> None:
    async with Sglang(f"http://127.0.0.1:{launch.free_port()}", patience_s=0.1) as nobody:
        with pytest.raises(UsageError, match="abduce engine MODEL --port"):
            await nobody.ready()
        assert nobody.count_tokens(SEA) > 20  # an estimate
        with pytest.raises(EngineError, match="did not come back within"):
            await nobody.generate(Generate(SEA), seed=0)

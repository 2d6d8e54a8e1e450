"""litellm against real servers of OpenAI's protocol on this machine: llama.cpp's (fixture `hosted`), and a
small one that does what providers do on bad days."""

import asyncio
import logging
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving import engine
from abduce.serving import litellm as module
from abduce.serving.constraints import JsonSchema, Regex
from abduce.serving.errors import EngineError, MissingExtra, TransientError, UsageError
from abduce.serving.flow import Completion, Failure, Generate, Message, Prompt, Sampling, ToolCall, ToolSpec
from abduce.serving.litellm import Litellm
from abduce.serving.replies import counted
from abduce.serving.tool_calls import read

from .openai_server import Spoken, refused, said, speaking

pytest.importorskip("litellm")

ASK = Prompt.user("What is 2 + 2?")
ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}})
SECRET = "sk-verysecretkey123"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", SECRET)


@pytest.fixture
def four() -> Iterator[Spoken]:
    with speaking(lambda body: said(*["4"] * body.get("n", 1))) as spoken:
        yield spoken


def at(spoken: Spoken, model: str = "openai/gpt-4o-mini", **changes: Any) -> Litellm:
    return Litellm(model, api_base=spoken.url, api_key_env="TEST_KEY", **changes)


async def ask(served: Litellm, prompt: Prompt = ASK, **words: Any) -> tuple[Completion, ...]:
    return (await served.generate(Generate(prompt, **words), seed=5)).value


# ---------------------------------------------------------------- what is sent


async def test_a_request_as_the_protocol_has_it(four: Spoken) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=9, stop=("\n\n", "END"))
    await ask(at(four), Prompt.user("2+2?", system="Be brief."), n=2, sampling=sampling, extra={"user": "u"})
    [body] = four.bodies
    assert body["model"] == "gpt-4o-mini"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?"},
    ]
    sent = {name: body[name] for name in ("temperature", "top_p", "stop", "n", "user")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "stop": ["\n\n", "END"], "n": 2, "user": "u"}
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 9
    assert body["seed"] == 5
    assert "logprobs" not in body
    assert four.headers[0]["Authorization"] == f"Bearer {SECRET}"


async def test_tools_and_calls_as_the_protocol_has_them(four: Spoken) -> None:
    called = Message("assistant", "", (ToolCall("c1", "add", '{"a": 1}'),))
    talk = Prompt((*ASK.messages, called, Message("tool", "3", tool_call_id="c1")), tools=(ADD,))
    await ask(at(four), talk)
    [body] = four.bodies
    assert body["tools"][0]["function"]["name"] == "add"
    _, call, result = body["messages"]
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert call["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert (result["role"], result["content"], result["tool_call_id"]) == ("tool", "3", "c1")


@pytest.mark.parametrize(
    ("prefix", "in_message", "in_body"),
    [
        ("auto", {}, {}),
        ("message", {}, {}),
        ("flag", {"prefix": True}, {}),
        ("continue_final_message", {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
async def test_a_beginning_is_a_last_assistant_message(
    four: Spoken, prefix: Any, in_message: dict[str, Any], in_body: dict[str, Any]
) -> None:
    await ask(at(four, prefix=prefix), Prompt(ASK.messages, "It is"))
    [body] = four.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "It is"} | in_message
    assert {name: body[name] for name in in_body} == in_body
    assert ("continue_final_message" in body) == bool(in_body)


async def test_a_prompt_without_messages_is_a_users_message(four: Spoken) -> None:
    await ask(at(four), Prompt(prefix="2 + 2 ="))
    assert four.bodies[0]["messages"] == [{"role": "user", "content": "2 + 2 ="}]


async def test_a_schema_is_a_response_format(four: Spoken) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    await ask(at(four), constraint=JsonSchema(schema))
    assert four.bodies[0]["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(EngineError, match=r"cannot keep a Regex.*transformers"):
        await ask(at(four), constraint=Regex("a+"))


async def test_fields_of_ones_own_cannot_turn_a_call_elsewhere(four: Spoken) -> None:
    """They come from callers of a gateway: nothing in them reaches litellm itself."""
    with speaking(lambda body: said("stolen")) as other:
        [c] = await ask(at(four), extra={"api_base": other.url, "base_url": other.url, "api_key": "x"})
    assert c.text == "4"
    assert other.bodies == []
    assert four.headers[0]["Authorization"] == f"Bearer {SECRET}"
    with pytest.raises(EngineError, match="reach only servers"):
        await ask(Litellm("anthropic/claude-sonnet-4-5", api_key_env="TEST_KEY"), extra={"x": 1})


# ---------------------------------------------------------------- what comes back


async def test_usage_cost_and_cached_tokens(four: Spoken) -> None:
    completions, usage = await at(four).generate(Generate(ASK, n=3), seed=1)
    assert len(completions) == 3
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.calls) == (10, 8, 21, 1)
    assert sum(c.n_tokens for c in completions) == 21
    assert 0 < usage.cost_usd < 1e-3


async def test_a_model_without_a_price_costs_nothing_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        speaking(lambda body: said("4", model="my-own-model")) as spoken,
        caplog.at_level(logging.WARNING, logger="abduce"),
    ):
        served = at(spoken, "openai/my-own-model")
        for _ in range(2):
            _, usage = await served.generate(Generate(ASK), seed=1)
            assert usage.cost_usd == 0
    assert [r.getMessage() for r in caplog.records if "price" in r.getMessage()] == [
        "litellm knows no price of openai/my-own-model: its calls count as costing nothing."
    ]


async def test_a_price_of_ones_own_counts_and_without_any_a_limit_in_money_is_refused(four: Spoken) -> None:
    assert Litellm("openai/gpt-4o-mini").priced() and not Litellm("openai/my-own-model").priced()
    own = at(four, "openai/my-own-model", usd_per_million=[100, 1000])
    assert own.priced()
    _, usage = await own.generate(Generate(ASK), seed=1)
    assert usage.cost_usd == pytest.approx(usage.input_tokens * 1e-4 + usage.output_tokens * 1e-3)
    for wrong in ([1], [1, -1], "12", 3):
        with pytest.raises(UsageError, match="usd_per_million"):
            at(four, usd_per_million=wrong)


async def test_a_refusal_is_what_was_said_and_a_filtered_answer_met_no_stop_mark(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def reply(body: dict[str, Any]) -> Any:
        message = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
        return (
            said(None, message=message)
            if body["model"] == "refusing"
            else said("We com", finish="content_filter")
        )

    with speaking(reply) as spoken, caplog.at_level(logging.WARNING, logger="abduce"):
        [refusing] = await ask(at(spoken, "openai/refusing"))
        filtering = at(spoken, "openai/filtering")
        for _ in range(2):
            [filtered] = await ask(filtering, sampling=Sampling(stop=("\n\n",)))
    assert refusing.text == "I can't help with that."
    assert (filtered.text, filtered.finish) == ("We com", "eos")
    assert sum("content filter" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize(
    ("texts", "told", "counts"),
    [
        (["We comp"], 5, [5]),  # the context was full
        (["We comp"], 0, [7]),
        (["We \ud83d"], 0, [4]),  # half a character
        (["x" * 900], 512, [512]),
        ([""], 512, [512]),  # all of it thought
        (["x" * 900, "x" * 900], 512, [512, 512]),  # llama.cpp counts one sample of several
    ],
)
def test_what_was_cut_is_counted_as_the_provider_counts_it(texts, told, counts) -> None:
    drawn = counted([Completion(text, finish="length") for text in texts], told, 512)
    assert [c.n_tokens for c in drawn] == counts


async def test_a_provider_that_ignores_n_is_asked_again_and_counted() -> None:
    with speaking(lambda body: said(f"seed {body['seed']}")) as spoken:
        served = at(spoken)
        completions, usage = await served.generate(Generate(ASK, n=4), seed=1)
        assert (len(completions), usage.calls, usage.output_tokens) == (4, 4, 28)
        assert len({c.text for c in completions}) == 4
        await served.generate(Generate(ASK, n=2), seed=1)
        assert [body.get("n", 1) for body in spoken.bodies] == [4, 1, 1, 1, 1, 1]  # it has learnt


async def test_tool_calls_are_written_into_the_text() -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    call = {"id": "c9", "type": "function", "function": function}
    message = {"role": "assistant", "content": "Let me add.", "tool_calls": [call]}
    with speaking(lambda body: said(None, finish="tool_calls", message=message)) as spoken:
        [c] = await ask(at(spoken), Prompt(ASK.messages, tools=(ADD,)), sampling=Sampling(stop=("\n",)))
    assert read(c.text) == ("Let me add.", (ToolCall("call_0", "add", '{"a": 1}'),))
    assert c.finish == "eos"


@pytest.mark.parametrize(
    ("text", "finish", "beside", "expected"),
    [
        ("a", "stop", {"stop_reason": "\n"}, ("a\n", "stop", "\n")),  # vLLM
        ("a", "stop", {"stop_reason": None}, ("a", "eos", "")),
        ("a", "stop", {"matched_stop": "END"}, ("aEND", "stop", "END")),  # SGLang
        ("a", "stop", {"matched_stop": 2}, ("a", "eos", "")),
        ("a", "stop", {}, ("a\n", "stop", "\n")),  # not told: the last mark
        ("aENDb", "stop", {}, ("aEND", "stop", "END")),  # a server that knows no marks
        ("a", "length", {}, ("a", "length", "")),
    ],
)
async def test_how_a_text_ended(text: str, finish: str, beside: Any, expected: tuple[str, str, str]) -> None:
    with speaking(lambda body: said(text, finish=finish, **beside)) as spoken:
        [c] = await ask(at(spoken), sampling=Sampling(stop=("END", "\n")))
    assert (c.text, c.finish, c.stop) == expected


async def test_log_probs() -> None:
    best = [{"token": "4", "logprob": -0.1, "bytes": None}, {"token": "5", "logprob": -3.0, "bytes": None}]
    content = [{"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": best}]
    with speaking(lambda body: said("4", logprobs={"content": content})) as spoken:
        [c] = await ask(at(spoken), logprobs=True, top_logprobs=2)
        assert (spoken.bodies[0]["logprobs"], spoken.bodies[0]["top_logprobs"]) == (True, 2)
    assert (c.logprobs, c.top_logprobs) == ((-0.1,), ((-0.1, -3.0),))


async def test_what_the_provider_cannot_is_not_claimed() -> None:
    claude = Litellm("anthropic/claude-sonnet-4-5", api_key_env="TEST_KEY")
    assert "logprobs" not in claude.capabilities
    with pytest.raises(EngineError, match="gives no log-probs"):
        await ask(claude, logprobs=True)


# ---------------------------------------------------------------- bad days


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, EngineError),
        (401, EngineError),
        (404, EngineError),
        (429, TransientError),
        (500, TransientError),
        (503, TransientError),
    ],
)
async def test_what_may_be_tried_again_and_what_not(status: int, kind: type[EngineError]) -> None:
    with speaking(lambda body: refused(status, f"Bad key {SECRET}")) as spoken:
        with pytest.raises(EngineError) as caught:
            await ask(at(spoken))
        assert type(caught.value) is kind
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        assert len(spoken.bodies) == 1  # litellm tries nothing again: that is the driver's


async def test_the_driver_tries_again() -> None:
    answers = iter([refused(503, "busy"), refused(429, "slow down"), said("4")])
    with speaking(lambda body: next(answers)) as spoken:

        def flow() -> Any:
            [reply] = yield [Generate(ASK)]
            return reply

        driver = Driver(Services({"policy": at(spoken)}), backoff_s=0.01)
        [c] = await driver.run(flow())
        assert c.text == "4"
        answers = iter([refused(401, "no")])
        reply = await Driver(Services({"policy": at(spoken)}), backoff_s=0.01).run(flow())
        assert isinstance(reply, Failure)


async def test_a_wait_that_is_asked_for_holds_for_all_calls() -> None:
    answers = iter([refused(429, "slow", **{"Retry-After": "1"}), said("4")])
    with speaking(lambda body: next(answers)) as spoken:
        served = at(spoken)
        with pytest.raises(TransientError):
            await ask(served)
        began = time.monotonic()
        await ask(served)
        assert time.monotonic() - began > 0.9


async def test_quota_and_long_waits_are_not_tried_again() -> None:
    spent = refused(429, "You exceeded your current quota, please check your plan")
    for answer in (refused(429, "insufficient_quota"), spent, refused(429, "slow", **{"Retry-After": "900"})):
        with speaking(lambda body, answer=answer: answer) as spoken:  # type: ignore[misc]
            with pytest.raises(EngineError) as caught:
                await ask(at(spoken))
            assert type(caught.value) is EngineError


async def test_a_server_that_is_not_there_and_one_that_is_slow() -> None:
    with pytest.raises(TransientError):
        await ask(Litellm("openai/x", api_base="http://127.0.0.1:9/v1"))

    def late(body: Any) -> Any:
        time.sleep(0.5)
        return said("4")

    with speaking(late) as spoken, pytest.raises(TransientError, match="Timeout"):
        await ask(at(spoken, timeout_s=0.1))


async def test_requests_per_minute(four: Spoken) -> None:
    served = at(four, requests_per_minute=2)
    served.gives()  # litellm is imported at the first call, which may take as long
    calls = [asyncio.ensure_future(ask(served)) for _ in range(4)]
    done, waiting = await asyncio.wait(calls, timeout=3.0)
    assert (len(done), len(waiting), len(four.bodies)) == (2, 2, 2)
    for call in waiting:
        call.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def test_one_engine_serves_several_loops_and_leaves_no_connection(four: Spoken) -> None:
    served = at(four)
    for _ in range(3):
        assert asyncio.run(ask(served))[0].text == "4"


async def test_a_cancelled_call_ends(four: Spoken) -> None:
    served = at(four)
    await ask(served)
    call = asyncio.ensure_future(ask(served))
    await asyncio.sleep(0.005)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await served.close()
    assert (await ask(served))[0].text == "4"


# ---------------------------------------------------------------- on a real model


async def test_the_small_model_as_a_hosted_one(hosted: Litellm) -> None:
    asked = Generate(ASK, n=2, sampling=Sampling(max_tokens=5), logprobs=True, top_logprobs=4)
    completions, usage = await hosted.generate(asked, seed=1)
    assert all(len(c.top_logprobs) == len(c.logprobs) == c.n_tokens == 5 for c in completions)
    assert usage.output_tokens == 10
    assert all(math.exp(best[0]) <= 1 for c in completions for best in c.top_logprobs)


async def test_the_real_server_keeps_a_schema(hosted: Litellm) -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"enum": [1, 2]}},
        "required": ["x"],
        "additionalProperties": False,
    }
    [c] = await ask(hosted, constraint=JsonSchema(schema), sampling=Sampling(max_tokens=60))
    assert c.text.replace(" ", "").replace("\n", "") in ('{"x":1}', '{"x":2}')


# ---------------------------------------------------------------- before anything is sent


def test_without_litellm_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'abduce\[hosted\]'"):
        assert Litellm("openai/x").capabilities


def test_a_compromised_release_is_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", lambda name: "1.107.0")
    with pytest.raises(UsageError, match="compromised"):
        assert Litellm("openai/x").capabilities


async def test_keys_and_models_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(UsageError, match="export TEST_KEY="):
        await Litellm("openai/x", api_key_env="TEST_KEY").ready()
    with pytest.raises(UsageError, match="no provider"):
        await Litellm("whatever").ready()
    with pytest.raises(UsageError, match="prefix cannot be"):
        engine({"engine": "litellm", "model": "openai/x", "prefix": "never"})
    with pytest.raises(UsageError, match="needs 'model'"):
        engine("litellm")


def test_making_one_imports_nothing_heavy() -> None:
    code = (
        "import sys, abduce; from abduce.serving import engine; engine('litellm:openai/x');"
        "assert not {'litellm', 'aiohttp', 'openai'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_is_printed(four: Spoken, capfd: pytest.CaptureFixture[str]) -> None:
    asyncio.run(ask(at(four)))
    with speaking(lambda body: refused(400, "no")) as spoken, pytest.raises(EngineError):
        asyncio.run(ask(at(spoken)))
    assert capfd.readouterr() == ("", "")

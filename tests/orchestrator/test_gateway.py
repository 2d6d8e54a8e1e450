"""The gateway through the official client: chats, streams, tools, forms, errors."""

import json
import logging
from dataclasses import dataclass

import pytest
from gateways import ASKED, Recorded, listening, openai, passing, recipe

from abduce.serving.constraints import JsonSchema
from abduce.serving.errors import EngineError
from abduce.serving.flow import Message, ToolCall, ToolSpec
from abduce.strategies.base import Policy
from abduce.strategies.policy import StepPolicy

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def varied(request, seed):
    return [f"The answer is {(seed + i) % 1000}." for i in range(request.n)]


async def test_a_chat():
    engine = Recorded()
    async with listening(recipe("cot", engine)) as served, served.client() as client:
        reply = await client.chat.completions.create(model="cot", **ASKED)
        assert reply.choices[0].message.content == "The answer is 56."
        assert reply.choices[0].finish_reason == "stop"
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
        assert reply.abduce["answers"] == ["56"] and reply.abduce["complete"]
        assert [model.id for model in (await client.models.list()).data] == ["cot"]
        assert (await client.models.retrieve("cot")).id == "cot"
    assert "step by step" in engine.requests[0].prompt.messages[-1].content


async def test_usage_counts_every_call_of_a_search():
    engine = Recorded({"VERDICT": "VERDICT: 7", "": "The answer is 56."})
    model = recipe("best", engine, "best_of_n", reward="judge", n=4)
    async with listening(model) as served, served.client() as client:
        reply = await client.chat.completions.create(model="best", **ASKED)
    spent = [
        engine._serve(r, engine._said(r, 0), engine.count_tokens(r.prompt)).usage for r in engine.requests
    ]
    assert len(spent) == 2
    assert reply.usage.prompt_tokens == sum(u.input_tokens for u in spent)
    assert reply.usage.completion_tokens == sum(u.output_tokens for u in spent)
    assert reply.abduce["calls"] == 2 and reply.abduce["reward_passes"] == 1


async def test_equal_seeds_give_equal_replies_and_a_seed_is_told_where_none_was_given():
    async with listening(recipe("cot", Recorded(varied))) as served, served.client() as client:

        async def ask(**more):
            return await client.chat.completions.create(model="cot", **ASKED, **more)

        free = await ask()
        texts = {(await ask(seed=free.abduce["seed"])).choices[0].message.content for _ in range(3)}
        assert texts == {free.choices[0].message.content}
        assert len({(await ask(seed=i)).choices[0].message.content for i in range(8)}) > 1
        first, three = await ask(seed=5), await ask(seed=5, n=3)
        assert [c.index for c in three.choices] == [0, 1, 2]
        assert three.choices[0].message.content == first.choices[0].message.content
        assert len({c.message.content for c in three.choices}) > 1
        assert three.usage.completion_tokens == 3 * first.usage.completion_tokens


async def test_sampling_stop_and_unknown_fields_reach_the_engine():
    engine = Recorded()
    async with listening(recipe("cot", engine)) as served, served.client() as client:
        await client.chat.completions.create(
            model="cot",
            **ASKED,
            temperature=0.25,
            top_p=0.5,
            max_tokens=7,
            stop=["END"],
            presence_penalty=0.5,
            user="me",
            extra_body={"top_k": 3, "min_p": 0.1},
        )
    [request, *_] = engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.25, 0.5, 3)
    assert sampling.max_tokens == 7 and "END" in sampling.stop
    assert request.extra == {"min_p": 0.1, "presence_penalty": 0.5}


@dataclass(frozen=True, kw_only=True)
class Wrapped(Policy):
    """A policy that draws through another."""

    policy: StepPolicy

    def propose(self, states, counts, seeds):
        return (yield from self.policy.propose(states, counts, seeds))

    def terminal(self, state):
        return self.policy.terminal(state)

    def answer(self, state):
        return self.policy.answer(state)


async def test_sampling_reaches_a_policy_within_a_policy_and_is_refused_where_there_is_none():
    engine = Recorded()
    models = (
        recipe("wrapped", engine, policy=Wrapped(policy=StepPolicy())),
        recipe("none", engine, policy=Policy()),
    )
    async with listening(*models) as served, served.client() as client:
        await client.chat.completions.create(model="wrapped", **ASKED, temperature=0.25)
        assert engine.requests[0].sampling.temperature == 0.25
        with pytest.raises(openai.BadRequestError, match="draws in a way of its own"):
            await client.chat.completions.create(model="none", **ASKED, temperature=0.25)


async def test_a_conversation_with_tools_there_and_back():
    engine = Recorded(
        lambda request, seed: "It is 3." if request.prompt.messages[-1].role == "tool" else CALL
    )
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Add 1 and 2."}]
    async with (
        listening(recipe("vote", engine, "self_consistency", n=4)) as served,
        served.client() as client,
    ):
        first = await client.chat.completions.create(model="vote", messages=talk, tools=[TOOL])
        said = first.choices[0]
        assert said.finish_reason == "tool_calls" and said.message.content is None
        [call] = said.message.tool_calls
        assert call.function.name == "add" and json.loads(call.function.arguments) == {"a": 1}
        talk += [said.message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "3"}]
        last = await client.chat.completions.create(model="vote", messages=talk, tools=[TOOL])
        assert last.choices[0].message.content == "It is 3." and not last.choices[0].message.tool_calls
    prompt = engine.requests[-1].prompt
    assert prompt.tools == (ToolSpec("add", "Adds.", TOOL["function"]["parameters"]),)
    assert prompt.messages[0] == Message("system", "Be brief.")
    assert prompt.messages[2].tool_calls == (ToolCall(call.id, "add", '{"a": 1}'),)
    assert prompt.messages[3] == Message("tool", "3", (), call.id)


async def test_tool_choice():
    engine = Recorded(lambda request, seed: CALL if request.prompt.tools else "No tools.")
    async with listening(passing("plain", engine)) as served, served.client() as client:

        async def ask(choice, tools=(TOOL,)):
            return await client.chat.completions.create(
                model="plain", **ASKED, tools=list(tools), tool_choice=choice
            )

        none = await ask("none")
        assert none.choices[0].message.content == "No tools."
        assert (await ask("required")).choices[0].message.tool_calls
        assert engine.requests[-1].extra["tool_choice"] == "required"
        other = {"type": "function", "function": {"name": "mul"}}
        named = {"type": "function", "function": {"name": "add"}}
        await ask(named, [TOOL, other])
        assert [tool.name for tool in engine.requests[-1].prompt.tools] == ["add"]
        with pytest.raises(openai.BadRequestError, match="'mul', which is not in tools"):
            await ask(other)


async def test_a_demanded_call_that_no_candidate_makes_is_an_error():
    async with listening(passing("plain", Recorded("Words."))) as served, served.client() as client:
        with pytest.raises(openai.InternalServerError, match="called no tool"):
            await client.chat.completions.create(model="plain", **ASKED, tools=[TOOL], tool_choice="required")


@pytest.mark.parametrize("strategy", ["self_consistency", "chain_of_thought", "beam"])
async def test_a_json_schema(strategy):
    engine = Recorded('{"n": 56}')
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    named = {"name": "out", "schema": schema, "strict": True}
    async with listening(recipe("json", engine, strategy)) as served, served.client() as client:
        reply = await client.chat.completions.create(
            model="json", **ASKED, response_format={"type": "json_schema", "json_schema": named}
        )
        assert json.loads(reply.choices[0].message.content) == {"n": 56}
        assert engine.requests[0].constraint == JsonSchema(schema)
        await client.chat.completions.create(model="json", **ASKED, response_format={"type": "json_object"})
        assert engine.requests[-1].constraint == JsonSchema({"type": "object"})


async def test_an_answer_that_ran_into_its_length_says_so():
    async with (
        listening(passing("plain", Recorded("one two three four"))) as served,
        served.client() as client,
    ):
        reply = await client.chat.completions.create(model="plain", **ASKED, max_completion_tokens=2)
        assert reply.choices[0].finish_reason == "length"
        assert reply.choices[0].message.content == "one two"


async def test_log_probs_of_a_single_sample():
    models = [passing("plain", Recorded()), recipe("vote", Recorded(), "self_consistency")]
    async with listening(*models) as served, served.client() as client:
        reply = await client.chat.completions.create(model="plain", **ASKED, logprobs=True)
        told = reply.choices[0].logprobs.content
        assert len(told) == 4 and told[0].logprob < 0 and told[0].token.startswith("token_id:")
        with pytest.raises(openai.BadRequestError, match="vote searches"):
            await client.chat.completions.create(model="vote", **ASKED, logprobs=True)
        with pytest.raises(openai.BadRequestError, match="top_logprobs"):
            await client.chat.completions.create(model="plain", **ASKED, logprobs=True, top_logprobs=2)


async def test_text_completions():
    engine = Recorded(" 56")
    models = passing("plain", engine), recipe("cot", engine)
    async with listening(*models) as served, served.client() as client:
        reply = await client.completions.create(model="plain", prompt="7 x 8 = ", max_tokens=5)
        assert reply.choices[0].text == " 56" and reply.object == "text_completion"
        assert engine.requests[-1].prompt.prefix == "7 x 8 = " and not engine.requests[-1].prompt.messages
        await client.completions.create(model="cot", prompt="7 x 8 = ")
        assert "step by step" in engine.requests[-1].prompt.messages[0].content
        chunks = [c async for c in await client.completions.create(model="plain", prompt="7", stream=True)]
        assert "".join(c.choices[0].text for c in chunks) == " 56"


# ---------------------------------------------------------------- streams


async def streamed(client, **asked):
    stream = await client.chat.completions.create(**asked, stream=True)
    return [chunk async for chunk in stream]


async def test_a_stream_tells_role_progress_answer_reason_and_usage():
    engine = Recorded({"VERDICT": "VERDICT: 7", "": "The answer is fifty-six, which is 56. " * 4})
    model = recipe("best", engine, "best_of_n", reward="judge", n=2)
    async with listening(model) as served, served.client() as client:
        whole = await client.chat.completions.create(model="best", **ASKED, seed=1)
        options = {"include_usage": True}
        chunks = await streamed(client, model="best", **ASKED, seed=1, stream_options=options)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    answer = [delta.content for delta in deltas if delta.content]
    assert len(answer) > 1 and "".join(answer) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1
    last = next(c for c in chunks if c.choices and c.choices[0].finish_reason)
    assert last.abduce["answers"] == whole.abduce["answers"] and last.abduce["seed"] == 1


async def test_progress_comes_while_the_search_goes_on_and_the_first_event_before_its_first_reply():
    engine = Recorded({"VERDICT": "VERDICT: 7", "": "The answer is 56."}, latency_s=0.15)
    model = recipe("best", engine, "best_of_n", reward="judge", n=2)
    async with listening(model) as served, served.client() as client:
        seen = []
        async for chunk in await client.chat.completions.create(model="best", **ASKED, stream=True):
            delta = chunk.choices[0].delta
            seen.append((len(engine.began), engine.running, delta))
    n_asked, running, first = seen[0]
    assert first.role == "assistant" and n_asked <= 1
    thinking = [(n, d.reasoning_content) for n, _, d in seen if getattr(d, "reasoning_content", None)]
    assert thinking and "1 calls" in thinking[0][1]
    assert thinking[0][0] < len(engine.began) or running  # told before the search had ended


async def test_signs_of_life_where_nothing_happens():
    slow = recipe("slow", Recorded(latency_s=0.3))
    async with listening(slow, limits={"heartbeat_s": 0.05}) as served, served.client() as client:
        body = {"model": "slow", **ASKED, "stream": True}
        async with served.session.post(served.url + "/v1/chat/completions", json=body) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            text = await response.text()
        assert text.count(": alive\n\n") >= 2 and text.endswith("data: [DONE]\n\n")
        assert await streamed(client, **{k: v for k, v in body.items() if k != "stream"})


async def test_streams_of_several_answers_and_of_calls():
    async with (
        listening(passing("plain", Recorded(varied)), passing("calls", Recorded(CALL))) as served,
        served.client() as client,
    ):
        texts = {0: "", 1: "", 2: ""}
        for chunk in await streamed(client, model="plain", **ASKED, n=3, seed=4):
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        whole = await client.chat.completions.create(model="plain", **ASKED, n=3, seed=4)
        assert list(texts.values()) == [c.message.content for c in whole.choices]
        chunks = await streamed(client, model="calls", **ASKED, tools=[TOOL])
        [call] = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
        assert call.function.name == "add" and chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_fault_in_mid_stream_is_an_error_event(caplog):
    caplog.set_level(logging.INFO, logger="abduce.gateway")

    def dies(request, seed):
        raise EngineError("the engine has died")

    async with (
        listening(passing("dead", Recorded(dies, latency_s=0.05))) as served,
        served.client() as client,
    ):
        with pytest.raises(openai.APIError, match="the engine has died"):
            await streamed(client, model="dead", **ASKED)
        assert caplog.messages[-1].startswith("502 - dead ")  # sent with 200, and logged as what it was
        with pytest.raises(openai.InternalServerError, match="the engine has died") as caught:
            await client.chat.completions.create(model="dead", **ASKED)
        assert caught.value.status_code == 502
        with pytest.raises(openai.BadRequestError, match=r"refuses the request: .*has died"):
            await client.chat.completions.create(model="dead", **ASKED, extra_body={"odd": 1})


# ---------------------------------------------------------------- mistakes

GOOD = {"model": "plain", **ASKED}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
DEEP = b"[" * 100 + b"]" * 100
WRONG = [
    (b'{"model": "plain", "messages": [], "x": ' + DEEP + b"}", "64 levels", None),
    (b"{", "no JSON", None),
    (b"[]", "JSON object", None),
    (b'{"model": "plain", "messages": [{"role": "user", "content": "\\ud800"}]}', "no JSON", None),
    (b"[" * 100_000, "no JSON", None),
    ({"model": "plain"}, "messages is missing", "messages"),
    ({**GOOD, "messages": []}, "messages", "messages"),
    ({**GOOD, "messages": [{"role": "system", "content": "x"}]}, "last user message", "messages"),
    ({**GOOD, "messages": [{"role": "user", "content": " "}]}, "last user message", "messages"),
    (
        {**GOOD, "messages": [{"role": "user", "content": [IMAGE]}]},
        "type 'image_url'",
        "messages.0.content.0",
    ),
    ({**GOOD, "messages": [{"role": "usr", "content": "x"}]}, "'usr'", "messages.0.role"),
    ({**GOOD, "messages": [*ASKED["messages"], {"role": "tool", "content": "x"}]}, "tool_call_id", None),
    ({**GOOD, "temperature": 3}, "less than or equal to 2", "temperature"),
    ({**GOOD, "temperature": "1"}, "valid number", "temperature"),
    ({**GOOD, "temperature": True}, "valid number", "temperature"),
    ({**GOOD, "max_tokens": 0}, "greater than or equal to 1", "max_tokens"),
    ({**GOOD, "n": 17}, "less than or equal to 16", "n"),
    ({**GOOD, "n": 2, "logprobs": True}, "n = 1", "logprobs"),
    ({**GOOD, "stop": [""]}, "stop text must not be empty", "stop"),
    ({**GOOD, "stop": 3}, "stop", "stop"),
    ({**GOOD, "tool_choice": "required"}, "no tools", "tool_choice"),
    ({**GOOD, "tool_choice": "maybe"}, "tool_choice", "tool_choice"),
    ({**GOOD, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "match pattern", None),
    ({**GOOD, "functions": [{}]}, "Write tools", "functions"),
    ({**GOOD, "response_format": {"type": "json_schema"}}, "json_schema.schema", None),
    ({**GOOD, "response_format": {"type": "json_object"}, "tools": [TOOL]}, "not both", None),
    ({**GOOD, "abduce": {"budget": "8 apples"}}, "Cannot read the budget", "abduce.budget"),
    ({**GOOD, "abduce": {"budget": {"tokns": 3}}}, "Did you mean 'tokens'", "abduce.budget"),
    ({**GOOD, "abduce": {"particles": 3}}, "abduce.particles", "abduce.particles"),
]


@pytest.mark.parametrize(("body", "message", "param"), WRONG, ids=range(len(WRONG)))
async def test_bad_input_is_a_400_that_says_what_is_wrong(body, message, param):
    async with listening(passing("plain", Recorded())) as served:
        status, told, _ = await served.post(body=body)
    assert status == 400
    assert message in told["error"]["message"]
    assert told["error"]["type"] == "invalid_request_error"
    assert param is None or told["error"]["param"] == param


async def test_other_mistakes_have_their_own_status_and_the_same_shape():
    async with listening(passing("plain", Recorded()), limits={"body_bytes": 1000}) as served:
        status, told, _ = await served.post(body={**GOOD, "model": "plane"})
        assert status == 404 and told["error"]["code"] == "model_not_found" and "Known: plain" in str(told)
        status, told, _ = await served.post(body={**GOOD, "user": "x" * 2000})
        assert status == 413 and told["error"]["message"]
        status, told, _ = await served.post(body=GOOD, **{"Content-Type": "text/plain"})
        assert status == 415 and "application/json" in told["error"]["message"]
        status, told, _ = await served.post("/v1/embeddings", GOOD)
        assert status == 404 and "/openapi.json" in told["error"]["message"]
        status, text = await served.get("/v1/chat/completions")
        assert status == 405 and "error" in json.loads(text)


async def test_an_engine_that_cannot_keep_a_form_is_a_400_also_on_a_stream():
    engine = Recorded()
    vars(engine)["capabilities"] = frozenset({"generate"})
    form = {"response_format": {"type": "json_object"}}
    async with listening(passing("plain", engine)) as served:
        for stream in (False, True):
            status, told, _ = await served.post(body={**GOOD, **form, "stream": stream})
            assert status == 400 and "cannot hold an answer to JSON" in told["error"]["message"]
        status, told, _ = await served.post(body={**GOOD, "logprobs": True})
        assert status == 400 and "logprobs" in told["error"]["message"]


async def test_a_fault_of_ours_is_a_500_without_a_traceback(caplog):
    def bug(request, seed):
        raise SystemError("secret path")

    class Buggy:
        def solve(self, task, *, seed):
            raise ZeroDivisionError("secret path")
            yield

    async with listening(recipe("bug", Recorded(bug), Buggy())) as served:
        status, told, _ = await served.post(body={**GOOD, "model": "bug"})
    assert status == 500 and "secret" not in json.dumps(told) and "Traceback" not in json.dumps(told)
    assert "secret path" in caplog.text


async def test_a_budget_can_be_lowered_and_not_raised():
    engine = Recorded(varied)
    model = recipe("best", engine, "self_consistency", n=8, budget="60 tokens")
    async with listening(model) as served:
        _, whole, _ = await served.post(body={**GOOD, "model": "best", "abduce": {"budget": "1M tokens"}})
        assert whole["usage"]["total_tokens"] <= 60 + 512
        _, less, _ = await served.post(body={**GOOD, "model": "best", "abduce": {"budget": {"calls": 0}}})
        assert less["abduce"]["complete"] is False and "calls" in less["abduce"]["stopped"]
        assert less["choices"][0]["finish_reason"] == "length"

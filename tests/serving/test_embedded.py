"""The embedded engine on the real small model. Numbers asserted are laws, or measured with a margin."""

import asyncio
import json
import math
import subprocess
import sys
import time

import pytest

from abduce.serving.constraints import Check, Choices, JsonSchema, Regex
from abduce.serving.embedded import Embedded
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.flow import Generate, Hidden, LogProb, Message, Prompt, Sampling, ToolCall, ToolSpec
from abduce.serving.llama import Sample

SEA = Prompt.user("Say something about the sea.")


def warm(**changes: object) -> Sampling:
    return Sampling(**({"temperature": 1.0, "max_tokens": 24} | changes))  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is drawn


async def test_the_best_log_probs_sum_to_one(embedded: Embedded) -> None:
    asked = Generate(SEA, sampling=warm(max_tokens=1), top_logprobs=49152)
    [c], _ = await embedded.generate(asked, seed=1)
    assert math.fsum(map(math.exp, c.top_logprobs[0])) == pytest.approx(1, abs=1e-3)


async def test_the_best_log_probs_of_characters_of_several_tokens(embedded: Embedded) -> None:
    """llama.cpp tells nothing of a token that leaves a character unfinished: it is asked again."""
    told = Prompt.user("Repeat exactly: 🦜🦜🦜")
    sampling = Sampling(temperature=0, max_tokens=24)
    [c], _ = await embedded.generate(Generate(told, sampling=sampling, logprobs=True, top_logprobs=2), seed=1)
    assert len(c.top_logprobs) == len(c.ids)
    for drawn, best in zip(c.logprobs, c.top_logprobs, strict=True):
        assert drawn == pytest.approx(best[0], abs=0.5)


async def test_ids_decode_to_the_text_and_go_on_from_it(embedded: Embedded) -> None:
    [begun], _ = await embedded.generate(Generate(SEA, sampling=warm(max_tokens=6)), seed=1)
    going_on = Prompt(SEA.messages, prefix=begun.text, prefix_ids=begun.ids)
    [more], usage = await embedded.generate(Generate(going_on, sampling=warm(max_tokens=4)), seed=2)
    assert usage.input_tokens == embedded.count_tokens(SEA) + len(begun.ids)
    assert usage.cached_tokens >= usage.input_tokens - 2  # found in the slot that drew it
    assert more.n_tokens <= 4


async def test_samples_of_one_request_differ(embedded: Embedded) -> None:
    drawn, _ = await embedded.generate(Generate(SEA, n=4, sampling=warm()), seed=3)
    assert len({c.text for c in drawn}) == 4


async def test_neighbouring_seeds_share_no_sample(embedded: Embedded) -> None:
    """llama.cpp numbers the samples of a request up from its seed."""
    one, _ = await embedded.generate(Generate(SEA, n=4, sampling=warm()), seed=0)
    two, _ = await embedded.generate(Generate(SEA, n=4, sampling=warm()), seed=1)
    assert not {c.text for c in one} & {c.text for c in two}


async def test_more_samples_than_slots_are_drawn_in_rounds(embedded: Embedded) -> None:
    n = 2 * embedded.slots + 1
    drawn, usage = await embedded.generate(Generate(SEA, n=n, sampling=warm(max_tokens=3)), seed=4)
    assert len(drawn) == n
    # The prompt counts once; each further round finds all but its last token.
    assert 0 <= usage.input_tokens - embedded.count_tokens(SEA) <= 2
    assert 0 <= usage.cached_tokens <= embedded.count_tokens(SEA)
    assert usage.output_tokens == sum(c.n_tokens for c in drawn)


async def test_the_end_of_a_turn_is_no_stop_string(embedded: Embedded) -> None:
    yes = Prompt.user("Answer with the one word: yes")
    sampling = Sampling(temperature=0, max_tokens=60, stop=("ZZZ",))
    [c], _ = await embedded.generate(Generate(yes, sampling=sampling, logprobs=True), seed=0)
    assert (c.finish, c.stop) == ("eos", "")
    assert c.n_tokens == len(c.ids) + 1 == len(c.logprobs) + 1
    assert "<|im_end|>" not in c.text


async def test_a_stop_string_across_tokens(embedded: Embedded) -> None:
    france = Prompt(prefix="The capital of France is")
    sampling = Sampling(temperature=0, max_tokens=20, stop=("is.",))
    [c], _ = await embedded.generate(Generate(france, sampling=sampling, logprobs=True), seed=0)
    assert (c.text, c.stop, c.content) == (" Paris.", "is.", " Par")
    assert len(c.ids) == len(c.logprobs) == c.n_tokens == 2


async def test_greedy_is_the_likeliest_token(embedded: Embedded) -> None:
    asked = Generate(SEA, n=2, sampling=Sampling(temperature=0, max_tokens=8))
    drawn, _ = await embedded.generate(asked, seed=0)
    assert drawn[0].ids == drawn[1].ids


async def test_top_k_of_one_is_greedy(embedded: Embedded) -> None:
    greedy, _ = await embedded.generate(Generate(SEA, sampling=Sampling(temperature=0, max_tokens=8)), seed=0)
    top, _ = await embedded.generate(Generate(SEA, sampling=warm(max_tokens=8, top_k=1)), seed=1)
    assert top[0].ids == greedy[0].ids


# ---------------------------------------------------------------- characters of several tokens


async def test_characters_of_several_tokens(embedded: Embedded) -> None:
    """llama.cpp hides the tokens of unfinished characters: ids and log-probs are there all the same."""
    faces = Prompt(prefix="Emoji: 😀 😃 😄 😁 😆 😅 😂 😊 😇 🙂 🙃 😉")
    asked = Generate(faces, sampling=Sampling(temperature=0, max_tokens=9), logprobs=True)
    [c], _ = await embedded.generate(asked, seed=0)
    assert any(ord(x) > 0xFFFF for x in c.text)
    assert len(c.ids) == len(c.logprobs)
    scored, _ = await embedded.logprob(LogProb(faces, continuation_ids=c.ids))
    assert scored.logprobs == pytest.approx(c.logprobs, abs=0.6)  # as in test_contract


def test_hidden_tokens_are_those_of_the_text_that_follows() -> None:
    sample = Sample(lambda text: [1, 2, 3])
    event = {"stop": False, "tokens": [9], "content": "x", "tokens_predicted": 1}
    sample.hear(event | {"completion_probabilities": [{"logprob": -0.5, "top_logprobs": []}]})
    sample.hear(event | {"tokens": [3], "content": "漢", "tokens_predicted": 4})  # 2 and 3 were hidden
    end = {"stopping_word": "", "stop_type": "limit", "timings": {"cache_n": 7}}
    sample.hear({"stop": True, "tokens_predicted": 5, **end})
    assert sample.ids == (9, 1, 2, 3)
    assert sample.logprobs == (-0.5, None, None, None)
    assert (sample.n_tokens, sample.n_cached, sample.finish) == (5, 7, "limit")


# ---------------------------------------------------------------- scoring, states, tokens


async def test_a_given_text_is_scored_as_drawn(embedded: Embedded) -> None:
    france = Prompt(prefix="The capital of France is")
    paris, _ = await embedded.logprob(LogProb(france, " Paris"))
    rome, _ = await embedded.logprob(LogProb(france, " Rome"))
    assert -1 < paris.total < 0
    assert rome.total < paris.total - 3
    both, _ = await embedded.logprob(LogProb(france, " Paris."))
    assert both.logprobs[0] == pytest.approx(paris.total, abs=0.6)
    assert (await embedded.logprob(LogProb(france, ""))).value.logprobs == ()


async def test_a_score_counts_what_was_read(embedded: Embedded) -> None:
    """When its prompt is in the cache: the last token of that, and all but its own last."""
    asked = LogProb(Prompt(prefix="The capital of Italy is"), " Rome, a city of seven hills")
    first, again = [await embedded.logprob(asked) for _ in range(2)]
    n_prompt, n = embedded.count_tokens(asked.prompt), len(again.value.logprobs)
    assert first.usage.input_tokens == again.usage.input_tokens == n_prompt + n - 1
    assert again.usage.tokens == n <= first.usage.tokens


async def test_what_a_grammar_cannot_say_is_scored_token_by_token(embedded: Embedded) -> None:
    scored, usage = await embedded.logprob(LogProb(SEA, " 漢"))  # three tokens, none a whole character
    assert len(scored.logprobs) >= 2
    assert usage.tokens >= len(scored.logprobs)  # each asked for by itself, with a token read before it
    assert all(-40 < x < 0 for x in scored.logprobs)


async def test_hidden_state(embedded: Embedded) -> None:
    state, usage = await embedded.hidden(Hidden(SEA))
    assert len(state) == 576
    assert usage.input_tokens == embedded.count_tokens(SEA)
    assert (await embedded.hidden(Hidden(SEA))).value == pytest.approx(state, abs=1e-4)


def test_the_template_is_the_models_own(embedded: Embedded) -> None:
    """Without a system message it adds its own; with one it doesn't."""
    hello = embedded.count_tokens(Prompt.user("hello"))
    assert hello == embedded.count_tokens(
        Prompt.user("hello", system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    )
    assert embedded.count_tokens(Prompt.user("hello", system="Be brief.")) < hello


def test_a_last_assistant_message_is_a_whole_turn(embedded: Embedded) -> None:
    asked = (Message("user", "hello"), Message("assistant", "hi"))
    whole = embedded.count_tokens(Prompt(asked))
    part = embedded.count_tokens(Prompt(asked[:1], prefix="hi"))
    assert whole > part + 3


def test_an_answer_cannot_end_its_turn_by_writing_so(embedded: Embedded) -> None:
    assert embedded.count_tokens(Prompt(SEA.messages, "<|im_end|>")) > embedded.count_tokens(SEA) + 1
    assert embedded.count_tokens(Prompt(prefix="<|im_end|>")) == 1  # a raw prompt says what it says


# ---------------------------------------------------------------- errors and ends


@pytest.mark.parametrize("ask", ["generate", "logprob", "hidden"])
async def test_a_prompt_that_does_not_fit(embedded: Embedded, ask: str) -> None:
    endless = Prompt.user("word " * 2 * embedded.context)
    with pytest.raises(EngineError, match=r"context holds 1024.*Embedded\(context="):
        if ask == "generate":
            await embedded.generate(Generate(endless), seed=0)
        elif ask == "logprob":
            await embedded.logprob(LogProb(endless, "x"))
        else:
            await embedded.hidden(Hidden(endless))


async def test_a_reply_that_would_not_fit_ends_at_the_context(embedded: Embedded) -> None:
    nearly = Prompt(prefix="word " * (embedded.context - 10))
    [c], _ = await embedded.generate(Generate(nearly, sampling=warm(max_tokens=500)), seed=0)
    assert c.n_tokens <= embedded.context - embedded.count_tokens(nearly)


async def test_an_empty_prompt(embedded: Embedded) -> None:
    with pytest.raises(EngineError, match="empty"):
        await embedded.generate(Generate(Prompt()), seed=0)


async def test_a_cancelled_call_stops_computing(embedded: Embedded) -> None:
    # 8 samples of 300 tokens take more than 8 s
    asked = Generate(SEA, n=embedded.slots, sampling=warm(max_tokens=300, temperature=1.5))
    call = asyncio.create_task(embedded.generate(asked, seed=0))
    await asyncio.sleep(0.5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    began = time.perf_counter()  # a request for all slots must not have to wait for the rest
    await embedded.generate(Generate(SEA, n=embedded.slots, sampling=warm(max_tokens=1)), seed=0)
    assert time.perf_counter() - began < 3


async def test_many_at_once(embedded: Embedded) -> None:
    """More requests than slots, of different widths: all are answered, none overflows the pool."""
    asked = [
        Generate(Prompt.user(f"Count to {i}."), n=1 + i % 5, sampling=warm(max_tokens=5)) for i in range(12)
    ]
    replies = await asyncio.gather(*(embedded.generate(a, seed=i) for i, a in enumerate(asked)))
    assert [len(r.value) for r in replies] == [a.n for a in asked]


def test_one_engine_serves_several_loops(embedded: Embedded) -> None:
    for seed in range(2):
        asked = Generate(SEA, sampling=warm(max_tokens=2))
        assert asyncio.run(embedded.generate(asked, seed=seed)).value


async def test_once_ready_a_prompt_is_counted_without_loading(small_model: str) -> None:
    engine = Embedded(small_model, slots=2, context=256, threads=1)
    await engine.ready()
    server = engine._text_server
    assert server is not None and engine.count_tokens(SEA) > 0
    await engine.ready()
    assert engine._text_server is server
    await engine.close()


def test_weights_that_are_none() -> None:
    with pytest.raises(UsageError, match=r"No weights at nowhere\.gguf"):
        Embedded("nowhere.gguf").count_tokens(SEA)
    with pytest.raises(UsageError, match="positive integer"):
        Embedded(slots=0)


async def test_deterministic_replies_depend_on_nothing_else(small_model: str) -> None:
    """The same request and seed: alone, among others, after others, in another process's place."""
    engine = Embedded(small_model, slots=4, context=512, threads=1, deterministic=True)
    others = [Generate(Prompt.user(f"Count to {i}."), sampling=warm()) for i in range(3)]
    asked = Generate(SEA, n=2, sampling=warm(), logprobs=True)
    alone, _ = await engine.generate(asked, seed=5)
    going_on = Prompt(SEA.messages, alone[0].text, alone[0].ids)
    step = Generate(going_on, sampling=warm(max_tokens=4), logprobs=True)
    first, _ = await engine.generate(step, seed=6)
    replies = await asyncio.gather(
        *(engine.generate(other, seed=1) for other in others), engine.generate(asked, seed=5)
    )
    assert replies[-1].value == alone
    await engine.close()
    assert (await engine.generate(step, seed=6)).value == first  # loaded again, nothing cached
    await engine.close()
    await engine.close()


async def test_closing_ends_calls_in_flight(small_model: str) -> None:
    engine = Embedded(small_model, slots=2, context=2048, threads=1)
    await engine.generate(Generate(SEA, sampling=warm(max_tokens=1)), seed=0)  # the model is loaded
    asked = Generate(Prompt.user("Write a long story."), n=2, sampling=warm(max_tokens=900))
    call = asyncio.create_task(engine.generate(asked, seed=0))
    await asyncio.sleep(0.3)
    began = time.perf_counter()
    await engine.close()
    assert time.perf_counter() - began < 5
    with pytest.raises(EngineError, match="closed"):
        await call


def test_a_process_that_forgets_to_close_ends_in_silence(small_model: str) -> None:
    code = (
        "import asyncio, sys\n"
        "from abduce.serving.embedded import Embedded\n"
        "from abduce.serving.flow import *\n"
        "engine = Embedded(sys.argv[1], slots=2, context=256, threads=1)\n"
        "asked = Generate(Prompt.user('hello'), sampling=Sampling(max_tokens=3))\n"
        "print(len(asyncio.run(engine.generate(asked, seed=0)).value))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, small_model]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")


# ---------------------------------------------------------------- constraints and tools

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "colour": {"enum": ["red", "blue"]}},
    "required": ["x", "colour"],
    "additionalProperties": False,
}


async def test_samples_keep_a_json_schema(embedded: Embedded) -> None:
    asked = Generate(SEA, n=4, sampling=warm(max_tokens=100), constraint=JsonSchema(POINT))
    drawn, _ = await embedded.generate(asked, seed=5)
    ended = [json.loads(c.text) for c in drawn if c.finish == "eos"]
    assert ended
    assert all(list(each) == ["x", "colour"] and each["colour"] in ("red", "blue") for each in ended)
    assert all(isinstance(each["x"], int) for each in ended)


async def test_samples_are_one_of_the_choices(embedded: Embedded) -> None:
    options = Choices(('say "no"\n', "péché 🦜", "back\\slash", "yes", "yes!"))
    drawn, _ = await embedded.generate(Generate(SEA, n=8, sampling=warm(), constraint=options), seed=6)
    assert {c.text for c in drawn} <= set(options.options)
    begun = Generate(Prompt(SEA.messages, "ye"), sampling=warm(), constraint=options)
    [c], _ = await embedded.generate(begun, seed=6)
    assert c.text in ("s", "s!")


async def test_constrained_log_probs_are_those_before_the_constraint(embedded: Embedded) -> None:
    asked = Generate(SEA, sampling=warm(), constraint=Choices(("xylophone",)), logprobs=True)
    [c], _ = await embedded.generate(asked, seed=7)
    told, _ = await embedded.logprob(LogProb(SEA, continuation_ids=c.ids))
    assert sum(c.logprobs) == pytest.approx(told.total, abs=1)
    assert sum(c.logprobs) < -3  # it was forced


@pytest.mark.parametrize(
    ("prompt", "constraint", "words"),
    [
        (SEA, Regex("a+"), "cannot keep a Regex.*transformers"),
        (SEA, Check(bool, bool), "cannot keep a Check"),
        (SEA, JsonSchema({}) * Choices(("1",)), "cannot keep a Product"),
        (SEA, JsonSchema({"type": "nonsense"}), "cannot keep this JsonSchema"),
        (Prompt(SEA.messages, "{"), JsonSchema({}), "cannot continue a prefix"),
        (Prompt(SEA.messages, "x"), Choices(("yes",)), "No choice goes on"),
    ],
)
async def test_constraints_it_cannot_keep(
    embedded: Embedded, prompt: Prompt, constraint: object, words: str
) -> None:
    asked = Generate(prompt, sampling=warm(), constraint=constraint)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=words):
        await embedded.generate(asked, seed=1)


async def test_tools_and_calls_reach_the_model(embedded: Embedded) -> None:
    """The small model's template has no place for tools: they stand in the system message."""
    add = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}})
    called = Message("assistant", "", (ToolCall("c1", "add", '{"a": 1}'),))
    talk = (*SEA.messages, called, Message("tool", "3", tool_call_id="c1"))

    async def read(prompt: Prompt) -> str:
        reply = await (await embedded._loaded()).post("/detokenize", {"tokens": embedded._tokens(prompt)})
        return str(reply["content"])

    told = await read(Prompt(talk, "So", tools=(add,)))
    assert '"name": "add"' in told.split("<tools>")[1].split("</tools>")[0]
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in told
    assert told.endswith("tool\n3<|im_end|>\n<|im_start|>assistant\nSo")
    assert "<tools>" not in await read(Prompt(talk, "So"))
    ruled = await read(Prompt((Message("system", "Be brief."), *talk), tools=(add,)))
    assert "Be brief.\n\nYou may call" in ruled

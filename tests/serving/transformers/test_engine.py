"""The white-box engine on the small model. Skipped without torch: see CONTRIBUTING.md."""

import asyncio
import json
import math
import re
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from abduce.serving import engine  # noqa: E402
from abduce.serving.constraints import Check, Choices, Critic, JsonSchema, Regex  # noqa: E402
from abduce.serving.errors import EngineError, UsageError  # noqa: E402
from abduce.serving.flow import (  # noqa: E402
    Generate,
    Hidden,
    LogProb,
    Message,
    Prompt,
    Sampling,
    ToolCall,
    ToolSpec,
)
from abduce.serving.transformers import Transformers  # noqa: E402
from abduce.serving.transformers.decoding import Feed  # noqa: E402

QUESTION = Prompt.user("How many legs has a spider? Answer with one digit.")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def plain(**sampling):
    return Sampling(**{"temperature": 1.0, "max_tokens": 12, **sampling})


async def texts(served, asked, seed=0):
    return [c.text for c in (await served.generate(asked, seed=seed)).value]


def reference(served, ids):
    """log p after each token by the model's own forward."""
    model = served._both()[0]
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].double(), -1)


# ---------------------------------------------------------------- the model's own distribution


async def test_log_probs_are_those_of_the_models_plain_forward(white_box):
    asked = Generate(QUESTION, n=3, sampling=plain(temperature=0.7), logprobs=True, top_logprobs=3)
    drawn, _ = await white_box.generate(asked, seed=1)
    prompt = white_box._ids(QUESTION)
    for c in drawn:
        log_p = reference(white_box, prompt + c.ids)
        for i, token in enumerate(c.ids):
            row = log_p[len(prompt) - 1 + i]
            assert c.logprobs[i] == pytest.approx(float(row[token]), abs=1e-3)
            assert c.top_logprobs[i] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    told, _ = await white_box.logprob(LogProb(QUESTION, continuation_ids=drawn[0].ids))
    assert told.logprobs == pytest.approx(drawn[0].logprobs, abs=1e-3)


async def test_the_hidden_state_is_the_models_own(white_box):
    state, _ = await white_box.hidden(Hidden(QUESTION))
    model = white_box._both()[0]
    with torch.inference_mode():
        told = model(torch.tensor([white_box._ids(QUESTION)]), output_hidden_states=True)
    assert state == pytest.approx(told.hidden_states[-1][0, -1].tolist(), abs=1e-3)


async def test_an_attention_function_of_the_callers_is_what_the_model_runs(small_model, white_box):
    calls = []

    def loops(module, query, key, value, attention_mask, *, scaling, dropout=0.0, **_):
        calls.append(attention_mask.shape)
        group = query.shape[1] // key.shape[1]
        heads = []
        for h in range(query.shape[1]):
            scores = query[:, h] @ key[:, h // group].transpose(1, 2) * scaling + attention_mask[:, 0]
            heads.append(scores.softmax(-1) @ value[:, h // group])
        return torch.stack(heads, 2), None

    served = Transformers(small_model, device="cpu", attention=loops, slots=4)
    asked = Generate(QUESTION, n=3, sampling=plain(temperature=0.7), logprobs=True)
    ours, _ = await served.generate(asked, seed=1)
    theirs, _ = await white_box.generate(asked, seed=1)
    await served.close()
    assert calls
    assert all(len(shape) == 4 for shape in calls)
    assert [c.ids for c in ours] == [c.ids for c in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


# ---------------------------------------------------------------- many requests at once


async def test_requests_run_together_and_as_if_alone(white_box):
    asked = [Generate(Prompt.user(f"Say {word}."), n=2, sampling=plain()) for word in ("one", "two", "three")]
    alone = [await texts(white_box, each, seed) for seed, each in enumerate(asked)]
    beside = await asyncio.gather(*(texts(white_box, each, seed) for seed, each in enumerate(asked)))
    assert list(beside) == alone


async def test_deterministic_replies_are_equal_to_the_last_bit(small_model):
    served = Transformers(small_model, device="cpu", slots=4, deterministic=True)
    asked = Generate(QUESTION, n=2, sampling=plain(), logprobs=True)
    first, _ = await served.generate(asked, seed=1)
    others = [served.generate(Generate(Prompt.user("Hello"), sampling=plain()), seed=i) for i in range(2)]
    again, *_ = await asyncio.gather(served.generate(asked, seed=1), *others)
    await served.close()
    assert again.value == first


async def test_more_samples_than_slots_are_drawn_in_rounds(small_model):
    served = Transformers(small_model, device="cpu", slots=2, context=256)
    asked = Generate(QUESTION, n=5, sampling=plain(max_tokens=3))
    five, usage = await served.generate(asked, seed=4)
    assert len(five) == 5
    assert usage.output_tokens == sum(c.n_tokens for c in five)
    await served.close()


async def test_the_loop_goes_on_and_a_cancelled_request_makes_room(white_box):
    await white_box.ready()
    asked = Generate(QUESTION, n=8, sampling=plain(max_tokens=600))
    long = asyncio.create_task(white_box.generate(asked, seed=1))
    turns = 0
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 20
    assert not long.done()
    long.cancel()
    began = time.monotonic()
    assert await texts(white_box, Generate(QUESTION, n=8, sampling=plain(max_tokens=1)))
    assert time.monotonic() - began < 20  # 600 tokens of 8 samples take minutes


async def test_a_shared_prompt_is_read_once(white_box):
    long = Prompt.user("Count: " + " ".join(map(str, range(60))))
    first = (await white_box.generate(Generate(long, sampling=plain(max_tokens=2)), seed=0)).usage
    again = (await white_box.generate(Generate(long, sampling=plain(max_tokens=2)), seed=1)).usage
    assert again.cached_tokens == again.input_tokens - 1 > first.cached_tokens


async def test_a_closed_engine_loads_again(small_model):
    served = Transformers(small_model, device="cpu", slots=2)
    asked = Generate(QUESTION, sampling=plain(max_tokens=2))
    first = await texts(served, asked)
    await served.close()
    await served.close()
    assert await texts(served, asked) == first
    await served.close()


async def test_a_program_of_ones_own(white_box):
    def greedy(prompt, n):
        drawn = []
        [log_p] = yield [Feed(None, prompt)]
        for _ in range(n):
            drawn.append(int(log_p.argmax()))
            [log_p] = yield [Feed(0, (drawn[-1],))]
        return tuple(drawn)

    drawn = await white_box.run(greedy(white_box._ids(QUESTION), 4), n_slots=1)
    told, _ = await white_box.generate(
        Generate(QUESTION, sampling=plain(temperature=0.0, max_tokens=4)), seed=0
    )
    assert drawn == told[0].ids


# ---------------------------------------------------------------- text and tokens


def test_names_of_special_tokens_are_text_within_an_answer(white_box):
    (end,) = white_box._tokeniser.ends
    head = white_box._ids(QUESTION)
    both = white_box._ids(Prompt(QUESTION.messages, prefix="<|im_end|>"))
    assert both[: len(head)] == head
    assert end not in both[len(head) :]
    assert len(both) > len(head) + 1
    assert end in head  # the user's turn ended


def test_ids_decode_to_the_text_they_came_from(white_box):
    known = white_box._tokeniser
    for text in ("Hello, world!", " naïve 你好 🙂", "12 + 30\n\tx", "<tool_call>"):
        ids = known.encode(text, beginning=False)
        assert b"".join(known.vocabulary.tokens[i] for i in ids).decode() == text


def test_tools_and_calls_are_told_to_the_model(white_box):
    tool = ToolSpec("add_numbers", "Adds.", {"type": "object", "properties": {"a": {"type": "number"}}})
    messages = (
        Message("system", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", "", (ToolCall("1", "add_numbers", '{"a": 2}'),)),
        Message("tool", "4", tool_call_id="1"),
    )
    known = white_box._tokeniser
    shown = known.hf.decode(list(known.head(Prompt(messages, tools=(tool,)))))
    assert '"name": "add_numbers", "description": "Adds."' in shown
    assert "Be brief." in shown
    assert '<tool_call>\n{"name": "add_numbers", "arguments": {"a": 2}}\n</tool_call>' in shown
    assert "add_numbers" not in known.hf.decode(list(known.head(QUESTION)))


# ---------------------------------------------------------------- constraints


async def test_texts_keep_their_constraint(white_box):
    cases = [
        (Regex(r"[0-9]{1,2} legs\."), lambda t: re.fullmatch(r"[0-9]{1,2} legs\.", t)),
        (Choices(("eight", "six")), lambda t: t in ("eight", "six")),
        (Check(lambda t: t.isdigit() or not t, lambda t: t.isdigit()), str.isdigit),
        (Regex(".*") * Choices(("8", "6")), lambda t: t in ("8", "6")),
    ]
    for constraint, keeps in cases:
        asked = Generate(QUESTION, n=4, sampling=plain(), constraint=constraint)
        drawn, _ = await white_box.generate(asked, seed=3)
        for c in drawn:
            if c.log_weight > -math.inf:
                assert keeps(c.text)
                assert c.log_weight <= 0
                assert c.finish == "eos"
        assert any(c.log_weight > -math.inf for c in drawn)


async def test_json_keeps_its_schema(white_box):
    asked = Generate(
        Prompt.user('A person as JSON, such as {"name": "Ann", "age": 3}.'),
        n=4,
        sampling=plain(max_tokens=40),
        constraint=JsonSchema(PERSON),
    )
    alive = [c for c in (await white_box.generate(asked, seed=1)).value if c.log_weight > -math.inf]
    assert alive
    for c in alive:
        told = json.loads(c.text)
        assert isinstance(told["name"], str)
        assert isinstance(told["age"], int)


async def test_weights_are_proper_on_the_real_model(white_box):
    """E[w · 1{text}] is the model's probability of the text, over all the ways to write it, and its end."""
    known = white_box._tokeniser
    seven, ten = (known.encode(text, beginning=False) for text in ("7", "10"))
    assert len(seven) == 1
    assert len(ten) == 2  # each digit is a token: there is one way to write it
    p = {}
    for ids in (seven, ten):
        told, _ = await white_box.logprob(LogProb(QUESTION, continuation_ids=(*ids, *known.ends)))
        p[ids] = math.exp(told.total)
    asked = Generate(QUESTION, n=8, sampling=plain(max_tokens=4), constraint=Choices(("7", "10")))
    drawn = [c for seed in range(20) for c in (await white_box.generate(asked, seed=seed)).value]
    for ids, truth in p.items():
        w = torch.tensor([math.exp(c.log_weight) * (c.ids == ids) for c in drawn], dtype=torch.float64)
        assert abs(float(w.mean()) - truth) < 4 * float(w.std()) / math.sqrt(len(drawn))


async def test_masking_and_temperature_zero_weigh_nothing(small_model):
    served = Transformers(small_model, device="cpu", slots=4, context=256, constrained="mask")
    for temperature in (1.0, 0.0):
        asked = Generate(
            QUESTION, n=3, sampling=plain(temperature=temperature), constraint=Regex("[0-9]{1,2} legs")
        )
        for c in (await served.generate(asked, seed=3)).value:
            assert re.fullmatch("[0-9]{1,2} legs", c.text)
            assert c.log_weight == 0.0
    await served.close()


async def test_a_population_is_resampled_and_judged(small_model):
    served = Transformers(small_model, device="cpu", slots=4, context=256, resample_below=1.0)

    def twos(text):
        return 4.0 * text.count("2")

    digits = Regex("[12]{4}")
    written = {}
    for constraint in (digits, digits * Critic(twos, twos)):
        asked = Generate(QUESTION, n=4, sampling=plain(max_tokens=6), constraint=constraint)
        drawn = [c.text for seed in range(3) for c in (await served.generate(asked, seed=seed)).value]
        assert all(re.fullmatch("[12]{4}", text) for text in drawn)
        written[constraint] = "".join(drawn).count("2")
    unjudged, judged = written.values()
    assert judged > 1.2 * unjudged
    with pytest.raises(EngineError, match="slots=5"):
        await served.generate(Generate(QUESTION, n=5, constraint=Regex("a")), seed=0)
    await served.close()


async def test_a_constraint_holds_for_the_whole_turn(white_box):
    begun = Prompt(QUESTION.messages, prefix="eigh")
    asked = Generate(begun, sampling=plain(), constraint=Choices(("eight", "six")))
    drawn, _ = await white_box.generate(asked, seed=1)
    assert drawn[0].text == "t"
    by_ids = Prompt(QUESTION.messages, "si", white_box._tokeniser.encode("si", beginning=False))
    drawn, _ = await white_box.generate(
        Generate(by_ids, sampling=plain(), constraint=Choices(("eight", "six"))), seed=1
    )
    assert drawn[0].text == "x"
    with pytest.raises(EngineError, match="breaks the constraint"):
        await white_box.generate(
            Generate(Prompt(QUESTION.messages, "no"), constraint=Choices(("yes",))), seed=1
        )


async def test_constraints_that_cannot_be_kept_are_refused_before_anything_is_drawn(white_box):
    for constraint in (Regex("(a"), Choices(()), JsonSchema({"type": "integer", "minimum": 2, "maximum": 1})):
        with pytest.raises(UsageError):
            await white_box.generate(Generate(QUESTION, constraint=constraint), seed=0)


async def test_a_slow_check_is_an_error(small_model):
    served = Transformers(small_model, device="cpu", slots=2, context=256, check_timeout_s=0.05)
    slow = Check(lambda text: not text or time.sleep(0.5) or True, lambda text: True)
    with pytest.raises(EngineError, match="check_timeout_s"):
        await served.generate(Generate(QUESTION, constraint=slow), seed=0)
    assert await texts(served, Generate(QUESTION, sampling=plain(max_tokens=1)))
    await served.close()


# ---------------------------------------------------------------- mistakes


async def test_what_does_not_fit_is_refused(small_model):
    served = Transformers(small_model, device="cpu", slots=2, context=16)
    with pytest.raises(EngineError, match="context of 16"):
        await served.generate(Generate(QUESTION), seed=0)
    with pytest.raises(EngineError, match="at least 1"):
        await served.generate(Generate(QUESTION, n=0), seed=0)
    with pytest.raises(EngineError, match="outside"):
        await served.logprob(LogProb(Prompt(prefix="a"), continuation_ids=(10**7,)))
    with pytest.raises(EngineError, match="empty"):
        await served.generate(Generate(Prompt()), seed=0)
    await served.close()


@pytest.mark.parametrize(
    "words",
    [
        {"slots": 0},
        {"context": -1},
        {"constrained": "hope"},
        {"resample_below": 2.0},
        {"max_rejects": 1},
        {"check_timeout_s": 0},
    ],
)
def test_parameters_out_of_range_are_refused(words):
    with pytest.raises(UsageError, match=next(iter(words))):
        Transformers(**words)


async def test_models_that_are_none_are_refused(tmp_path):
    for spec, told in (
        (tmp_path / "no.gguf", "No weights"),
        (tmp_path, "config.json"),
        ("nowhere", "No model"),
    ):
        with pytest.raises(UsageError, match=told):
            await engine({"engine": "transformers", "model": spec}).ready()


async def test_a_dtype_that_is_none_is_refused(small_model):
    with pytest.raises(UsageError, match="bfloat16"):
        await Transformers(small_model, dtype="float99").ready()

"""The parts of the SGLang engine that need no server: what is shared, cut, sent and estimated."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.serving.constraints import Choices, Regex
from abduce.serving.errors import EngineError, TransientError, UsageError
from abduce.serving.flow import Message, Prompt, Sampling, ToolCall, ToolSpec
from abduce.serving.sglang import Sglang, grammars, launch, scoring, wire
from abduce.serving.sglang.once import Once
from abduce.serving.sglang.prefixes import Prefixes
from abduce.serving.sglang.tokens import Conversation, Tokens, upper_estimate

# ---------------------------------------------------------------- shared answers


async def test_askers_at_the_same_time_share_one_answer() -> None:
    once, found = Once(), 0

    async def find() -> int:
        nonlocal found
        await asyncio.sleep(0)
        found += 1
        return found

    assert await asyncio.gather(*(once.get("x", find) for _ in range(5))) == [1] * 5
    assert await once.get("x", find) == 2  # later is later


async def test_nobody_suffers_anothers_cancellation() -> None:
    once, began = Once(), asyncio.Event()

    async def find() -> str:
        began.set()
        await asyncio.sleep(0.01)
        return "found"

    first = asyncio.create_task(once.get("x", find))
    await began.wait()
    second = asyncio.create_task(once.get("x", find))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "found"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_failure_is_each_askers_own() -> None:
    once, asked = Once(), 0

    async def fail() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        raise EngineError(f"{asked}")

    ended = await asyncio.gather(*(once.get("x", fail) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in ended] == ["1", "2", "3"]


# ---------------------------------------------------------------- prompts sent together


class Reader:
    """Counts the prompts it is told to read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, ...]] = []

    async def __call__(self, ids: tuple[int, ...]) -> int:
        self.read.append(ids)
        await asyncio.sleep(0.001)
        return 7


async def test_a_prompt_asked_for_several_times_at_once_is_read_once() -> None:
    reader = Reader()
    prefixes = Prefixes(reader)
    told = await asyncio.gather(*(prefixes.read((1, 2), 1) for _ in range(3)), prefixes.read((3,), 1))
    assert reader.read == [(1, 2)]
    assert sorted(map(str, told)) == ["7", "None", "None", "None"]  # it counts once


async def test_several_samples_of_one_call_are_several() -> None:
    reader = Reader()
    prefixes = Prefixes(reader)
    assert await prefixes.read((1, 2), 2) == 7
    assert await prefixes.read((3, 4), 1) is None
    prefixes.add((1, 2), [(5,)])
    assert await prefixes.read((1, 2), 9) is None
    assert await prefixes.read((1, 2, 5), 9) is None  # what was drawn is in the cache
    prefixes.forget()
    assert await prefixes.read((1, 2), 9) == 7
    assert reader.read == [(1, 2), (1, 2)]


async def test_who_waits_for_a_reading_goes_on_when_it_is_cancelled() -> None:
    async def never(ids: tuple[int, ...]) -> int:
        await asyncio.sleep(60)
        return 0

    prefixes = Prefixes(never)
    first, second = (asyncio.create_task(prefixes.read((1,), 1)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert await asyncio.wait_for(second, 1) is None


async def test_a_new_prompt_is_gone_on_with_by_one_first_and_then_by_all() -> None:
    prefixes, at_once, most = Prefixes(Reader()), 0, []

    async def score(text: int, fails: bool = False) -> None:
        nonlocal at_once
        async with prefixes.turn((1, 2)):
            at_once += 1
            most.append(at_once)
            await asyncio.sleep(0.001)
            at_once -= 1
            if fails:
                raise EngineError("no")
        prefixes.add((1, 2), [(text,)])

    async def together(first_fails: bool) -> list[int]:
        most.clear()
        calls = [score(0, fails=first_fails), *(score(text) for text in range(1, 4))]
        await asyncio.gather(*calls, return_exceptions=True)
        return most

    assert await together(first_fails=True) == [1, 1, 2, 3]  # nobody waits for a second failure
    prefixes.forget()
    assert await together(first_fails=False) == [1, 1, 2, 3]
    assert await together(first_fails=False) == [1, 2, 3, 4]  # the prompt is known
    assert await prefixes.read((1, 2, 3), 9) is None


# ---------------------------------------------------------------- tokens

NAMES = ("<|a|>", "<|ab|>")


def toy(conversation: Conversation[Any]) -> Any:
    """Holds a conversation as a tokeniser of letters with two special tokens would: ids are code points,
    those of special tokens are negative."""
    ask = None
    while True:
        try:
            route, body = conversation.send(ask)
            if route == "/v1/detokenize":
                rows = body["tokens"]
                flat = rows and not isinstance(rows[0], int)
                shown = [_say(row, body["skip_special_tokens"]) for row in (rows if flat else [rows])]
                ask = {"text": shown if flat else shown[0]}
            else:
                said = body.get("prompt") or "".join(
                    f"{m['role']}:{m['content']}\n" for m in body["messages"]
                )
                ids = [_ids(each) for each in said] if isinstance(said, list) else _ids(said)
                ask = {"tokens": ids}
        except StopIteration as end:
            return end.value


def _say(ids: list[int], skip: bool) -> str:
    return "".join(chr(i) if i >= 0 else "" if skip else NAMES[-i - 1] for i in ids)


def _ids(text: str) -> list[int]:
    return list(_read(text))


def _read(text: str) -> Iterator[int]:
    while text:
        special = next((n for n, name in enumerate(NAMES) if text.startswith(name)), None)
        yield ord(text[0]) if special is None else -special - 1
        text = text[1:] if special is None else text.removeprefix(NAMES[special])


@given(st.lists(st.sampled_from([*NAMES, "<", "|", "a", "b", ">", "ä"]), max_size=12).map("".join))
def test_within_an_answer_special_tokens_are_text(text: str) -> None:
    ids = toy(Tokens().ids(Prompt((Message("user", "q"),), text)))
    head = toy(Tokens().ids(Prompt((Message("user", "q"),))))
    assert ids[: len(head)] == head
    rest = ids[len(head) :]
    assert min(rest, default=0) >= 0
    assert _say(list(rest), skip=True) == text


def test_a_raw_prompt_says_what_it_says() -> None:
    assert toy(Tokens().ids(Prompt(prefix="x<|a|>"))) == (ord("x"), -1)


def test_what_was_asked_once_is_known() -> None:
    tokens = Tokens()
    prompt = Prompt((Message("user", "q"),), "so")
    assert tokens.known(prompt) is None
    assert tokens.known(prompt) is None
    assert toy(tokens.ids(prompt)) == tokens.known(prompt) == toy(tokens.ids(prompt))
    other = Prompt(prompt.messages, "other", (1, 2))
    assert tokens.known(other) == (*toy(tokens.ids(Prompt(prompt.messages))), 1, 2)  # ids go before text


def test_tool_calls_are_shown_to_the_model() -> None:
    asked = Message("assistant", "Let me see.", (ToolCall("1", "add", '{"a": 1}'),))
    ids = toy(Tokens().ids(Prompt((asked,))))
    assert '{"name": "add", "arguments": {"a": 1}}' in _say(list(ids), skip=True)


def test_tools_are_offered_where_the_template_has_no_place_for_them() -> None:
    tool = ToolSpec("add", "Adds two numbers.", {"type": "object"})
    ids = toy(Tokens().ids(Prompt((Message("user", "q"),), tools=(tool,))))
    assert "Adds two numbers." in _say(list(ids), skip=True)


def test_an_estimate_is_no_less_than_the_bytes() -> None:
    tool = ToolSpec("add", "Adds.", {"type": "object"})
    prompt = Prompt((Message("user", "ää"),), "é" * 10, tools=(tool,))
    assert upper_estimate(prompt) > upper_estimate(Prompt((Message("user", "ää"),), "é" * 10)) >= 24


# ---------------------------------------------------------------- bodies and replies


def test_what_is_not_asked_for_is_off() -> None:
    params = wire.parameters(Sampling(), 5)
    assert (params["top_p"], params["top_k"], params["min_p"], params["max_new_tokens"]) == (1.0, -1, 0.0, 5)


def test_extra_fields_stand_where_the_server_looks_for_them() -> None:
    params, beside, bent = wire.divide({"min_p": 0.1, "priority": 3})
    assert (params, beside, bent) == ({"min_p": 0.1}, {"priority": 3}, False)
    assert wire.divide({"logit_bias": {"1": 2}})[2]


@pytest.mark.parametrize("key", ["rid", "stop", "input_ids", "sampling_params", "max_tokens", "stream"])
def test_extra_fields_cannot_override_ours(key: str) -> None:
    with pytest.raises(EngineError, match=key):
        wire.divide({key: 1})


def test_an_aborted_reply_is_a_fault() -> None:
    meta = {"finish_reason": {"type": "abort", "message": "Abort in waiting queue"}}
    with pytest.raises(EngineError, match="waiting queue"):
        wire.completions([{"text": "", "output_ids": [], "meta_info": meta}], logprobs=False, top=0)


def test_the_last_token_of_a_scored_text_is_not_read() -> None:
    body = scoring.request((7, 8, 9), (1, 2), (3,))
    assert body["input_ids"] == [(7, 8, 9, 1), (7, 8, 9)]
    assert body["token_ids_logprob"] == [[2], [3]]
    assert body["logprob_start_len"] == 2  # the last prompt token is read: it tells of 1, and of 3
    [one, other] = wire.single(body)
    assert (one["input_ids"], one["token_ids_logprob"]) == ((7, 8, 9, 1), [2])
    assert (other["input_ids"], other["token_ids_logprob"]) == ((7, 8, 9), [3])
    assert other == scoring.request((7, 8, 9), (3,))


def test_what_is_told_of_a_text_is_put_together() -> None:
    meta: dict[str, Any] = {
        "finish_reason": {"type": "length", "length": 0},
        "input_token_logprobs": [[None, 9, None], [-1.0, 1, None]],
        "input_top_logprobs": [None, [[-0.5, 4, None], [-1.0, 1, None]]],
        "output_token_ids_logprobs": [[[-2.0, 2, None]]],
        "output_top_logprobs": [[[-0.25, 5, None], [-3.0, 6, None]]],
    }
    assert scoring.told({"meta_info": meta}, (1, 2)) == ((-1.0, -2.0), ())
    assert scoring.told({"meta_info": meta}, (1, 2), top=2)[1] == ((-0.5, -1.0), (-0.25, -3.0))
    with pytest.raises(EngineError, match="2 log-probs of 3"):
        scoring.told({"meta_info": meta}, (1, 2, 3))
    meta["finish_reason"] = {"type": "abort", "message": "Abort in waiting queue"}
    with pytest.raises(TransientError, match="waiting queue"):
        scoring.told({"meta_info": meta}, (1, 2))


def test_choices_are_literal_and_go_on_from_a_prefix() -> None:
    assert grammars.fields(Choices(("a.b", "ac")), "a") == {"regex": r"(\.b|c)"}
    assert grammars.fields(Regex("x+"), "") == {"regex": "x+"}


def test_flags_become_the_arguments_of_an_engine() -> None:
    told = launch.arguments(launch.flags(gpu=False, amx=False))
    assert told["mem_fraction_static"] == 0.2
    assert told["max_total_tokens"] == 16384
    assert told["disable_overlap_schedule"] is True
    assert told["device"] == "cpu"
    assert not any(name.isupper() for name in told)


def test_a_gpu_needs_less_said() -> None:
    told = {word for flag in launch.flags(gpu=True, amx=False) for word in flag.words}
    assert not told & {"--device", "--disable-radix-cache", "--dtype", "OMP_WAIT_POLICY=PASSIVE"}


def test_threads_that_wait_on_a_cpu_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert launch.variables(launch.flags(gpu=False, amx=False))["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "OMP_WAIT_POLICY" not in launch.variables(launch.flags(gpu=False, amx=False))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"url": "localhost:30000"}, "url must be like"),
        ({"patience_s": "long"}, "patience_s"),
        ({"options": {"tp_size": 2}}, "give its model"),
    ],
)
def test_mistakes_say_what_to_write(words: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Sglang(**words)

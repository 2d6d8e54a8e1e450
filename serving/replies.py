"""Replies in the form of OpenAI's protocol, read into completions."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from .flow import Completion, Generate, ToolCall
from .tool_calls import write


def completion(choice: Any, request: Generate) -> Completion:
    """One choice. Tool calls are written into its text, a refusal is its text; a stop mark is put back."""
    calls = getattr(choice.message, "tool_calls", None) or ()
    said = write(ToolCall(call.id or "", call.function.name or "", call.function.arguments) for call in calls)
    text = "\n".join(filter(None, (choice.message.content or _refusal(choice.message), said)))
    text, finish, stop = _ended(text, choice, () if calls else request.sampling.stop)
    told = getattr(getattr(choice, "logprobs", None), "content", None) or ()
    return Completion(
        text,
        logprobs=tuple(min(0.0, float(t.logprob)) for t in told) if request.logprobs else (),
        finish=finish,
        stop=stop,
        n_tokens=len(told),
        top_logprobs=tuple(_best(t, request.top_logprobs) for t in told) if request.top_logprobs else (),
    )


def _refusal(message: Any) -> str:
    beside = getattr(message, "provider_specific_fields", None) or {}
    return str(getattr(message, "refusal", None) or beside.get("refusal") or "")


def counted(drawn: Sequence[Completion], n_output: int, most: int) -> tuple[Completion, ...]:
    """The completions with their numbers of tokens, which add up to what the provider says it wrote: of one
    reply it tells the sum alone. One that was cut for length has `most`, or fewer where the server's context
    was full: no token is less than a byte. Without any count, a token is three characters."""
    cut = [min(most, len(c.text.encode(errors="replace"))) if c.finish == "length" else 0 for c in drawn]
    counts = [c.n_tokens or n for c, n in zip(drawn, cut, strict=True)]
    if len(drawn) == 1 and 0 < n_output < counts[0] and not drawn[0].n_tokens:
        counts = [n_output]
    sizes = [n or min(most, len(c.text) // 3 + 1) for c, n in zip(drawn, counts, strict=True)]
    # llama.cpp's server counts one sample of several.
    left = n_output - sum(counts) if n_output > sum(c.n_tokens for c in drawn) else 0
    if left <= 0:
        counts = sizes
    able = [i for i, n in enumerate(counts) if n < most] or [0]
    for place, i in enumerate(able):  # shares by size, within what each may have
        share = left if i == able[-1] else round(left * sizes[i] / sum(sizes[j] for j in able[place:]))
        share = max(0, share if i == able[-1] else min(share, most - counts[i]))
        counts[i] += share
        left -= share
    return tuple(replace(c, n_tokens=n) for c, n in zip(drawn, counts, strict=True))


def retry_after_s(error: Exception) -> float:
    """How long the provider asks to wait, in seconds; 0 where it does not."""
    for holder in (getattr(error, "response", None), error):
        for name in ("headers", "litellm_response_headers"):
            headers = getattr(holder, name, None) or {}
            with suppress(TypeError, ValueError, KeyError):  # a date, or nothing
                return max(0.0, float(headers["retry-after"]))
    return 0.0


def _ended(text: str, choice: Any, stops: Sequence[str]) -> tuple[str, Literal["eos", "stop", "length"], str]:
    """The text with its stop mark, how it ended, and the mark."""
    met = [(text.index(stop) + len(stop), stop) for stop in stops if stop in text]
    if met:  # a server that keeps the mark, or does not know of marks
        end, stop = min(met)
        return text[:end], "stop", stop
    if choice.finish_reason == "length":
        return text, "length", ""
    if not stops or choice.finish_reason == "content_filter":
        return text, "eos", ""
    extra = {
        **(getattr(choice, "model_extra", None) or {}),
        **(getattr(choice, "provider_specific_fields", None) or {}),
    }
    for name in ("stop_reason", "matched_stop"):  # vLLM, SGLang: the mark, or a token, or null
        if name in extra:
            stop = extra[name]
            return (text + stop, "stop", stop) if stop in stops else (text, "eos", "")
    return text + stops[-1], "stop", stops[-1]


def _best(told: Any, n: int) -> tuple[float, ...]:
    known = sorted((min(0.0, float(each.logprob)) for each in told.top_logprobs or ()), reverse=True)
    return tuple(known[:n])

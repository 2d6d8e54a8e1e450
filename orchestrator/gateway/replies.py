"""From results to what the client is sent: reply bodies, and the chunks of a stream.

Beside OpenAI's fields every reply has `abduce`: the seed that repeats it, whether the searches came to their
end and if not what stopped them, the canonical answers, and what was spent.
"""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from ...serving import redact, tool_calls
from ...serving.flow import ToolCall, Usage
from ...serving.seeds import derive
from ...strategies.base import Result
from ...strategies.calls import key, quoted
from .asked import Asked
from .errors import ApiError, bad
from .running import Progress

_PIECE = 48  # characters of an answer in a chunk


@dataclass(frozen=True)
class Choice:
    """One answer as the API tells it."""

    text: str
    calls: tuple[ToolCall, ...]
    finish: str
    logprobs: dict[str, Any] | None = None


def choices(asked: Asked, results: Sequence[Result], progress: Progress) -> list[Choice]:
    """The answers. Raises ApiError if an engine failed before there was any, or a demanded call lacks."""
    return [_choice(asked, i, result, progress) for i, result in enumerate(results)]


def _choice(asked: Asked, index: int, result: Result, progress: Progress) -> Choice:
    if not result.text and not result.complete and not progress.exhausted:
        stopped = str(result.diagnostics.get("stopped", "the search gave no answer")).rstrip(".")
        if "context" in stopped:  # engines of all makes say so of prompts that are too long
            raise bad(f"{stopped}.", "messages", "context_length_exceeded")
        special = asked.task.constraint is not None or asked.task.extra
        if special and "(tried" not in stopped:  # as the driver says of faults that pass
            raise bad(f"The engine refuses the request: {stopped}.", None, "refused_by_engine")
        raise ApiError(502, f"The engine gave no answer: {stopped}.", code="engine_failed")
    text, calls = _calls(asked, result, result.text)
    if asked.call is not None and not any(asked.call in ("", call.name) for call in calls):
        for other in result.candidates:
            text, calls = _calls(asked, result, other.text)
            if any(asked.call in ("", call.name) for call in calls):
                break
        else:
            raise ApiError(
                502, "The model called no tool though tool_choice demands it. Try again.", code="no_tool_call"
            )
    named = tuple(
        ToolCall(f"call_{derive(asked.seed, index, i):016x}", call.name, call.arguments)
        for i, call in enumerate(calls)
    )
    cut = result.diagnostics.get("cut") or (progress.exhausted and not result.complete)
    finish = "tool_calls" if named else "length" if cut else "stop"
    text = redact.known(text)  # before it is cut into chunks, which could cut a secret in two
    return Choice(text, named, finish, _logprobs(progress, result) if asked.logprobs else None)


def _calls(asked: Asked, result: Result, text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls, in the form of any model. Outside of a block a call may be a
    quotation: one that stood in a tool's words stays text. Where tools of the recipe's own were run, whose
    words are not known here, only blocks are read."""
    offers = asked.task.offers
    if not offers:
        return text, ()
    rest, calls = tool_calls.read(text)
    if calls or result.usage.tool_calls:
        return rest, calls
    rest, calls = tool_calls.read(text, offers)
    told = [offer.description for offer in offers]
    told += [message.content for message in asked.task.messages if message.role == "tool"]
    if calls and {key(call) for call in calls} & set().union(*(quoted(each, offers) for each in told)):
        return text, ()
    return rest, calls


def _logprobs(progress: Progress, result: Result) -> dict[str, Any] | None:
    """The sample's log-probs; none where more was written after it, such as a forced answer. Engines give
    ids, not texts, of tokens: they are named as vLLM names them."""
    drawn = progress.sample
    if drawn is not None and result.text not in (drawn.text, drawn.content):
        return None
    if drawn is None or not drawn.ids or len(drawn.ids) != len(drawn.logprobs):
        raise bad(
            "The engine tells no tokens, so their log-probs cannot be named. Leave logprobs out.", "logprobs"
        )
    rows = zip(drawn.ids, drawn.logprobs, strict=True)
    content: list[dict[str, Any]] = [
        {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token, logprob in rows
    ]
    return {"content": content, "refusal": None}


def usage(spent: Usage) -> dict[str, Any]:
    """All that was spent, judges and rewards included."""
    return {
        "prompt_tokens": spent.input_tokens,
        "completion_tokens": spent.output_tokens,
        "total_tokens": spent.input_tokens + spent.output_tokens,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
    }


def total(results: Sequence[Result]) -> Usage:
    """What all searches of a request spent."""
    return reduce(add, (result.usage for result in results))


def extension(asked: Asked, results: Sequence[Result], progress: Progress) -> dict[str, Any]:
    """Our own part of a reply."""
    spent = total(results)
    stopped = [str(r.diagnostics.get("stopped", "ended early")) for r in results if not r.complete]
    return {
        "seed": asked.seed,
        "answers": [None if r.answer is None else str(r.answer) for r in results],
        "complete": not stopped,
        "stopped": stopped[0] if stopped else None,
        "calls": spent.calls,
        "reward_passes": spent.reward_passes,
        "tool_calls": spent.tool_calls,
        "cost_usd": spent.cost_usd,
        "seconds": round(progress.seconds, 4),
    }


@dataclass(frozen=True)
class Reply:
    """The bodies of one reply, whole or in chunks."""

    model: str
    raw: bool  # of /v1/completions
    id: str
    created: int

    @classmethod
    def to(cls, asked: Asked) -> "Reply":
        """A fresh reply to a request."""
        kind = "cmpl" if asked.raw else "chatcmpl"
        return cls(asked.model, asked.raw, f"{kind}-{secrets.token_hex(12)}", int(time.time()))

    def whole(self, found: Sequence[Choice], spent: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
        """The reply in one piece."""
        kind = "text_completion" if self.raw else "chat.completion"
        told = [self._raw(i, c) if self.raw else self._chat(i, c) for i, c in enumerate(found)]
        return {**self._head(kind), "choices": told, "usage": spent, "abduce": ours}

    def chunk(
        self, index: int, delta: dict[str, Any], finish: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """One event of a stream; of a text completion the delta is its `text`."""
        if self.raw:
            kind = "text_completion"
            part = {
                "index": index,
                "text": delta.get("content") or "",
                "logprobs": None,
                "finish_reason": finish,
            }
        else:
            kind = "chat.completion.chunk"
            part = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head(kind), "choices": [part], **more}

    def chunks(self, index: int, choice: Choice, **more: Any) -> Iterator[dict[str, Any]]:
        """An answer, piece by piece; the last chunk says why it ends."""
        text = choice.text
        for at in range(0, len(text), _PIECE):
            yield self.chunk(index, {"content": text[at : at + _PIECE]})
        for i, call in enumerate(choice.calls):
            function = {"name": call.name, "arguments": call.arguments}
            told = {"index": i, "id": call.id, "type": "function", "function": function}
            yield self.chunk(index, {"tool_calls": [told]})
        yield self.chunk(index, {}, choice.finish, **more)

    def spent(self, used: dict[str, Any]) -> dict[str, Any]:
        """The chunk that tells the usage."""
        kind = "text_completion" if self.raw else "chat.completion.chunk"
        return {**self._head(kind), "choices": [], "usage": used}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chat(self, index: int, choice: Choice) -> dict[str, Any]:
        said: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            said["content"] = choice.text or None
            said["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in choice.calls
            ]
        return {"index": index, "message": said, "logprobs": choice.logprobs, "finish_reason": choice.finish}

    def _raw(self, index: int, choice: Choice) -> dict[str, Any]:
        told = None
        if choice.logprobs is not None:
            rows = choice.logprobs["content"]
            told = {
                "tokens": [row["token"] for row in rows],
                "token_logprobs": [row["logprob"] for row in rows],
                "top_logprobs": None,
                "text_offset": [],
            }
        return {"index": index, "text": choice.text, "logprobs": told, "finish_reason": choice.finish}

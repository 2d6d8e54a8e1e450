"""A reply as server-sent events, from the moment its search begins.

    data: {… "delta": {"role": "assistant"}}            at once
    data: {… "delta": {"reasoning_content": "…"}, "abduce": {…}}   as the search goes on
    : alive                                              where nothing happens for a while
    data: {… "delta": {"content": "…"}} …                the answer, piece by piece
    data: {… "choices": [], "usage": {…}}                if asked for
    data: [DONE]

An error on the way is an event `data: {"error": {…}}`, the last before the end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from ...serving import redact
from ...strategies.base import Result
from ..codec import dumps
from . import replies
from .asked import Asked
from .errors import ApiError
from .replies import Reply
from .running import Progress

_PACE_S = 0.1  # at least so long between two tellings of the progress
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}


async def stream(
    request: web.Request,
    asked: Asked,
    work: "asyncio.Task[list[Result]]",
    progress: Progress,
    *,
    results: Callable[[], Awaitable[list[Result]]],
    heartbeat_s: float,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Send the reply while `work` goes on; `results` waits for it and raises ApiError where it failed."""
    happened = asyncio.Event()
    progress.told = happened.set
    await asyncio.sleep(0)  # what is refused at once is answered with a status of its own
    if work.done():
        await results()
    reply = Reply.to(asked)
    response = web.StreamResponse(headers={**_HEADERS, **headers})
    await response.prepare(request)
    for i in range(asked.n):
        await _send(response, reply.chunk(i, {"role": "assistant", "content": ""}))
    await _tell(response, reply, work, progress, happened, heartbeat_s)
    try:
        await _answer(response, reply, asked, await results(), progress)
    except ApiError as error:
        progress.failed = error.status
        await _send(response, error.body)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _tell(
    response: web.StreamResponse,
    reply: Reply,
    work: "asyncio.Task[list[Result]]",
    progress: Progress,
    happened: asyncio.Event,
    heartbeat_s: float,
) -> None:
    """What happens, until the work is done."""
    while not work.done():
        something = asyncio.ensure_future(happened.wait())
        try:
            await asyncio.wait((work, something), timeout=heartbeat_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            something.cancel()
        if work.done():
            return
        if happened.is_set():
            happened.clear()
            delta = {"reasoning_content": _words(progress)}
            await _send(response, reply.chunk(0, delta, abduce=_facts(progress)))
            await asyncio.wait((work,), timeout=_PACE_S)
        else:
            await response.write(b": alive\n\n")


async def _answer(
    response: web.StreamResponse, reply: Reply, asked: Asked, results: list[Result], progress: Progress
) -> None:
    ours = replies.extension(asked, results, progress)
    for i, choice in enumerate(replies.choices(asked, results, progress)):
        more = {"abduce": ours} if i == asked.n - 1 else {}
        for chunk in reply.chunks(i, choice, **more):
            await _send(response, chunk)
    if asked.include_usage:
        await _send(response, reply.spent(replies.usage(replies.total(results))))


async def _send(response: web.StreamResponse, event: Mapping[str, Any]) -> None:
    await response.write(b"data: " + redact.line(dumps(event)) + b"\n\n")


def _facts(progress: Progress) -> dict[str, Any]:
    return {
        "event": progress.event,
        "steps": progress.nodes,
        "best_score": progress.best_score,
        "calls": progress.usage.calls,
        "output_tokens": progress.usage.output_tokens,
        "seconds": round(progress.seconds, 4),
    }


def _words(progress: Progress) -> str:
    best = "" if progress.best_score is None else f", best score {progress.best_score:.2f}"
    spent = f"{progress.usage.calls} calls, {progress.usage.output_tokens} tokens"
    return f"{progress.nodes} steps{best} ({spent})\n"

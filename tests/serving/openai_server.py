"""A small server that speaks OpenAI's chat protocol, for what real ones do only on bad days."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Body = dict[str, Any]


@dataclass
class Spoken:
    """What the server was sent, and what it is to say."""

    answer: Callable[[Body], web.Response]
    url: str = ""
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def chat(self, request: web.Request) -> web.Response:
        """One call."""
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0.01)
            return self.answer(body)
        finally:
            self.at_once -= 1


def said(*texts: str | None, finish: str = "stop", model: str = "gpt-4o-mini", **beside: Any) -> web.Response:
    """A reply of one choice a text; `beside` goes into each choice."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish} | beside
        for i, text in enumerate(texts)
    ]
    details = {"cached_tokens": 8}
    usage = {"prompt_tokens": 10, "completion_tokens": 7 * len(texts), "total_tokens": 10 + 7 * len(texts)}
    told = usage | {"prompt_tokens_details": details}
    reply = {"id": "1", "object": "chat.completion", "created": 0, "model": model, "choices": choices}
    return web.json_response(reply | {"usage": told})


def refused(status: int, message: str, **headers: str) -> web.Response:
    """An error as OpenAI words it."""
    return web.json_response({"error": {"message": message, "type": "x"}}, status=status, headers=headers)


@contextmanager
def speaking(answer: Callable[[Body], web.Response]) -> Iterator[Spoken]:
    """The server, in a thread of its own, while the block runs."""
    spoken = Spoken(answer)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", spoken.chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        spoken.url = f"http://127.0.0.1:{port}/v1"
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield spoken
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()

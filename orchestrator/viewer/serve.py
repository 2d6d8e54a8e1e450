"""A live run in the browser: the page, and a stream of changes that follows the run's file.

Only this machine can reach it, and only by its own name: a page elsewhere that points a name of its own at
this address is refused, since what a run says is nobody else's.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from aiohttp import web

from ..codec import dumps
from .page import live_page
from .picture import Picture
from .tail import Tail

EVERY_S = 0.25
HOST = "127.0.0.1"

Choose = Callable[[], Path | None]
"""The trace to show now; None while there is none."""

_CHOOSE_EVERY = 4  # looks
_ALIVE_EVERY = 40  # looks; a comment then finds out whether anybody still listens


def application(choose: Choose) -> web.Application:
    """The page at `/`, the changes at `/events`. Every reader has a picture of its own."""
    page = live_page()

    async def index(request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers=_HEADERS)

    async def events(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        await stream.prepare(request)
        with suppress(ConnectionError):
            await _follow(stream, choose)
        return stream

    app = web.Application(middlewares=[_by_own_name])
    app.add_routes([web.get("/", index), web.get("/events", events)])
    return app


async def serve(choose: Choose, *, port: int, started: Callable[[str], None]) -> None:
    """Serve until cancelled. Raises OSError where the port is taken."""
    runner = web.AppRunner(application(choose), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        started(f"http://{HOST}:{runner.addresses[0][1]}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _follow(stream: web.StreamResponse, choose: Choose) -> None:
    """Tell of one run after another, for as long as somebody listens."""
    tail: Tail | None = None
    picture = Picture()
    for look in count():
        file = await asyncio.to_thread(choose) if look % _CHOOSE_EVERY == 0 else None
        if file is not None and (tail is None or file != tail.file):
            tail, picture = Tail(file), Picture()
            await _send(stream, "new", {})
        elif tail is not None and not picture.finished and tail.begun_anew():
            picture = Picture()
            await _send(stream, "new", {})
        if tail is not None and not picture.finished:
            await asyncio.to_thread(_read, tail, picture)
        if changes := picture.changes():
            await _send(stream, "change", changes)
        elif look % _ALIVE_EVERY == 0:
            await stream.write(b": alive\n\n")
        await asyncio.sleep(EVERY_S)


def _read(tail: Tail, picture: Picture) -> None:
    for row in tail.rows():
        with suppress(LookupError, TypeError, ValueError, AttributeError):  # no event of ours
            picture(row)


async def _send(stream: web.StreamResponse, event: str, data: object) -> None:
    await stream.write(b"event: %s\ndata: %s\n\n" % (event.encode(), dumps(data)))


_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@web.middleware
async def _by_own_name(request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
    if request.url.host not in (HOST, "localhost"):
        raise web.HTTPForbidden(text=f"Open this page as http://{HOST}:{request.url.port}/")
    return await handler(request)  # type: ignore[misc, no-any-return]

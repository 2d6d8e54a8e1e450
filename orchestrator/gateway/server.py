"""Listening, signals, and the end of a server: it drains, then cuts off, then goes.

running ──SIGTERM, SIGINT──► draining: new requests get 503, /health says so ──all done, drain_s, or
a second signal──► what is left is cut off, each client told ──► exit
"""

import asyncio
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from ...serving.errors import UsageError
from .app import Gateway
from .running import stopped

log = logging.getLogger("abduce.gateway")
_SAVE_S = 2.0
_LAST_WORDS_S = 2.0  # for replies to what was cut off


async def serve(
    gateway: Gateway, *, host: str, port: int, drain_s: float, started: Callable[[str], None]
) -> None:
    """Serve until a signal, then drain. `started` is told the address once requests are taken; `port` 0 is
    any free one. Raises UsageError if the address cannot be had."""
    engines = {id(e): e for m in gateway.models.values() for e in m.chat.services.engines.values()}
    for engine in engines.values():
        await engine.ready()
    runner = web.AppRunner(
        gateway.app(), handler_cancellation=True, access_log=None, shutdown_timeout=_LAST_WORDS_S
    )
    await runner.setup()
    saving = asyncio.create_task(_save(gateway))
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise UsageError(
                f"Cannot listen at {host}:{port}: {error.strerror}. Choose another --port."
            ) from None
        bound = runner.addresses[0]
        started(f"http://{bound[0]}:{bound[1]}")
        await _until_told_to_stop(gateway, drain_s)
    finally:
        await runner.cleanup()
        saving.cancel()
        gateway.accounts.save()
        for engine in engines.values():
            await engine.close()


async def _until_told_to_stop(gateway: Gateway, drain_s: float) -> None:
    stop, now = asyncio.Event(), asyncio.Event()

    def told() -> None:
        (now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, told)
    try:
        await stop.wait()
        gateway.draining = True
        if gateway.busy:
            log.info("draining: %d requests have %g s to end; again to cut them off", gateway.busy, drain_s)
        ends = [asyncio.ensure_future(event.wait()) for event in (gateway.gate.idle, now)]
        await asyncio.wait(ends, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        await stopped(ends)
        if gateway.busy:
            log.info("cutting off %d requests", gateway.busy)
            await gateway.cut_off()
    finally:
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sign)


async def _save(gateway: Gateway) -> None:
    while True:
        await asyncio.sleep(_SAVE_S)
        gateway.accounts.save()

"""SGLang over HTTP: one pool of connections for each event loop, and patience with a server that restarts."""

import asyncio
import http.client
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from .. import redact
from ..errors import EngineError, TransientError, UsageError
from .once import Once

if TYPE_CHECKING:
    import aiohttp

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses after which trying again may help
_AWAY = frozenset({502, 503, 504})  # of a server that ends or begins, or of a router that finds none
_ROUTED = frozenset({"/generate", "/health", "/workers"})  # what a router answers itself
_POLL_S = 0.5


@dataclass(eq=False)
class _Pool:
    """The connections of one event loop. `keeper` closes them when the loop ends."""

    session: "aiohttp.ClientSession"
    keeper: "asyncio.Task[None]"
    aborts: "set[asyncio.Task[None]]" = field(default_factory=set)


class Http:
    """`url`: of a server, or of a `sglang-router` before several; a path in front of the routes is kept.
    A router passes on `/generate`, one prompt a request, and little else: the rest is asked of the servers
    it names.

    Connections are opened as calls need them, one for each call in flight, and kept for later calls.
    When a connection breaks or none can be made, the call waits up to `patience_s` seconds for the server
    to come back and then raises TransientError: the driver sends it again, so that a search survives a
    restart. If it does not come back, EngineError.
    """

    def __init__(self, url: str, *, api_key: str | None, patience_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"url must be like 'http://127.0.0.1:30000', got {url!r}.")
        self.where = f"the SGLang server at {url.rstrip('/')}"
        self.singly = False
        self._url = url.rstrip("/")
        self._parts = parts
        self._workers: tuple[str, ...] = ()  # behind a router
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            redact.register(api_key)
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._patience_s = patience_s
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()
        self._once = Once()
        self._targets: dict[str, Any] = {}

    # ------------------------------------------------------------ requests

    async def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """The reply. Cancelled, it closes the connection and has the server abort what runs for it."""
        import aiohttp
        import orjson

        pool = self._pool()
        sent = orjson.dumps(body)
        try:
            async with pool.session.post(self._target(route), data=sent) as reply:
                said = await reply.read()
        except asyncio.CancelledError:
            self._abort(pool, body.get("rid"))
            raise
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            await self._lost(error)
        if reply.status != 200:
            if reply.status in _AWAY:
                await self._once.get("back", self._is_back)
            raise self._fault(reply.status, said)
        return self._json(said)

    async def get(self, route: str) -> Any:
        """What a GET route answers; no patience."""
        import aiohttp

        try:
            async with self._pool().session.get(self._target(route)) as reply:
                said = await reply.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise TransientError(f"{self.where} cannot be reached: {error}.") from None
        if reply.status != 200:
            raise self._fault(reply.status, said)
        return self._json(said)

    def ask(self, route: str, body: Mapping[str, Any]) -> Any:
        """One short request on a connection of its own, without an event loop."""
        parts = urlsplit(self._address(route))
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = connect(str(parts.hostname), parts.port, timeout=1.0)
        try:
            connection.request("POST", parts.path, json.dumps(body), self._headers)
            reply = connection.getresponse()
            said = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"{self.where} gave no quick answer: {error}.") from None
        finally:
            connection.close()
        if reply.status != 200:
            raise self._fault(reply.status, said)
        return self._json(said)

    async def start(self) -> None:
        """Raises UsageError if no server answers."""
        try:
            await self.get("/model_info")
        except TransientError as error:
            raise UsageError(
                f"{error} Start one with: abduce engine MODEL --port {self._parts.port or 80}"
                " (or give the engine another url)."
            ) from None
        except EngineError as error:
            self._workers = await self._behind(error)
            self.singly = True
            self._targets.clear()

    async def _behind(self, fault: EngineError) -> tuple[str, ...]:
        """The servers behind a router, which takes a while to find them. Raises `fault` if this is none."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        with suppress(EngineError, TypeError, KeyError):
            while True:
                told = (await self.get("/workers"))["workers"]
                if told or loop.time() >= until:
                    break
                await asyncio.sleep(_POLL_S)
            if urls := tuple(str(each["url"]).rstrip("/") for each in told):
                return urls
        raise fault

    # ------------------------------------------------------------ connections

    def _address(self, route: str) -> str:
        by_router = not self._workers or route in _ROUTED
        return (self._url if by_router else self._workers[0]) + route

    def _target(self, route: str) -> Any:
        """The route's address, parsed once."""
        found = self._targets.get(route)
        if found is None:
            import yarl

            found = self._targets[route] = yarl.URL(self._address(route))
        return found

    def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None or pool.session.closed:
            import aiohttp

            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=False),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),  # long replies take their time
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
            )
            keeper = loop.create_task(_close_at_end(session), name="abduce: SGLang connections")
            pool = self._pools[loop] = _Pool(session, keeper)
        return pool

    async def close(self) -> None:
        """Close the connections of every event loop that still runs; those of others are closed already."""
        pools = list(self._pools.items())
        self._pools.clear()
        for loop, pool in pools:
            if loop.is_closed() or pool.session.closed:
                continue
            if loop is asyncio.get_running_loop():
                await asyncio.gather(*pool.aborts, return_exceptions=True)
                pool.keeper.cancel()
                await asyncio.gather(pool.keeper, return_exceptions=True)
            else:
                loop.call_soon_threadsafe(pool.keeper.cancel)

    # ------------------------------------------------------------ what goes wrong

    def _abort(self, pool: _Pool, rid: str | list[str] | None) -> None:
        """Have the server abort requests. It would notice the closed connection by itself, within 4 s."""
        if not rid or pool.keeper.cancelling() or pool.keeper.done():  # the event loop is ending
            return
        abort = asyncio.get_running_loop().create_task(self._send_aborts(pool, rid))
        pool.aborts.add(abort)
        abort.add_done_callback(pool.aborts.discard)

    async def _send_aborts(self, pool: _Pool, rid: str | list[str]) -> None:
        import aiohttp

        with suppress(aiohttp.ClientError, TimeoutError):
            for server in self._workers or (self._url,):
                for each in [rid] if isinstance(rid, str) else rid:
                    async with pool.session.post(f"{server}/abort_request", json={"rid": each}) as reply:
                        await reply.read()

    async def _lost(self, error: Exception) -> NoReturn:
        """After a connection broke: wait for the server, then have the call sent again."""
        reason = str(error) or type(error).__name__
        if await self._once.get("back", self._is_back):
            raise TransientError(f"The connection to {self.where} broke ({reason}); it answers again.")
        raise EngineError(
            f"{self.where} broke off ({reason}) and did not come back within {self._patience_s:g} s. "
            "Start it again, or give the engine a longer patience_s."
        )

    async def _is_back(self) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience_s
        while True:
            with suppress(EngineError):
                await self.get("/health")
                return True
            if loop.time() >= until:
                return False
            await asyncio.sleep(_POLL_S)

    def _json(self, said: bytes) -> Any:
        import orjson

        try:
            return orjson.loads(said) if said else None
        except orjson.JSONDecodeError:
            raise TransientError(f"{self.where} sent what is no JSON: {said[:200]!r}.") from None

    def _fault(self, status: int, said: bytes) -> EngineError:
        if status in (401, 403):
            return EngineError(f"{self.where} refuses the API key. Give the engine api_key.")
        message = f"{self.where} says ({status}): {_message(said)}"
        return TransientError(message) if status in _PASSING else EngineError(message)


async def _close_at_end(session: "aiohttp.ClientSession") -> None:
    """Waits to be cancelled, as everything is when an event loop ends, and closes the connections."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await session.close()


def _message(said: bytes) -> str:
    """The message of an error reply: SGLang has several forms of it."""
    text = said.decode(errors="replace").strip()
    try:
        told = json.loads(text)
    except ValueError:
        return text[:500] or "nothing"
    for key in ("error", "message", "detail"):
        while isinstance(told, dict) and key in told:
            told = told[key]
    return str(told)[:500]

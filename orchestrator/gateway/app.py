"""The routes of the gateway, and what becomes of errors: bad input is no 500, a traceback never a reply."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from aiohttp import web

from ...serving import redact
from ...serving.errors import UsageError
from ...serving.flow import Usage
from ...strategies.base import Result
from ..codec import dumps
from . import replies
from .accounts import Accounts, Hold
from .asked import Asked, of_chat, of_completion
from .errors import ApiError
from .gate import Gate
from .keys import Key, Keys
from .metrics import Metrics
from .openapi import document
from .replies import Reply
from .running import Progress, answers, stopped
from .served import Served, worst_case
from .streaming import stream
from .wire import ChatRequest, CompletionRequest, Shared, read

if TYPE_CHECKING:
    from ..telemetry import OpenTelemetry

B = TypeVar("B", bound=Shared)
_Work: TypeAlias = "asyncio.Task[list[Result]]"
log = redact.guard(logging.getLogger("abduce.gateway"))
_DRAINING = "The server is shutting down. Ask another one, or again later."


@dataclass(frozen=True)
class Limits:
    """What the gateway grants: requests at once and waiting, body size, seconds for a request, for a body to
    arrive, and between two signs of life on a stream."""

    concurrency: int = 64
    queue: int = 256
    body_bytes: int = 4 << 20
    request_s: float = 600.0
    body_s: float = 30.0
    heartbeat_s: float = 10.0


class Gateway:
    """Answers requests with the searches of its models."""

    def __init__(
        self,
        models: Mapping[str, Served],
        *,
        keys: Keys | None = None,
        accounts: Accounts | None = None,
        limits: Limits | None = None,
        telemetry: "OpenTelemetry | None" = None,
    ) -> None:
        self.models = models
        self.telemetry = telemetry
        self.keys = keys or Keys()
        self.accounts = accounts or Accounts()
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.gate = Gate(self.limits.concurrency, self.limits.queue, self.limits.request_s)
        self.draining = False
        self._cut = False
        self._searches: set[asyncio.Task[list[Result]]] = set()

    def app(self) -> web.Application:
        """The web application."""
        app = web.Application(client_max_size=self.limits.body_bytes, middlewares=[_errors])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.listing)
        app.router.add_get("/v1/models/{name:.+}", self.model)
        app.router.add_get("/openapi.json", self.description)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.counters)
        return app

    @property
    def busy(self) -> int:
        """Requests that run or wait."""
        return self.gate.running + self.gate.waiting

    async def cut_off(self) -> None:
        """End all searches now; their clients are told why."""
        self.draining = self._cut = True
        await stopped(self._searches)

    # ------------------------------------------------------------ routes

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._answer(request, ChatRequest, of_chat)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._answer(request, CompletionRequest, of_completion)

    async def listing(self, request: web.Request) -> web.Response:
        """GET /v1/models."""
        self._authorised(request)
        return _json({"object": "list", "data": [_told(model) for model in self.models.values()]})

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/NAME."""
        self._authorised(request)
        return _json(_told(self._served(request.match_info["name"])))

    async def description(self, request: web.Request) -> web.Response:
        """GET /openapi.json."""
        return _json(document(bool(self.keys.known)))

    async def health(self, request: web.Request) -> web.Response:
        """GET /health."""
        state = "draining" if self.draining else "ok"
        told = {"status": state, "running": self.gate.running, "waiting": self.gate.waiting}
        return _json(told, status=503 if self.draining else 200)

    async def counters(self, request: web.Request) -> web.Response:
        """GET /metrics."""
        self._authorised(request)
        gauges = {
            "abduce_requests_running": self.gate.running,
            "abduce_requests_waiting": self.gate.waiting,
            "abduce_draining": int(self.draining),
            "abduce_tasks": len(asyncio.all_tasks()),
        }
        return web.Response(text=self.metrics.text(gauges), headers={"Content-Type": _PROMETHEUS})

    # ------------------------------------------------------------ one answer

    async def _answer(
        self, request: web.Request, kind: type[B], convert: Callable[[B], Asked]
    ) -> web.StreamResponse:
        began, status, name = perf_counter(), 500, "-"
        progress, key, hold = Progress(), None, Hold()
        try:
            key = self._authorised(request)
            if self.draining:
                raise ApiError(503, _DRAINING, code="shutting_down", retry_after_s=5)
            asked = convert(read(kind, await self._body(request)))
            model = self._served(asked.model)
            name = model.name
            response = await self._admitted(request, asked, model, key, progress, hold)
            status = progress.failed or response.status
            return response
        except ApiError as error:
            status = error.status
            raise
        except (asyncio.CancelledError, ConnectionError):
            status = 499
            raise
        finally:
            who, seconds = key.name if key else "-", perf_counter() - began
            self.metrics.answered(name, who, status, seconds, hold.spent)
            log.info("%d %s %s %.3f s, %d tokens", status, who, name, seconds, hold.spent.tokens)

    async def _admitted(
        self,
        request: web.Request,
        asked: Asked,
        model: Served,
        key: Key | None,
        progress: Progress,
        hold: Hold,
    ) -> web.StreamResponse:
        try:
            pipeline = model.tailored(asked)
            tokens, usd = worst_case(pipeline, asked) if key is not None else (None, None)
        except UsageError as error:  # an engine that cannot do what is asked of it
            raise ApiError(400, str(error)) from None
        async with self.gate.turn():
            if self._cut:
                raise ApiError(503, _DRAINING, code="shutting_down", retry_after_s=5)
            with self.accounts.hold(key, tokens, usd, hold):
                work = self._search(request, answers(pipeline, asked, progress, *self._observers))
                self._searches.add(work)
                try:
                    return await self._reply(request, asked, work, progress)
                finally:
                    try:
                        await stopped((work,))
                    finally:  # a client that leaves may cancel this wait too
                        self._searches.discard(work)
                        hold.spent = _spent(work, progress)

    async def _reply(
        self,
        request: web.Request,
        asked: Asked,
        work: "asyncio.Task[list[Result]]",
        progress: Progress,
    ) -> web.StreamResponse:
        headers = {"X-Abduce-Seed": str(asked.seed)}
        if asked.stream:
            return await stream(
                request,
                asked,
                work,
                progress,
                results=lambda: _results(work),
                heartbeat_s=self.limits.heartbeat_s,
                headers=headers,
            )
        found = await _results(work)
        told = replies.choices(asked, found, progress)
        spent = replies.usage(replies.total(found))
        body = Reply.to(asked).whole(told, spent, replies.extension(asked, found, progress))
        return _json(body, headers=headers)

    # ------------------------------------------------------------ parts

    @property
    def _observers(self) -> "tuple[OpenTelemetry, ...]":
        return () if self.telemetry is None else (self.telemetry,)

    def _search(self, request: web.Request, work: Coroutine[Any, Any, list[Result]]) -> _Work:
        """Start a search, as a part of the client's trace if it has one."""
        if self.telemetry is None:
            return asyncio.create_task(work)
        with self.telemetry.called_by(request.headers):
            return asyncio.create_task(work)

    def _authorised(self, request: web.Request) -> Key | None:
        """The key of a request; None where none are needed. Raises ApiError 401 without a known one."""
        if not self.keys.known:
            return None
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        key = self.keys.find(presented.strip())
        if scheme.lower() != "bearer" or not presented:
            raise ApiError(
                401, "No API key. Send the header: Authorization: Bearer KEY.", code="missing_api_key"
            )
        if key is None:
            raise ApiError(401, "The API key is not known here.", code="invalid_api_key")
        return key

    async def _body(self, request: web.Request) -> bytes:
        if request.content_type != "application/json":
            raise ApiError(415, "Send JSON, with the header: Content-Type: application/json.")
        try:
            async with asyncio.timeout(self.limits.body_s):
                return await request.read()
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {self.limits.body_s:g} s.") from None

    def _served(self, name: str) -> Served:
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(
                404, f"No model {name!r:.120}. Known: {known}.", param="model", code="model_not_found"
            )
        return self.models[name]


_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def _results(work: "asyncio.Task[list[Result]]") -> list[Result]:
    """What the search found. Raises ApiError where the request, or the server's end, kept it from any."""
    try:
        return await work
    except UsageError as error:
        raise ApiError(400, str(error)) from None
    except asyncio.CancelledError:
        me = asyncio.current_task()
        if me is not None and me.cancelling():  # the client left
            raise
        raise ApiError(503, _DRAINING, code="shutting_down", retry_after_s=5) from None
    except Exception:
        log.exception("A search failed")
        raise ApiError(500, "The search failed inside. The server's log says why.") from None


def _spent(work: "asyncio.Task[list[Result]]", progress: Progress) -> Usage:
    whole = work.done() and not work.cancelled() and work.exception() is None
    return replies.total(work.result()) if whole else progress.usage


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every error in OpenAI's shape."""
    try:
        return await handler(request)
    except ApiError as error:
        told = error
    except web.HTTPException as error:
        if error.status < 400:
            raise
        told = ApiError(error.status, _PLAIN.get(error.status, error.reason))
        if "Allow" in error.headers:
            return _json(told.body, status=told.status, headers={"Allow": error.headers["Allow"]})
    except ConnectionError:  # while we wrote: the client is gone, and so is the reply
        raise
    except Exception:
        log.exception("A request failed")
        told = ApiError(500, "The request failed inside. The server's log says why.")
    return _json(told.body, status=told.status, headers=told.headers)


_PLAIN = {
    404: "There is no such route. See /openapi.json.",
    405: "The route has no such method. See /openapi.json.",
    413: "The request is too large.",
}


def _told(model: Served) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "abduce",
        "description": model.description,
    }


def _json(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    told = redact.line(dumps(body))
    return web.Response(body=told, status=status, headers=headers, content_type="application/json")

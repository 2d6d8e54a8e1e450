"""A collector for the tests: it takes spans over HTTP as OpenTelemetry's own does, and keeps them."""

import asyncio
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")


@dataclass
class Collector:
    """What was sent: `resource` and spans, whose ids are bytes and attributes plain values."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    raw: bytes = b""
    status: int = 200

    async def take(self, request: web.Request) -> web.Response:
        """POST /v1/traces."""
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        told = service.ExportTraceServiceRequest.FromString(body)
        self.headers.append(dict(request.headers))
        self.raw += body
        for group in told.resource_spans if self.status == 200 else ():
            self.resource = values(group.resource.attributes)
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        answer = service.ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, status=self.status, content_type="application/x-protobuf")

    def named(self, name: str) -> list[Any]:
        """The spans of a name."""
        return [span for span in self.spans if span.name == name]


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    return {each.key: _plain(each.value) for each in attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(part) for part in value.array_value.values]
    return getattr(value, kind)


@contextmanager
def collecting() -> Iterator[Collector]:
    """The collector, in a thread of its own, while the block runs."""
    collector = Collector()
    ready, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/traces", collector.take)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(10)
    try:
        yield collector
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()

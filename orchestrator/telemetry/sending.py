"""Where spans go: the program's own tracer provider if it has one, else a collector, in batches.

A collector that does not answer costs a run nothing: spans are sent by a thread of their own, after a failure
none for `PAUSE_S`, and at the end it is waited for `LAST_S`.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ... import __version__
from ...serving import redact
from ...serving.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
else:
    SpanExporter = object

log = redact.guard(logging.getLogger(__name__))

PAUSE_S = 30.0
LAST_S = 3.0
QUEUE = 1 << 16
"""Spans that wait to be sent at most. OpenTelemetry's own default, 2,048, is less than a second of a search
with a quick model."""


class Sending:
    """A tracer provider, and for one of our own the way to end it."""

    def __init__(self, provider: "TracerProvider", sender: "Sender | None" = None) -> None:
        self.provider = provider
        self._sender = sender

    @classmethod
    def to(cls, provider: Any, endpoint: str | None, headers: Mapping[str, str] | None) -> "Sending":
        """The provider that was given, else the program's own, else one that sends to `endpoint`."""
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError:
            raise MissingExtra("OpenTelemetry", "otel") from None
        if provider is not None:
            return cls(provider)
        current = trace.get_tracer_provider()
        if endpoint is None and isinstance(current, TracerProvider):
            return cls(current)
        return cls._own(endpoint, headers or {})

    @classmethod
    def _own(cls, endpoint: str | None, headers: Mapping[str, str]) -> "Sending":
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        redact.register_headers(headers)
        resource = Resource.create(
            {"telemetry.distro.name": "abduce", "telemetry.distro.version": __version__}
        )
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "abduce"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        sender = Sender(_exporter(_address(endpoint), headers))
        provider.add_span_processor(BatchSpanProcessor(sender, max_queue_size=QUEUE))
        return cls(provider, sender)

    def flush(self) -> None:
        """Send what waits."""
        self.provider.force_flush()

    def end(self) -> None:
        """Send what waits, and end a provider of our own. A collector that takes longer than `LAST_S` for a
        batch is given up."""
        over = threading.Event()
        if self._sender is not None:
            with suppress(RuntimeError):  # at the program's very end no thread begins
                threading.Thread(target=self._sender.watch, args=(over,), daemon=True).start()
        self.flush()
        over.set()
        if self._sender is not None:
            self.provider.shutdown()


class Sender(SpanExporter):
    """An exporter that gives a collector up which does not answer, and says so once."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._again = 0.0  # when it is tried next, by the monotonic clock
        self._lost = 0
        self._began = math.inf  # what is being sent now

    def export(self, spans: "Sequence[ReadableSpan]") -> "SpanExportResult":
        """Send a batch; without waiting where the last one failed a moment ago."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        if time.monotonic() < self._again:
            self._lost += len(spans)
            return SpanExportResult.FAILURE
        self._began = time.monotonic()
        sent = self._exporter.export(spans)
        self._began = math.inf
        if sent is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            self._again = max(self._again, time.monotonic() + PAUSE_S)
        return sent

    def watch(self, over: threading.Event) -> None:
        """Break off what takes longer than `LAST_S`, and send nothing more, until it is `over`."""
        while not over.wait(0.05):
            if time.monotonic() - self._began > LAST_S:
                self._again = math.inf
                self._exporter.shutdown()
                return

    def shutdown(self) -> None:
        """Say what was lost, if anything was."""
        if self._again < math.inf:
            self._exporter.shutdown()
        if self._lost:
            log.warning(
                "%d spans could not be sent: no collector takes them at %s.",
                self._lost,
                _where(self._exporter),
            )


def _where(exporter: SpanExporter) -> str:
    return str(getattr(exporter, "_endpoint", "its address"))


def _address(endpoint: str | None) -> str | None:
    """The address for spans, of a collector's. Raises UsageError for what is none."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"endpoint must be like 'http://127.0.0.1:4318', got {endpoint!r}.")
    return endpoint if parts.path.endswith("/v1/traces") else endpoint.rstrip("/") + "/v1/traces"


def _exporter(address: str | None, headers: Mapping[str, str]) -> "SpanExporter":
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter
    except ImportError:
        raise MissingExtra("The OTLP exporter of OpenTelemetry", "otel") from None
    # It tells of each attempt, which would land in the middle of what is on the screen; we tell once.
    logging.getLogger(trace_exporter.__name__).setLevel(logging.CRITICAL)
    return trace_exporter.OTLPSpanExporter(endpoint=address, headers=dict(headers) or None)

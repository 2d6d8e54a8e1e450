"""What spans and redaction cost: CPU per event and per line of a trace.

    python benchmarks/telemetry.py [--repeats 9]

The events are those of a particle filter (8 particles, synthetic model), again and again. Spans: the observer
alone, its spans taken by a batch processor whose exporter throws them away; then with the exporter for OTLP,
which encodes them and whose transport is replaced by nothing. Redaction: `redact.line` over the lines of that
trace, with none, one and four secrets registered, none of which occurs.
"""

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from arguments import command
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from printing import machine, met

import abduce
from abduce.orchestrator.codec import dumps
from abduce.orchestrator.trace import Event, RunEnded, RunStarted, row
from abduce.serving import redact
from abduce.serving.synthetic import Synthetic

BAR_SPAN_US = 100.0
BAR_NONE_US, BAR_ONE_US = 0.5, 2.0
N_EVENTS = 10_000
SECRETS = (
    "sk-proj-ABCDEFGHIJKLMNOP0123456789abcdefghijklmn",
    "correct-horse-battery-staple",
    "hf_ABCDEFGHIJKLMNOP0123456789abcdefgh",
    "hunter2-hunter2",
)


class Nowhere(SpanExporter):
    """Throws spans away; encodes them first if told to."""

    def __init__(self, encodes: bool) -> None:
        self._encodes = encodes

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take them."""
        if self._encodes:
            encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def main() -> int:
    """Print the figures; 1 if a bar is not met."""
    parser = command(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    events = recorded()
    lines = [dumps(row(event)) for event in events]
    size = sum(map(len, lines)) / len(lines)
    print(f"{machine()}; median of {repeats} (min to max)")
    print(f"{len(events)} events of a run, {size:.0f} bytes a line\n")
    held = [
        told("spans made", [spans(events, content=False) for _ in range(repeats)], BAR_SPAN_US),
        told("spans with their text", [spans(events, content=True) for _ in range(repeats)], BAR_SPAN_US),
        told("spans made, and encoded to be sent", [spans(events, encodes=True) for _ in range(repeats)]),
    ]
    for n, bar in ((0, BAR_NONE_US), (1, BAR_ONE_US), (4, None)):
        for secret in SECRETS[:n]:
            redact.register(secret)
        held.append(told(f"redaction, {n} secrets", [over(redact.line, lines) for _ in range(repeats)], bar))
    return 0 if all(held) else 1


def recorded() -> list[Event]:
    """The events of one run."""
    events: list[Event] = []
    model = Synthetic(seed=1, depth=8)
    options: dict[str, Any] = {"strategy": "particle_filter", "particles": 8, "reward": "rate"}
    abduce.solve("Which?", model=model, budget="200k tokens, 100 calls", observers=[events.append], **options)
    return events


def spans(events: Sequence[Event], *, content: bool = False, encodes: bool = False) -> float:
    """CPU µs an event, of all threads."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere(encodes), max_queue_size=1 << 16))
    telemetry = abduce.OpenTelemetry(provider=provider, content=content)
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)
    n_runs = N_EVENTS // len(events)
    began = time.process_time()
    for _ in range(n_runs):
        for event in events:
            telemetry(event)
    telemetry.close()
    took = time.process_time() - began
    provider.shutdown()
    return took / (n_runs * len(events)) * 1e6


def over(clear: Callable[[bytes], bytes], lines: Sequence[bytes]) -> float:
    """CPU µs a line."""
    rounds = 100
    began = time.process_time()
    for _ in range(rounds):
        for line in lines:
            clear(line)
    return (time.process_time() - began) / (rounds * len(lines)) * 1e6


def told(name: str, us: Sequence[float], bar: float | None = None) -> bool:
    """Print one figure; whether it meets its bar."""
    held = bar is None or median(us) <= bar
    limit = "" if bar is None else f"  ≤ {bar:g} {met(held)}"
    print(f"    {name:36} {median(us):7.2f} µs  ({min(us):.2f} to {max(us):.2f}){limit}")
    return held


if __name__ == "__main__":
    sys.exit(main())

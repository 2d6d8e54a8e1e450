"""What the tests of spans share: an observer whose spans stay here, and small pipelines."""

from dataclasses import dataclass

import pytest
from flows import Echo

from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import Pipeline, build
from abduce.orchestrator.telemetry import OpenTelemetry
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import Result

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Kept:
    """An observer whose spans stay here."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.telemetry = OpenTelemetry(provider=self.provider, **options)

    @property
    def spans(self):
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time)

    def tree(self):
        """Each span with those that it is in, the outermost first. Fails if one is missing."""
        known = {span.context.span_id: span for span in self.spans}

        def above(span):
            return [*above(known[span.parent.span_id]), span] if span.parent else [span]

        return [(span, above(span)[:-1]) for span in self.spans]

    def named(self, name):
        return [span for span in self.spans if span.name == name]


@dataclass(frozen=True)
class Plan:
    """A strategy from a flow."""

    flow: object

    def solve(self, task, *, seed):
        found = yield from self.flow()
        return Result(str(found), str(found))


def planned(flow, engine=None, tools=None, settings=None, **more):
    services = Services({"policy": engine or Echo()}, tools=tools or {})
    return Pipeline(Plan(flow), services, settings=settings or {}, **more)


def searching(strategy, **options):
    return build(
        strategy=strategy,
        model=Synthetic(seed=1, alphabet="abcdefgh", depth=4),
        policy={"preset": "cot", "answer_kind": "text", "sampling": {"max_tokens": 12}},
        reward=None if strategy == "self_consistency" else "rate",
        **options,
    )


def summed(spans, name):
    return sum(span.attributes.get(name, 0) for span in spans)

"""Where spans go: to a collector, from the gateway, evaluations and the command line."""

import asyncio
import logging
import subprocess
import sys
import time

import pytest
from collector import collecting, values
from flows import Echo, ask
from gateways import ASKED, listening, recipe
from opentelemetry import trace as otel
from spans import Kept, searching, summed

from abduce.orchestrator import cli
from abduce.orchestrator.evaluate import Results, evaluate, header, read_problems
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.telemetry import OpenTelemetry, sending
from abduce.orchestrator.trace import Called, RunEnded, RunStarted
from abduce.serving.errors import MissingExtra, UsageError
from abduce.serving.flow import Usage
from abduce.serving.scripted import Scripted


@pytest.fixture
def kept():
    return Kept()


# ---------------------------------------------------------------- over the wire


def test_spans_reach_a_collector():
    with collecting() as collector:
        with OpenTelemetry(endpoint=collector.url, headers={"x-key": "violet-heron-1"}) as telemetry:
            result = searching("dvts", budget="8k tokens").solve("Which?", observers=[telemetry])
        spans = collector.spans
        assert collector.headers[0]["x-key"] == "violet-heron-1"
        assert collector.headers[0]["Content-Type"] == "application/x-protobuf"
        assert collector.resource["service.name"] == "abduce"
        told = [values(span.attributes) for span in spans]
        assert sum(t.get("gen_ai.usage.output_tokens", 0) for t in told) == result.usage.output_tokens
        [root] = collector.named("invoke_agent dvts")
        known = {span.span_id for span in spans}
        assert all(span.parent_span_id in known for span in spans if span is not root)
        assert {span.trace_id for span in spans} == {root.trace_id}


def test_thousands_of_quick_events_lose_no_span():
    call, engine = ask("x"), Echo()
    reply = asyncio.run(engine.generate(call, seed=1)).value
    with collecting() as collector:
        with OpenTelemetry(endpoint=f"{collector.url}/v1/traces") as telemetry:
            telemetry(RunStarted("r", "?", 0))
            for i in range(5_000):
                telemetry(Called((i, 0), call, reply, Usage(calls=1), 0.0, 0.0))
            telemetry(RunEnded("4", True, Usage(), 1.0))
        assert len(collector.spans) == 5_001


@pytest.mark.parametrize("reason", ["nobody listens", "it refuses"])
def test_a_collector_that_takes_nothing_holds_nobody_up(monkeypatch, caplog, reason):
    monkeypatch.setattr(sending, "LAST_S", 0.3)
    with collecting() as collector:
        collector.status = 503
        url = collector.url if reason == "it refuses" else "http://127.0.0.1:9"
        telemetry = OpenTelemetry(endpoint=url)
        result = searching("best_of_n").solve("?", observers=[telemetry])
        began = time.monotonic()
        telemetry.close()
        assert time.monotonic() - began < 3
    assert result.usage.calls > 0
    [said] = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.endswith(f"no collector takes them at {url}/v1/traces.")
    assert int(said.split()[0]) > result.usage.calls


def test_a_program_that_ends_without_closing_it_sends_all_the_same():
    code = (
        "import abduce, sys\n"
        "from abduce.serving.scripted import Scripted\n"
        "seen = abduce.OpenTelemetry(endpoint=sys.argv[1])\n"
        "abduce.solve('?', strategy='self_consistency', n=2, model=Scripted('4'), observers=[seen])\n"
    )
    with collecting() as collector:
        subprocess.run([sys.executable, "-W", "error", "-c", code, collector.url], check=True, timeout=30)
        assert collector.named("invoke_agent self_consistency")


@pytest.mark.parametrize("endpoint", ["localhost:4318", "ftp://x", "", "http://"])
def test_an_endpoint_that_is_none_is_refused(endpoint):
    with pytest.raises(UsageError, match="4318"):
        OpenTelemetry(endpoint=endpoint)


def test_the_programs_own_provider_is_used(monkeypatch):
    kept = Kept()
    monkeypatch.setattr(otel, "get_tracer_provider", lambda: kept.provider)
    with OpenTelemetry() as telemetry:
        searching("best_of_n").solve("?", observers=[telemetry])
    assert kept.named("invoke_agent best_of_n")
    kept.provider.get_tracer("mine").start_span("after").end()
    assert kept.named("after")  # it was not shut down


async def test_a_request_to_the_gateway_belongs_to_the_trace_of_its_client(kept):
    model = recipe("m", Scripted("The answer is 56."), strategy="self_consistency", n=3)
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with listening(model, telemetry=kept.telemetry) as running:
        body = ASKED | {"model": "m", "n": 2}
        status, told, _ = await running.post(body=body, traceparent=f"00-{trace_id}-{span_id}-01")
        await running.post(body=body)
    assert status == 200
    roots = kept.named("invoke_agent self_consistency")
    ours = [s for s in roots if s.parent is not None]
    assert len(roots) == 4
    assert [f"{s.context.trace_id:032x}-{s.parent.span_id:016x}" for s in ours] == [
        f"{trace_id}-{span_id}"
    ] * 2
    inside = [s for s in kept.spans if s.context.trace_id == int(trace_id, 16)]
    assert summed(inside, "gen_ai.usage.output_tokens") == told["usage"]["completion_tokens"]


async def test_a_client_that_leaves_ends_its_run_as_failed(kept):
    slow = Scripted("56", latency_s=5)
    async with listening(recipe("m", slow), telemetry=kept.telemetry) as running:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(running.post(body=ASKED | {"model": "m"}), 0.3)
        await asyncio.sleep(0.1)
    [root] = kept.named("invoke_agent chain_of_thought")
    assert root.attributes["error.type"] == "CancelledError"


async def test_an_evaluation_makes_a_trace_for_each_problem(kept, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "{i} + 1", "answer": "2"}}\n' for i in range(5)))
    pipeline = searching("best_of_n")
    results = Results(tmp_path / "out.jsonl", header(pipeline, data, 0))
    report = await evaluate(pipeline, read_problems(data), results, observers=[kept.telemetry])
    results.close()
    assert len(kept.named("invoke_agent best_of_n")) == 5
    assert len({span.context.trace_id for span in kept.spans}) == 5
    assert summed(kept.spans, "gen_ai.usage.output_tokens") == report.usage.output_tokens


# ---------------------------------------------------------------- the command line


QUICK = ("solve", "2+2", "--recipe", "best-of-n-products", "--model", "synthetic", "--no-trace")


@pytest.mark.parametrize("by", ["option", "environment", "content"])
def test_the_command_line_sends_spans(monkeypatch, tmp_path, by):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        options = {"option": ["--otel"], "environment": [], "content": ["--otel-content"]}[by]
        assert cli.main([*QUICK, "--check", "numeric=4", *options]) in (0, 1)
        [root] = [span for span in collector.spans if not span.parent_span_id]
        assert root.name.startswith("invoke_agent best")
        assert values(root.attributes)["abduce.run"] == Runs(tmp_path / "runs").names()[0]
        assert any("messages" in key for s in collector.spans for key in values(s.attributes)) == (
            by == "content"
        )


def test_no_spans_where_nobody_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    with collecting() as collector:
        for name, value in {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none"}.items():
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            monkeypatch.setenv(name, value)
            cli.main([*QUICK, "--check", "numeric=4"])
            monkeypatch.delenv(name)
        assert not collector.spans


def test_without_the_packages(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtra, match=r"pip install 'abduce\[otel\]'"):
        OpenTelemetry()
    assert cli.main([*QUICK, "--check", "numeric=4", "--otel"]) == 2
    assert "pip install 'abduce[otel]'" in capsys.readouterr().err
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert cli.main([*QUICK, "--check", "numeric=4"]) in (0, 1)
    assert "no spans are sent" in capsys.readouterr().err


def test_the_packages_are_imported_only_when_asked_for():
    code = (
        "import abduce, sys; abduce.solve; print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

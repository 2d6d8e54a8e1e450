"""Spans of runs: who is whose child, what they say, and that they add up to what the run says."""

import asyncio
import json
from itertools import pairwise

import pytest
from flows import Echo, ask, chain
from opentelemetry.trace import SpanKind, StatusCode
from spans import Kept, planned, searching, summed
from workflows import workflow

import abduce
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.trace import Called, NodeEnded, NodeStarted, RunEnded, RunStarted
from abduce.serving.errors import EngineError
from abduce.serving.flow import CallTool, Fork, Generate, Prompt, Rate, Sampling, Usage
from abduce.serving.scripted import Scripted
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import Check, Task
from abduce.tools.base import tool

STRATEGIES = ["particle_filter", "dvts", "mcts", "a_star", "best_of_n", "self_consistency"]


@pytest.fixture
def kept():
    return Kept()


# ---------------------------------------------------------------- who is whose child


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("budget", [None, "600 tokens"])
def test_spans_of_a_search_add_up_and_lie_in_each_other(kept, strategy, budget):
    result = searching(strategy, budget=budget).solve("Which?", observers=[kept.telemetry])
    spans = kept.spans
    for name in ("input_tokens", "output_tokens"):
        assert summed(spans, f"gen_ai.usage.{name}") == getattr(result.usage, name)
    [root] = [span for span in spans if span.parent is None]
    assert root.name == f"invoke_agent {strategy}"
    assert root.attributes["abduce.usage.calls"] == result.usage.calls
    assert root.attributes["abduce.complete"] == result.complete
    assert root.attributes["abduce.usage.input_tokens"] == result.usage.input_tokens
    for span, above in kept.tree():
        assert span.context.trace_id == root.context.trace_id
        assert span.start_time <= span.end_time
        for outer in above:
            assert outer.start_time <= span.start_time
            assert span.end_time <= outer.end_time
        # A call is a child of the branch that its path lies in.
        branches = [outer.attributes["abduce.branch"] for outer in above if outer.name == "branch"]
        here = span.attributes.get("abduce.path", span.attributes.get("abduce.branch", ""))
        parts = here.split(".")
        enclosing = [".".join(parts[:end]) for end in range(3, len(parts), 3)]
        assert branches == [b for b in enclosing if len(b.split(".")) < len(parts) - (len(parts) % 3 == 0)]


def test_branches_of_nested_forks(kept):
    def flow():
        yield [ask("first")]
        inner = Fork((chain("x", 2), chain("y", 1)))

        def outer():
            yield [ask("o")]
            [found] = yield [inner]
            return found

        [found] = yield [Fork((outer(), chain("z", 3)))]
        yield [ask("last")]
        return found

    planned(flow).solve("?", observers=[kept.telemetry])
    paths = {
        span.attributes["abduce.path"]: [s.attributes.get("abduce.branch", "") for s in above]
        for span, above in kept.tree()
        if "abduce.path" in span.attributes
    }
    assert paths == {
        "0.0": [""],
        "1.0.0.0.0": ["", "1.0.0"],
        "1.0.0.1.0.0.0.0": ["", "1.0.0", "1.0.0.1.0.0"],
        "1.0.0.1.0.0.1.0": ["", "1.0.0", "1.0.0.1.0.0"],
        "1.0.0.1.0.1.0.0": ["", "1.0.0", "1.0.0.1.0.1"],
        "1.0.1.0.0": ["", "1.0.1"],
        "1.0.1.1.0": ["", "1.0.1"],
        "1.0.1.2.0": ["", "1.0.1"],
        "2.0": [""],
    }
    parents = {s.attributes["abduce.branch"]: s.attributes["abduce.parent"] for s in kept.named("branch")}
    assert parents == {"1.0.0": "", "1.0.1": "", "1.0.0.1.0.0": "1.0.0", "1.0.0.1.0.1": "1.0.0"}
    last = next(s for s in kept.spans if s.attributes.get("abduce.path") == "2.0")
    assert all(branch.end_time <= last.start_time for branch in kept.named("branch"))


def test_visits_of_the_nodes_of_a_workflow(kept):
    see = kept.telemetry
    call = ask("x")
    reply = asyncio.run(Echo().generate(call, seed=1)).value
    see(RunStarted("r", "?", 0, {"recipe": {"name": "two-steps", "pipeline": ["solve", "verify"]}}))
    for visit, node in enumerate(["solve", "check", "solve"]):
        step = {"check": "verify"}.get(node, node)
        see(NodeStarted((visit,), node, step, 0.0))
        see(Called((visit, 0, 0), call, reply, Usage(2, 0, 3, 1), 0.0, 0.0))
        see(Called((visit, 1, 0, 4, 0, 0), call, reply, Usage(2, 0, 3, 1), 0.0, 0.0))
        see(NodeEnded((visit, 1 << 62), node, step, {"verified": step == "verify", "answer": "violet"}, 0.0))
    see(RunEnded("violet", True, Usage(12, 0, 18, 6), 1.0))
    names = {
        (span.attributes.get("abduce.path") or span.attributes.get("abduce.branch")): [s.name for s in above]
        for span, above in kept.tree()
        if span.name in ("branch", "text_completion embedded")
    }
    for visit, name in enumerate(["solve", "verify check", "solve"]):
        assert names[f"{visit}.0.0"] == ["invoke_workflow two-steps", name]
        assert names[f"{visit}.1.0.4"] == ["invoke_workflow two-steps", name]
        assert names[f"{visit}.1.0.4.0.0"] == ["invoke_workflow two-steps", name, "branch"]
    [verify] = kept.named("verify check")
    assert verify.attributes["abduce.verified"] is True
    assert verify.attributes["abduce.visit"] == 1
    assert verify.attributes["abduce.changed"] == ("answer", "verified")
    assert verify.attributes["abduce.usage.output_tokens"] == 6
    assert "violet" not in "".join(span.to_json() for span in kept.spans)


async def test_a_workflow(kept):
    task = Task("?", checks=(Check("numeric", {"value": 8}),))
    written = """
pipeline:
  - solve: {strategy: chain_of_thought}
  - verify: {by: checks, retries: 2}
"""
    result = await workflow(written).asolve(task, observers=[kept.telemetry])
    visits = [s for s in kept.spans if "abduce.node" in s.attributes]
    assert [s.attributes["abduce.node"] for s in visits] == ["solve", "verify"] * 3
    assert [s.attributes.get("abduce.verified") for s in visits[1::2]] == [False] * 3
    calls = [above for s, above in kept.tree() if "abduce.role" in s.attributes]
    assert [[outer.name.split()[0] for outer in above] for above in calls] == [
        ["invoke_workflow", "solve"]
    ] * 3
    assert summed(kept.spans, "gen_ai.usage.output_tokens") == result.usage.output_tokens
    for visit, after in pairwise(visits):
        assert visit.end_time <= after.start_time


def test_a_run_belongs_to_the_span_in_which_it_is_started(kept):
    with kept.provider.get_tracer("mine").start_as_current_span("mine"):
        abduce.solve("?", model=Scripted("4"), strategy="self_consistency", n=2, observers=[kept.telemetry])
    [mine], [run] = kept.named("mine"), kept.named("invoke_agent self_consistency")
    assert run.parent.span_id == mine.context.span_id


async def test_one_observer_tells_concurrent_runs_apart(kept):
    runs = [searching("dvts").asolve("?", seed=seed, observers=[kept.telemetry]) for seed in range(6)]
    results = await asyncio.gather(*runs)
    roots = {s.attributes["abduce.seed"]: s for s in kept.named("invoke_agent dvts")}
    for seed, result in enumerate(results):
        own = [s for s in kept.spans if s.context.trace_id == roots[seed].context.trace_id]
        assert summed(own, "gen_ai.usage.output_tokens") == result.usage.output_tokens


async def test_a_run_that_a_tool_starts_lies_in_that_of_the_tool(kept):
    @tool
    async def inner() -> str:
        """Another search."""
        return (await planned(lambda: chain("i", 1)).asolve("?", observers=[kept.telemetry])).text

    def flow():
        yield [ask("before")]
        [said] = yield [CallTool("inner")]
        yield [ask("after")]
        return said.text

    settings = {"strategy": "outer"}
    await planned(flow, tools={"inner": inner}, settings=settings).asolve("?", observers=[kept.telemetry])
    [outer] = kept.named("invoke_agent outer")
    assert [s.attributes["abduce.path"] for s, above in kept.tree() if above == [outer]] == [
        "0.0",
        "1.0",
        "2.0",
    ]
    assert len(kept.named("invoke_agent")) == 1
    assert all(span.status.status_code is not StatusCode.ERROR for span in kept.spans)


# ---------------------------------------------------------------- what they say


def test_a_call_by_the_conventions(kept):
    def flow():
        sampling = Sampling(temperature=0.5, top_p=0.9, top_k=3, max_tokens=7, stop=("\n",))
        [drawn] = yield [Generate(Prompt.user("2+2?"), n=2, sampling=sampling, seed=5)]
        return drawn[0].text

    settings = {"model": {"engine": "litellm", "model": "gemini/gemini-2.5-pro"}}
    planned(flow, Scripted("4"), settings=settings).solve("?", observers=[kept.telemetry])
    [call] = kept.named("chat gemini-2.5-pro")
    assert call.kind is SpanKind.CLIENT
    assert dict(call.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.request.model": "gemini-2.5-pro",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 3.0,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.stop_sequences": ("\n",),
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.seed": 5,
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.input_tokens": call.attributes["gen_ai.usage.input_tokens"],
        "gen_ai.usage.output_tokens": 4,
        "abduce.role": "policy",
        "abduce.path": "0.0",
    }


@pytest.mark.parametrize(
    ("settings", "role", "provider", "model"),
    [
        ({"model": "embedded"}, "policy", "embedded", "embedded"),
        ({"model": "embedded:qwen.gguf"}, "reward", "embedded", "qwen.gguf"),
        ({"model": "litellm:openai/gpt-4o-mini"}, "policy", "openai", "gpt-4o-mini"),
        ({"model": "litellm:azure/mine", "models": {"judge": "sglang"}}, "judge", "sglang", "sglang"),
        ({"model": "<Synthetic object>"}, "policy", "synthetic", "synthetic"),
        ({"recipe": {"model": {"engine": "sglang", "url": "http://x"}}}, "policy", "sglang", "sglang"),
        (
            {"recipe": {"pipeline": [{"solve": {"strategy": "a_star", "model": "x"}}]}},
            "policy",
            "abduce",
            None,
        ),
    ],
)
def test_who_is_called_is_read_from_what_the_run_is_made_of(kept, settings, role, provider, model):
    def flow():
        yield [Generate(Prompt(prefix="x"), model=role)]

    planned(flow, settings=settings).solve("?", observers=[kept.telemetry])
    [call] = [s for s in kept.spans if "abduce.role" in s.attributes]
    assert call.attributes["gen_ai.provider.name"] == provider
    assert call.attributes.get("gen_ai.request.model") == model
    assert call.name == f"text_completion {model or ''}".rstrip()


def test_tools_scores_and_budget(kept):
    @tool
    def half(n: int) -> float:
        """Half of it."""
        return n / 2

    def flow():
        yield [CallTool("half", {"n": 8}), CallTool("half", {"n": "x"}), CallTool("other")]
        yield [Rate(Prompt(prefix="a\n\n")), ask("x", 4)]

    engine = Synthetic(seed=1)
    budget = abduce.Budget(calls=10, tokens=500)
    settings = {"budget": budget, "model": "synthetic"}
    pipeline = planned(flow, engine, tools={"half": half}, budget=budget, settings=settings)
    result = pipeline.solve("?", observers=[kept.telemetry])
    good, bad = sorted(kept.named("execute_tool half"), key=lambda s: s.attributes["abduce.path"])
    assert (good.kind, good.status.status_code) == (SpanKind.INTERNAL, StatusCode.UNSET)
    assert good.attributes["gen_ai.tool.name"] == "half"
    for failed in (bad, *kept.named("execute_tool other")):
        assert failed.status.status_code is StatusCode.ERROR
        assert failed.attributes["error.type"] == "tool"
    [rated] = kept.named("rate synthetic")
    assert rated.attributes["abduce.score"] == pytest.approx(engine.value("a\n\n"))
    last = max((s for s in kept.spans if s.parent), key=lambda s: s.attributes["abduce.budget.tokens.used"])
    assert last.attributes["abduce.budget.tokens.used"] == result.usage.tokens
    assert last.attributes["abduce.budget.tokens.left"] == 500 - result.usage.tokens
    assert last.attributes["abduce.budget.calls.left"] == 8
    [root] = [s for s in kept.spans if s.parent is None]
    assert root.attributes["abduce.budget.tokens.limit"] == 500


def test_notes_tell_nodes_parents_and_scores(kept):
    searching("particle_filter").solve("Which?", observers=[kept.telemetry])
    rows, scores = {}, {}
    for note in kept.named("note nodes"):
        rows |= dict(
            zip(note.attributes["abduce.node.ids"], note.attributes["abduce.node.parents"], strict=True)
        )
    for note in kept.named("note scores"):
        scores |= dict(
            zip(note.attributes["abduce.node.ids"], note.attributes["abduce.node.scores"], strict=True)
        )
    assert set(rows.values()) <= {*rows, 0, -1}
    assert set(scores) <= set(rows)
    [root] = [s for s in kept.spans if s.parent is None]
    assert root.attributes["abduce.score"] == max(scores.values())
    assert all("abduce.resample.ess" in s.attributes for s in kept.named("note resample"))


def test_text_is_told_only_if_asked_for():
    def flow():
        [drawn] = yield [Generate(Prompt(Prompt.user("violet question").messages, prefix="violet start"))]
        [said] = yield [CallTool("show", {"what": "violet argument"})]
        return f"{drawn[0].text} {said.text}"

    @tool
    def show(what: str) -> str:
        """Show it."""
        return f"{what}, shown"

    silent, telling = Kept(), Kept(content=True)
    for each in (silent, telling):
        pipeline = planned(flow, Scripted("violet answer"), tools={"show": show})
        pipeline.solve("violet task", observers=[each.telemetry])
    assert "violet" not in "".join(span.to_json() for span in silent.spans)
    [call], [used] = telling.named("chat"), telling.named("execute_tool show")
    assert json.loads(call.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "violet question"}]},
        {"role": "assistant", "parts": [{"type": "text", "content": "violet start"}]},
    ]
    assert json.loads(call.attributes["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "violet answer"}],
            "finish_reason": "stop",
        }
    ]
    assert json.loads(used.attributes["gen_ai.tool.call.arguments"]) == {"what": "violet argument"}
    assert used.attributes["gen_ai.tool.call.result"] == "violet argument, shown"


# ---------------------------------------------------------------- what goes wrong


def test_a_call_that_fails_is_marked_and_the_run_goes_on(kept):
    def say(request, seed):
        if request.prompt.prefix == "bad":
            raise EngineError("no, for sk-0123456789abcdefghij")
        return "4"

    def flow():
        yield [ask("good"), ask("bad")]

    planned(flow, Echo(say)).solve("?", observers=[kept.telemetry])
    bad = next(s for s in kept.spans if s.attributes.get("abduce.path") == "0.1")
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, "no, for [secret]")
    assert bad.attributes["error.type"] == "engine"
    assert [s.status.status_code for s in kept.spans].count(StatusCode.ERROR) == 1


async def test_a_run_that_raises_or_is_cancelled_ends_as_failed(kept):
    def breaking():
        yield [Fork((chain("a", 1), chain("b", 1)))]
        raise ValueError("at sk-0123456789abcdefghij")

    with pytest.raises(ValueError):
        await planned(breaking).asolve("?", observers=[kept.telemetry])
    slow = asyncio.ensure_future(
        planned(lambda: chain("x", 9), Echo(delay_s=9)).asolve("?", observers=[kept.telemetry])
    )
    await asyncio.sleep(0.05)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    await planned(lambda: chain("x", 1)).asolve("?", observers=[kept.telemetry])
    broken, cancelled, fine = kept.named("invoke_agent")
    assert (broken.attributes["error.type"], broken.status.description) == (
        "ValueError",
        "ValueError: at [secret]",
    )
    assert cancelled.attributes["error.type"] == "CancelledError"
    assert fine.status.status_code is StatusCode.UNSET
    assert fine.parent is None
    assert len(kept.named("branch")) == 2


def test_replayed_calls_are_marked_and_counted(kept, tmp_path):
    pipeline, runs = searching("dvts"), Runs(tmp_path)
    pipeline.solve("?", store=runs)
    result = pipeline.solve("?", run=runs.open("last"), observers=[kept.telemetry])
    calls = [s for s in kept.spans if "abduce.role" in s.attributes]
    assert calls
    for call in calls:
        assert call.attributes["abduce.replayed"] is True
        assert call.start_time == call.end_time
        assert call.attributes["abduce.seconds"] > 0
    assert summed(calls, "gen_ai.usage.output_tokens") == result.usage.output_tokens


def test_what_is_left_open_ends_when_the_observer_is_closed(kept):
    kept.telemetry(RunStarted("r", "?", 0))
    kept.telemetry(NodeStarted((0,), "solve", "solve", 0.0))
    kept.telemetry.close()
    assert {span.name for span in kept.spans} == {"solve", "invoke_workflow"}
    [root] = kept.named("invoke_workflow")
    assert root.status.description == "the run did not end"


def test_an_event_that_cannot_be_told_fails_nothing(kept, caplog):
    kept.telemetry(RunStarted("r", "?", 0, {"budget": {"tokens": "many"}, "model": "x", "models": 7}))
    kept.telemetry(RunEnded(None, True, Usage(), 1.0))
    assert "No span could be made" in caplog.text
    searching("best_of_n").solve("?", observers=[kept.telemetry])
    assert kept.named("invoke_agent best_of_n")

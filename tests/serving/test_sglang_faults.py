"""What becomes of calls and of a whole search when their server fails. Real servers, of small models."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from abduce.orchestrator.runs import Runs
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Called, Event
from abduce.serving.errors import EngineError, TransientError
from abduce.serving.flow import Failure, Generate, Prompt, Sampling, Usage
from abduce.serving.sglang import Sglang, launch

QUESTION = "What is 12 + 30? Think step by step."


class Calls:
    """Hears what was called in a run."""

    def __init__(self) -> None:
        self.made: list[Called] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Called):
            self.made.append(event)


@pytest.mark.sglang
async def test_a_search_outlives_its_server(
    sglang_server: launch.Server, start_sglang: Callable[[], launch.Server], tmp_path: Path
) -> None:
    """Killed in mid-search and started again, with every reply counted once."""
    store = Runs(tmp_path / "runs")
    calls = Calls()
    pipeline = build(
        strategy="particle_filter",
        model={"engine": "sglang", "url": sglang_server.url, "patience_s": 120},
        policy={"preset": "cot", "sampling": {"temperature": 1.0, "max_tokens": 12}},
        budget="60k tokens",
        particles=4,
        max_steps=4,
    )
    search = asyncio.create_task(pipeline.asolve(QUESTION, store=store, observers=[calls]))
    async with asyncio.timeout(120):
        while len(calls.made) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    sglang_server.kill()
    start_sglang()
    assert not search.done()
    result = await asyncio.wait_for(search, 180)
    # The journal alone gives the same again: nothing is missing in it.
    [name] = store.names()
    again = Calls()
    replayed = await pipeline.asolve(QUESTION, run=store.open(name), observers=[again])
    assert result.complete
    assert any(call.attempts > 1 for call in calls.made)
    assert not any(isinstance(call.reply, Failure) for call in calls.made)
    called = sum((call.usage for call in calls.made), Usage(reward_passes=result.usage.reward_passes))
    assert called == result.usage
    assert all(call.replayed for call in again.made)
    assert (replayed.answer, replayed.usage) == (result.answer, result.usage)


# ---------------------------------------------------------------- a server that says what it is told to


@pytest.fixture
async def told() -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A server, and what it answers: set "status" and "body", or "drop" to break connections."""
    from aiohttp import web

    says: dict[str, Any] = {"status": 200, "body": "{}", "drop": False, "keys": set()}

    async def answer(request: web.Request) -> web.Response:
        says["keys"].add(request.headers.get("Authorization"))
        if request.path == "/health":
            return web.Response()
        if says["drop"]:
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=says["status"], text=says["body"])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", says
    await runner.cleanup()


ASKED = Generate(Prompt.user("hello"), sampling=Sampling(max_tokens=2))


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, {"error": {"message": "The input (9 tokens) is longer"}}, EngineError, "9 tokens"),
        (400, {"error": "unknown field `frob`"}, EngineError, "frob"),
        (422, {"object": "error", "message": "no such thing"}, EngineError, "no such thing"),
        (401, {"error": "Unauthorized"}, EngineError, "api_key"),
        (500, {"detail": "out of memory"}, TransientError, "out of memory"),
        (503, "shutting down", TransientError, "shutting down"),
        (200, "<html>", TransientError, "no JSON"),
    ],
)
async def test_faults_are_told_in_the_servers_words(
    told: tuple[str, dict[str, Any]], status: int, body: Any, kind: type[EngineError], words: str
) -> None:
    url, says = told
    says |= {"status": status, "body": body if isinstance(body, str) else json.dumps(body)}
    async with Sglang(url, api_key="secret-key") as engine:
        with pytest.raises(EngineError, match=words) as caught:
            await engine.generate(ASKED, seed=0)
    assert type(caught.value) is kind
    assert "secret-key" not in str(caught.value)
    assert says["keys"] == {"Bearer secret-key"}


async def test_a_broken_connection_is_a_fault_in_passing(told: tuple[str, dict[str, Any]]) -> None:
    url, says = told
    says["drop"] = True
    async with Sglang(url) as engine:
        with pytest.raises(TransientError, match="answers again"):
            await engine.generate(ASKED, seed=0)

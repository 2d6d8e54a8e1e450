"""A run in a real browser while it goes on."""

import asyncio
import threading
from contextlib import contextmanager

from abduce.orchestrator.background import start
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.solve import build
from abduce.orchestrator.viewer import serve
from abduce.serving.synthetic import Synthetic
from abduce.strategies.policy import StepPolicy

POLICY = StepPolicy(prompt="plain", answer_kind="text")


class Held(Synthetic):
    """A synthetic model that answers so many calls, and no more until it is let."""

    def __init__(self, calls):
        super().__init__(seed=3, depth=6)
        self.calls = calls
        self.let = asyncio.Event()

    async def generate(self, request, *, seed):
        if self.calls <= 0:
            await self.let.wait()
        self.calls -= 1
        return await super().generate(request, seed=seed)


def searching(store, calls):
    """A run that stands still after so many calls, and its model."""
    model = Held(calls)
    pipeline = build(
        strategy="particle_filter", policy=POLICY, model=model, reward={"kind": "rate", "squash": "none"}
    )
    return model, start(pipeline.asolve("which letters?", store=store))


def let(model):
    start(_set(model.let)).result(5)


async def _set(event):
    event.set()


@contextmanager
def served(choose):
    """The server in a thread of its own; gives its address."""
    addresses = []
    ready = threading.Event()

    def started(address):
        addresses.append(address)
        ready.set()

    async def until_cancelled():
        await serve.serve(choose, port=0, started=started)

    work = start(until_cancelled())
    assert ready.wait(5)
    try:
        yield addresses[0]
    finally:
        work.cancel()


def test_the_browser_sees_new_nodes_and_the_next_run(tmp_path, visit):
    store = Runs(tmp_path / "runs")

    def newest():
        return store.open("last").trace if store.names() else None

    with served(newest) as address:
        tab = visit(address)
        steps, answer, live = tab.locator("#figures dd").first, tab.locator("#answer b"), tab.locator(".live")
        assert "Waiting for a run" in tab.locator("h1").text_content()
        model, work = searching(store, calls=3)
        tab.wait_for_selector(".row:not([hidden])")
        assert tab.locator("h1").text_content() == "which letters?"
        assert live.is_visible()
        early = int(steps.inner_text().split()[0])
        let(model)
        result = work.result(timeout=20)
        answer.wait_for()
        late = int(steps.inner_text().split()[0])
        assert 0 < early < late == result.diagnostics["nodes"] - 1
        assert answer.text_content() == str(result.answer)
        assert live.count() == 0
        model, work = searching(store, calls=2)
        live.wait_for()
        answer.wait_for(state="detached")
        tab.wait_for_selector(".row:not([hidden])")
        assert 0 < int(steps.inner_text().split()[0]) < late
        let(model)
        work.result(timeout=20)

"""Real runs to look at, and a real browser to look with."""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.runs import Run, Runs
from abduce.orchestrator.solve import build
from abduce.serving.synthetic import Synthetic
from abduce.strategies import strategy
from abduce.strategies.policy import StepPolicy

POLICY = StepPolicy(prompt="plain", answer_kind="text", logprobs=True)
RATE = {"kind": "rate", "squash": "none"}
MakeRun = Callable[..., Run]


class Slow(Synthetic):
    """A synthetic model that takes its time, so that calls overlap."""

    def __init__(self, *, delay_s: float, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.delay_s, self.random = delay_s, Random(0)

    async def generate(self, request, *, seed):
        await asyncio.sleep(self.delay_s * self.random.random())
        return await super().generate(request, seed=seed)


def solved(
    store: Runs, name: str, *, model: Any = None, question: str = "which letters?", **options: Any
) -> Run:
    """A run of a strategy, kept in the store."""
    seed = options.pop("seed", 0)
    if "reward" in strategy(name).__dataclass_fields__:
        options.setdefault("reward", RATE)
    options.setdefault("policy", POLICY)
    pipeline = build(strategy=name, model=model or Synthetic(seed=3, depth=6), **options)
    before = set(store.names())
    pipeline.solve(question, seed=seed, store=store)
    [made] = set(store.names()) - before
    return store.open(made)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def run_of(store: Runs) -> MakeRun:
    """Runs by strategy and options, each solved once."""
    known: dict[str, Run] = {}

    def made(name: str, **options: Any) -> Run:
        key = repr((name, sorted(options.items())))
        if key not in known:
            known[key] = solved(store, name, **options)
        return known[key]

    return made


SEVERAL_STEPS = """
name: several
model: {engine: synthetic, seed: 3, depth: 5}
reward: {kind: rate, squash: none}
policy: {preset: cot, answer_kind: text}
budget: {tokens: 20000}
solvers:
  wide: {strategy: {name: particle_filter, particles: 8}}
pipeline:
  - solve: wide
  - verify: agreement
  - revise: wide
"""


@pytest.fixture(scope="session")
def several(store: Runs) -> Run:
    """A run of a recipe that searches twice."""
    pipeline = recipe.check(strict_yaml.parse(SEVERAL_STEPS)).pipeline()
    before = set(store.names())
    pipeline.solve("which letters?", store=store)
    [made] = set(store.names()) - before
    return store.open(made)


@pytest.fixture(scope="session")
def big(store: Runs) -> Run:
    """More than 5,000 nodes."""
    model = Synthetic(seed=5, alphabet="abcdefgh", depth=12)
    return solved(store, "particle_filter", particles=1150, model=model)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser without a screen. While it is open no test may be async: its driver runs a loop."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    playwright = pytest.importorskip("playwright.sync_api")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a context of its own; nothing may be said on its console, and it may ask nobody."""
    opened = []

    def go(page: Path | str, *, ready: bool = True, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
        tab, heard = context.new_page(), SimpleNamespace(said=[], asked=[])
        tab.on("console", lambda message: heard.said.append(message.text))
        tab.on("pageerror", lambda error: heard.said.append(str(error)))
        tab.on("request", lambda request: heard.asked.append(request.url))
        address = page.as_uri() if isinstance(page, Path) else page
        tab.goto(address)
        tab.set_default_timeout(10_000)
        if ready:
            tab.wait_for_selector("html[data-ready]", state="attached")
        opened.append((context, heard, address))
        return tab

    yield go
    for context, heard, address in opened:
        context.close()
        assert heard.said == []
        assert all(url.startswith(address) for url in heard.asked), heard.asked

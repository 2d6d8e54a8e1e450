"""Secrets in every place where a user can put one, looked for in everything that is written or shown.

Each sink is searched twice: with redaction, where nothing may be found, and with redaction off, where the
secrets must be found: else the search would prove nothing.
"""

import argparse
import io
import json
import logging
import os
import stat
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
from collector import collecting
from gateways import ASKED, listening
from rich.console import Console

import abduce
from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator import cli
from abduce.orchestrator.commands.solve import watched
from abduce.orchestrator.evaluate import Results, evaluate, header, read_problems
from abduce.orchestrator.gateway.served import Served
from abduce.orchestrator.live import Lines, Screen
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import Pipeline
from abduce.orchestrator.telemetry import OpenTelemetry
from abduce.serving import ENGINES, Built, engine, redact
from abduce.serving.base import Engine
from abduce.serving.base import Served as Reply
from abduce.serving.entries import Entry
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.flow import CallTool, Completion, Generate, Note, Prompt, Usage
from abduce.strategies.base import Candidate, Result
from abduce.tools.base import tool

SECRETS = {
    "in the model's spec": "violet-heron-spec-41",
    "in a header": "violet-heron-header-42",
    "behind ${secret:NAME}": "violet-heron-named-43",
    "in the environment": "violet-heron-environ-44",
}
ALL = " ".join(SECRETS.values())


class Leaky(Engine):
    """Says all it knows, also when it fails."""

    name = "leaky"
    capabilities = frozenset({"generate"})

    def __init__(self, *, api_key, headers=None):
        self.known = f"{api_key} {' '.join((headers or {}).values())} {os.environ['LEAKY_NAMED']}"

    async def generate(self, request, *, seed):
        if "refuse" in request.prompt.messages[0].content:
            raise EngineError(f"Incorrect API key provided: {self.known}")
        if "break" in request.prompt.messages[0].content:
            raise ValueError(f"of a client library: {self.known}")
        text = f"I was told {self.known} {request.prompt.prefix}"
        drawn = Completion(text, ids=(1, 2, 3), n_tokens=3)
        return Reply((drawn,), Usage(input_tokens=3, output_tokens=3, calls=1))


@tool
def environment() -> str:
    """All variables."""
    return " ".join(f"{name}={value}" for name, value in os.environ.items() if "LEAKY" in name)


@dataclass(frozen=True)
class Blurting:
    """Calls, fails, and tells what it heard."""

    raises: bool = False

    def solve(self, task, *, seed):
        [listed] = yield [CallTool("environment")]
        asked = [Prompt(Prompt.user(task.question).messages, prefix=listed.text)]
        asked += [Prompt.user("refuse"), Prompt.user("break")]
        [[drawn], refused, broken] = yield [Generate(prompt) for prompt in asked]
        text = f"{drawn.text} {listed.text}"
        row = {"id": 1, "parent": None, "depth": 1, "text": text, "score": 0.9, "terminal": True}
        yield [Note("nodes", {"nodes": [row]})]
        if self.raises:
            raise ValueError(text)
        told = {"failures": [refused.message, broken.message], "stopped": f"{refused.message} {text}"}
        return Result(text, text, (Candidate(text, text),), complete=False, diagnostics=told)


@pytest.fixture(params=[True, False], ids=["redacted", "redaction off"])
def redacted(request, monkeypatch, tmp_path):
    """Whether secrets are redacted; the engine and the environment that hold them."""
    monkeypatch.setattr(redact, "_known", redact._Known())
    if not request.param:
        for name in ("known", "text", "line", "settings", "data"):
            monkeypatch.setattr(redact, name, lambda said: said)
    module = ModuleType("abduce.serving.leaky")
    module.Leaky = Leaky
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ENGINES, "leaky", Built("Leaky", Leaky.capabilities))
    monkeypatch.setenv("LEAKY_NAMED", SECRETS["behind ${secret:NAME}"])
    monkeypatch.setenv("LEAKY_TOKEN", SECRETS["in the environment"])
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "home"))
    abduce.serving.settings.secret("LEAKY_NAMED")
    return request.param


@pytest.fixture
def pipeline(redacted):
    return made()


def made(**changes):
    spec = {
        "engine": "leaky",
        "api_key": SECRETS["in the model's spec"],
        "headers": {"Authorization": f"Bearer {SECRETS['in a header']}"},
    }
    services = Services({"policy": engine(spec)}, tools={"environment": environment})
    return Pipeline(Blurting(**changes), services, settings={"model": spec})


def found(text, *where):
    """Which secrets a text holds."""
    return {place for place, secret in SECRETS.items() if secret in text and (not where or place in where)}


def judge(text, redacted, *where):
    """Nothing is left; with redaction off everything, or what is to be expected there."""
    assert found(text) == (set() if redacted else set(where or SECRETS))


def files(folder):
    """All that is under a folder, but for journals, which keep replies to the letter."""
    whole = [file for file in sorted(folder.rglob("*")) if file.is_file() and "journal.db" not in file.name]
    return {file.name: file.read_bytes().decode("utf-8", "replace") for file in whole}


OF_SETTINGS = ("in the model's spec", "in a header")


# ---------------------------------------------------------------- files


def test_files_of_a_run(pipeline, redacted, tmp_path):
    pipeline.solve("Which?", store=Runs(tmp_path / "runs"))
    written = files(tmp_path / "runs")
    assert {"run.json", "trace.jsonl", "result.json"} <= written.keys()
    judge(written.pop("run.json"), redacted, *OF_SETTINGS)
    judge(written.pop("trace.jsonl"), redacted)
    judge(written.pop("result.json"), redacted)
    assert not any(map(found, written.values()))


def test_the_journal_keeps_replies_and_nobody_else_can_read_it(pipeline, tmp_path):
    runs = Runs(tmp_path / "runs")
    before = pipeline.solve("Which?", store=runs)
    run = runs.open("last")
    assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
    assert found((run.folder / "journal.db").read_bytes().decode("latin-1"))
    assert pipeline.solve("Which?", run=run).text == before.text


async def test_results_of_an_evaluation(pipeline, redacted, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "Which?", "answer": "56"}\n')
    results = Results(tmp_path / "out.jsonl", header(pipeline, data, 0))
    await evaluate(pipeline, read_problems(data), results)
    results.close()
    judge((tmp_path / "out.jsonl").read_text(), redacted)


# ---------------------------------------------------------------- screens


def test_lines_and_screen(pipeline, redacted):
    lines, screen = (
        Console(file=io.StringIO(), force_terminal=terminal, width=400) for terminal in (False, True)
    )
    tree = Screen(screen)
    pipeline.solve("Which?", observers=[Lines(lines), tree])
    screen.print(tree.render())
    judge(lines.file.getvalue(), redacted)
    judge(screen.file.getvalue(), redacted)


@pytest.mark.parametrize("as_json", [False, True])
def test_what_the_command_line_prints(pipeline, redacted, capsys, as_json):
    chosen = argparse.Namespace(no_trace=False, json=as_json)
    code = watched(lambda watching, *_: pipeline.solve("Which?", observers=watching), pipeline.budget, chosen)
    printed = capsys.readouterr()
    assert code == 1
    judge(printed.out, redacted)
    if not as_json:
        judge(printed.err, redacted)


@pytest.mark.parametrize("words", [("show",), ("export",), ("export", "--format", "graphml")])
def test_a_trace_that_is_looked_at_later(pipeline, redacted, tmp_path, capsys, words):
    pipeline.solve("Which?", store=Runs(tmp_path / "home" / "runs"))
    assert cli.main(["trace", words[0], "last", *words[1:]]) == 0
    judge(capsys.readouterr().out, redacted)


def test_pages_and_pictures(pipeline, redacted, tmp_path, capsys):
    pipeline.solve("Which?", store=Runs(tmp_path / "home" / "runs"))
    page, picture = tmp_path / "run.html", tmp_path / "run.svg"
    assert cli.main(["trace", "html", "last", "--out", str(page)]) == 0
    judge(page.read_text(), redacted)
    pytest.importorskip("matplotlib")
    assert cli.main(["trace", "plot", "last", "--out", str(picture)]) == 0
    assert not found(picture.read_text()) or not redacted


RECIPE = """
name: leaky
model: {engine: leaky, api_key: "${secret:LEAKY_NAMED}"}
strategy: {name: best_of_n, n: 2}
reward: agreement
"""


def test_a_sitting_in_the_repl(redacted, tmp_path, capsys):
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "script"
    recipe.write_text(RECIPE)
    said = ["Which?", "tree", "show 1", f"save {tmp_path / 'sitting'}"]
    said += [f"export {tmp_path / name}" for name in ("tree.json", "events.jsonl")]
    script.write_text("\n".join(said))
    assert cli.main(["repl", "--recipe", str(recipe), "--script", str(script)]) == 0
    told = capsys.readouterr()
    named = "behind ${secret:NAME}"
    judge(told.out + told.err, redacted, named)
    judge((tmp_path / "sitting").read_text(), redacted, named)
    judge((tmp_path / "tree.json").read_text(), redacted, named)
    judge((tmp_path / "events.jsonl").read_text(), redacted, named)


def test_a_recipe_that_names_its_secret(redacted, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    code = cli.main(["solve", "Which?", "--recipe", str(file)])
    assert code in (0, 1)
    told = capsys.readouterr()
    named = "behind ${secret:NAME}"
    judge(told.out + told.err, redacted, named)
    written = files(tmp_path / "home")
    assert "${secret:LEAKY_NAMED}" in written["run.json"]
    assert not found(written["run.json"])
    judge(written["trace.jsonl"], redacted, named)
    redact._known = redact._Known()  # as in a later process
    assert cli.main(["runs", "show", "last", "--replies"]) == 0
    judge(capsys.readouterr().out, redacted, named)


async def test_a_memory(redacted, tmp_path):
    store = SqliteStore(tmp_path / "notes.db")
    key = SECRETS["behind ${secret:NAME}"]
    await store.write([Entry("key", f"The key is {key}.", data={"key": [key]})], reason=f"for {key}")
    [found] = await store.search("the key", 1)
    judge(found.entry.text, redacted, "behind ${secret:NAME}")
    assert any(key.encode() in file.read_bytes() for file in tmp_path.glob("notes.db*")) != redacted


@pytest.mark.parametrize("content", [True, False])
def test_spans(pipeline, redacted, content):
    headers = {"x-auth": "violet-heron-collector-45"}
    with collecting() as collector:
        with OpenTelemetry(endpoint=collector.url, headers=headers, content=content) as telemetry:
            pipeline.solve("Which?", observers=[telemetry])
            with pytest.raises(ValueError):
                made(raises=True).solve("Which?", observers=[telemetry])
        judge(collector.raw.decode("utf-8", "replace"), redacted)  # without content: of what failed
        assert "violet-heron-collector-45" not in collector.raw.decode("utf-8", "replace")
        assert len([s for s in collector.spans if not s.parent_span_id]) == 2


# ---------------------------------------------------------------- errors and logs


def test_error_messages(redacted, capsys):
    key = SECRETS["in the model's spec"]
    messages = []
    for mistake in (
        lambda: abduce.build(model={"engin": "leaky", "api_key": key}),
        lambda: abduce.build(model=["leaky", {"api_key": key}]),
        lambda: abduce.build(policy=[{"api_key": key}]),
        lambda: abduce.build(model={"engine": "leaky", "api_key": key}, budget=[key]),
    ):
        with pytest.raises(UsageError) as caught:
            mistake()
        messages.append(str(caught.value))
    judge(" ".join(messages), redacted, "in the model's spec")


def test_a_traceback_on_the_command_line(redacted, monkeypatch, capsys):
    def fault(chosen):
        raise ValueError(f"of a client library: {SECRETS['behind ${secret:NAME}']}")

    monkeypatch.setattr("abduce.orchestrator.commands.show.strategies", fault)
    assert cli.main(["strategies"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    judge(told, redacted, "behind ${secret:NAME}")


async def test_replies_and_log_of_the_gateway(pipeline, redacted, caplog):
    bad = made(raises=True)
    with caplog.at_level(logging.INFO, "abduce.gateway"):
        async with listening(Served("m", pipeline, pipeline), Served("bad", bad, bad)) as running:
            _, told, _ = await running.post(body=ASKED | {"model": "m"})
            streamed = await _stream(running, ASKED | {"model": "m", "stream": True})
            status, failed, _ = await running.post(body=ASKED | {"model": "bad"})
    judge(json.dumps(told), redacted)
    judge(streamed, redacted)
    assert status == 500
    assert not found(json.dumps(failed))
    judge(caplog.text, redacted)


async def _stream(running, body):
    """The text of a streamed answer, put together again."""
    async with running.session.post(f"{running.url}/v1/chat/completions", json=body) as response:
        raw = (await response.read()).decode()
    rows = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"].get("content") or "" for row in rows for choice in row["choices"]]
    return raw + "".join(deltas)

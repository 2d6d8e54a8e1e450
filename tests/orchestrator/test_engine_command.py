"""`abduce engine`: what it says, what it starts, what it leaves behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from abduce.orchestrator.cli import main
from abduce.serving.flow import Generate, LogProb, Prompt, Sampling
from abduce.serving.sglang import Sglang, launch

from ..serving.sglang_env import launcher


def test_each_flag_is_printed_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "some/model", "--port", "31234", "--flags=--tp 2", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for flag in launch.flags(gpu=launch.has_gpu(), amx=launch.has_amx()):
        assert " ".join(flag.words) in shown
        assert flag.reason in shown
    assert "--model-path some/model --host 127.0.0.1 --port 31234" in shown
    assert "--tp 2" in shown.splitlines()[-1]


def test_replicas_stand_behind_a_cache_aware_router(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "some/model", "--port", "31234", "--replicas", "2", "--dry-run"]) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if " -m sglang" in line]
    assert len(commands) == 3
    assert "--port 31235" in commands[0]
    assert "--port 31236" in commands[1]
    assert "--policy cache_aware" in commands[2]
    assert "--worker-urls http://127.0.0.1:31235 http://127.0.0.1:31236" in commands[2]


def test_a_kv_method_is_a_backend_and_its_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "some/model", "--kv", "ems: budget=1024,window=32", "--dry-run"]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert "ABDUCE_KV=ems:budget=1024 " in command
    assert command.count("--attention-backend") == 1
    assert "--attention-backend abduce_ems" in command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["m", "--kv", "h2o"], "--kv: no KV method 'h2o'. Write one of ems, actqkv, deltallm"),
        (["m", "--kv", "ems:budget=x"], "ems:budget is a whole number"),
        (["model.gguf"], "abduce engine small"),
        (["m", "--python", "/no/such/python"], "is no Python that runs"),
        (["m", "--python", sys.executable], "SGLang is not installed"),
    ],
)
def test_mistakes_say_what_to_do(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    if told == "SGLang is not installed":
        try:
            import sglang  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("SGLang is installed here")
    assert main(["engine", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_server_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    server = launch.Server(command, f"http://127.0.0.1:{launch.free_port()}", log=tmp_path / "log")
    with pytest.raises(launch.UsageError, match=r"(?s)code 3.*no such model"):
        server.wait(30)
    server.stop()


LISTENER = """
import http.server, sys, time
time.sleep(float(sys.argv[2]))
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def listener(port: int, log: Path, after_s: float = 0) -> launch.Server:
    """What listens late and answers as a server does."""
    command = [sys.executable, "-c", LISTENER, str(port), str(after_s)]
    return launch.Server(command, f"http://127.0.0.1:{port}", log=log)


def test_what_listens_already_is_not_taken_for_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from abduce.orchestrator.commands import engine

    monkeypatch.setattr(engine, "_check", lambda *_, **__: None)
    port = launch.free_port()
    with launch.running(listener(port, tmp_path / "log"), timeout_s=60):
        assert main(["engine", "m", "--port", str(port), "--logs", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "Serving" not in told.out
    assert f"listens at http://127.0.0.1:{port} already" in told.err
    assert "--port" in told.err


def test_the_port_is_held_while_the_server_loads(tmp_path: Path) -> None:
    """No other program gets it, unless it asks to share; the server can listen there, and again at once when
    it was killed."""
    port = launch.free_port()
    for i in range(2):
        server = listener(port, tmp_path / f"log{i}", after_s=0.5)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        with launch.running(server, timeout_s=60):
            assert urlopen(server.url, timeout=5).status == 200
            server.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the range of Linux")
def test_a_free_port_is_none_that_connections_are_given() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not any(low <= launch.free_port() <= high for _ in range(50))


def test_there_is_a_free_port_where_connections_are_given_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_given_away", lambda: (1024, 65_535))
    assert launch.free_port() >= 10_000


def test_the_whole_group_ends(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = (
        f"import time; open({str(pipe)!r}, 'w').write('x'); held = open({str(pipe)!r}, 'w'); time.sleep(60)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    server = launch.Server([sys.executable, "-c", code], "http://127.0.0.1:1", log=tmp_path / "log")
    with pipe.open() as told:
        assert told.read(1) == "x"  # the child of the server lives
        time.sleep(0.2)
        server.stop()
        assert told.read() == ""  # nobody holds the pipe any more


def test_a_server_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """Not even kill -9 leaves one behind."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = f"import time; held = open({str(pipe)!r}, 'w'); held.write('x'); held.flush(); time.sleep(60)"
    code = (
        "import sys, time; from pathlib import Path; from abduce.serving.sglang import launch\n"
        f"log, command = Path({str(tmp_path)!r}, 'l'), [sys.executable, '-c', {child!r}]\n"
        "server = launch.Server(command, 'http://127.0.0.1:1', log=log)\n"
        "time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code])
    with pipe.open() as told:
        assert told.read(1) == "x"
        starter.kill()
        starter.wait()
        assert told.read() == ""


async def two_samples(url: str) -> None:
    async with Sglang(url) as engine:
        await engine.ready()
        prompt, sampling = Prompt.user("Name three colours."), Sampling(temperature=0.5, max_tokens=4)
        asked = Generate(prompt, n=2, sampling=sampling, logprobs=True)
        drawn, usage = await engine.generate(asked, seed=1)
        assert [len(each.logprobs) for each in drawn] == [len(each.ids) for each in drawn]
        assert len(drawn) == 2
        assert usage.input_tokens == engine.count_tokens(prompt)
        told, _ = await engine.logprob(LogProb(prompt, continuation_ids=drawn[0].ids))
        assert told.logprobs == pytest.approx(drawn[0].logprobs, abs=1e-3)


@contextmanager
def serving(folder: Path, python: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """The command, its address, and the file of what it prints."""
    folder.mkdir()
    port, out = launcher.free_port(), folder / "out"
    words = ["engine", "small", "--python", str(python), "--port", str(port), "--logs", str(folder), *more]
    words.append("--flags=--max-total-tokens 4096 --mem-fraction-static 0.6")
    environment = {**os.environ, **launcher.VARIABLES, "PYTHONUNBUFFERED": "1"}
    with out.open("w") as file:
        command = subprocess.Popen(
            [sys.executable, "-m", "abduce", *words], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield command, f"http://127.0.0.1:{port}", out
    finally:
        command.kill()
        command.wait()


@pytest.mark.sglang
def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    """One server, as it starts anywhere, and two behind a router. Both commands start at once."""
    with ExitStack() as stack:
        kinds = {"one": (launcher.PYTHON,), "replicas": (launcher.warm(), "--replicas", "2")}
        engines = [stack.enter_context(serving(tmp_path / name, *words)) for name, words in kinds.items()]
        until = time.monotonic() + 900  # a busy machine takes its time
        for command, _, out in engines:
            while "Ctrl-C ends it" not in out.read_text():
                assert command.poll() is None, out.read_text()
                assert time.monotonic() < until, out.read_text()
                time.sleep(0.2)
        for command, url, _ in engines:
            asyncio.run(two_samples(url))
            command.send_signal(signal.SIGINT)
        for command, url, out in engines:
            assert command.wait(60) == 130, out.read_text()
            assert f'model: {{engine: sglang, url: "{url}"}}' in out.read_text()
            with pytest.raises(OSError, match="refused"):
                urlopen(f"{url}/health", timeout=5)

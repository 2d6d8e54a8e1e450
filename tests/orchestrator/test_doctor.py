"""What the doctor says of engines, on the machine as it is and on others."""

import json
import re
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from abduce.orchestrator.commands import doctor
from abduce.serving import ENGINES
from abduce.tools.sandbox import Sandbox, SandboxRefused


def said(name: str) -> doctor.Finding:
    return next(found for found in doctor._engines() if found.part == f"engine {name}")


def test_every_engine_is_told_with_what_it_gives() -> None:
    told = {found.part.removeprefix("engine "): found.found for found in doctor._engines()}
    assert set(told) == set(ENGINES)
    for name, words in told.items():
        assert all(each in words for each in ENGINES[name].capabilities - {"generate"})


def test_what_is_missing_comes_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    lines = {found.part: found.remedy for found in doctor._engines() if not found.ok}
    assert lines["engine embedded"] == "pip install xllamacpp"
    assert lines["engine litellm"] == "pip install 'abduce[hosted]'"
    assert lines["engine transformers"] == "pip install 'abduce[transformers]'"
    assert "engine synthetic" not in lines
    assert [found.part for found in doctor._engines() if found.needed] == ["engine embedded"]


def test_every_extra_is_told_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {found.part: found for found in doctor._extras()}
    assert here["extra tools"].ok and "sympy" in here["extra tools"].found and not here["extra tools"].remedy
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    for extra in doctor._EXTRAS:
        [found] = [each for each in doctor._extras() if each.part == f"extra {extra}"]
        assert (found.ok, found.needed, found.remedy) == (False, False, f"pip install 'abduce[{extra}]'")


def test_the_extras_told_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    engines, nothing_yet = {"hosted", "sglang", "transformers"}, {"ray"}
    assert doctor._EXTRAS.keys() == extras.keys() - {"test", "dev"} - engines - nothing_yet
    for extra, (_, packages) in doctor._EXTRAS.items():
        named = {re.match(r"[\w.-]+", each)[0] for each in extras[extra]}  # type: ignore[index]
        assert named <= set(packages)
    named = {re.match(r"[\w.-]+", each)[0] for each in project["dependencies"]}  # type: ignore[index]
    assert named == set(doctor._CORE)


def test_a_compromised_litellm_is_no_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1.107.0")
    assert not said("litellm").ok
    assert "!=1.107.0" in said("litellm").remedy


@pytest.fixture
def server() -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/model_info"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"model_path": "small"}).encode() if found else b"{}")

        def log_message(self, *_: object) -> None:
            """Silent."""

    served = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def test_an_sglang_server_is_found_where_there_is_one(server: str) -> None:
    assert doctor._served(server) == "small"
    assert doctor._served("http://127.0.0.1:9") is None


def test_the_sandbox_is_told_with_what_would_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abduce.tools.sandbox.Sandbox.isolation", "kernel")
    monkeypatch.setenv("ABDUCE_SANDBOX", "isolated")
    [found] = doctor._sandbox()
    assert found.ok
    monkeypatch.setattr("abduce.tools.sandbox.Sandbox.isolation", property(_refused))
    [found] = doctor._sandbox()
    assert (found.ok, found.needed, found.remedy) == (False, False, "this line")
    assert "no namespaces" in found.found
    for word in ("unsafe", "off"):
        monkeypatch.setenv("ABDUCE_SANDBOX", word)
        [found] = doctor._sandbox()
        assert (found.ok, found.remedy) == (False, "unset ABDUCE_SANDBOX")


def _refused(sandbox: Sandbox) -> str:
    raise SandboxRefused("no namespaces", "this line")

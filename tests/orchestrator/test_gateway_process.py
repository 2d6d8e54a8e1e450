"""`abduce serve` as a process: what it prints, how it ends, what it refuses; the real model once."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from gateways import listening, openai, passing, recipe

from abduce.orchestrator import cli

ROOT = Path(__file__).parents[2]
SLOW = """\
name: slow
model: {engine: scripted, replies: The answer is 56., latency_s: 1.0}
strategy: chain_of_thought
"""
BODY = {"messages": [{"role": "user", "content": "What is 7 x 8?"}]}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("ABDUCE_API_KEYS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.yaml").write_text(SLOW)


@contextlib.contextmanager
def serving(*words):
    """The process, and the address it prints."""
    command = [sys.executable, "-m", "abduce", "serve", *words, "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        found = re.search(r"http://[\d.]+:\d+/v1", line)
        assert found, line + process.stderr.read()
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


def ask(url, body, key=None):
    """Status and reply."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urlopen(Request(url, json.dumps(body).encode(), headers)) as reply:
            return reply.status, json.loads(reply.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


def in_background(url, body):
    """A request that another process makes."""
    code = "import sys, urllib.request as u; r = u.Request(sys.argv[1], sys.argv[2].encode(), " \
        "{'Content-Type': 'application/json'}); sys.stdout.write(u.urlopen(r).read().decode())"  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", code, url, json.dumps(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(url, gauge):
    """Wait until a gauge of the server is not 0."""
    for _ in range(2000):
        with urlopen(url.replace("/v1", "/metrics")) as reply:
            if f"\n{gauge} 0\n" not in reply.read().decode():
                return
        time.sleep(0.01)
    raise AssertionError(f"{gauge} stays 0")


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_running_requests_end_and_refuses_new_ones(sign):
    with serving("slow.yaml") as (process, url):
        request = in_background(f"{url}/chat/completions", {"model": "slow", **BODY})
        until(url, "abduce_requests_running")
        process.send_signal(sign)
        until(url, "abduce_draining")
        status, told = ask(f"{url}/chat/completions", {"model": "slow", **BODY})
        assert status == 503 and told["error"]["code"] == "shutting_down"
        out, err = request.communicate(timeout=20)
        assert "The answer is 56." in out, err
        assert process.wait(timeout=10) == 0
        said = process.stderr.read()
        assert "draining: 1 requests" in said and said.rstrip().endswith("abduce: stopped")
        assert "Traceback" not in said


@pytest.mark.parametrize("again", [True, False], ids=["a second signal", "--drain-s"])
def test_what_does_not_end_in_time_is_cut_off(again):
    Path("slow.yaml").write_text(SLOW.replace("1.0", "60"))
    with serving("slow.yaml", "--drain-s", "60" if again else "1") as (process, url):
        request = in_background(f"{url}/chat/completions", {"model": "slow", **BODY})
        until(url, "abduce_requests_running")
        began = time.perf_counter()
        process.send_signal(signal.SIGINT)
        if again:
            until(url, "abduce_draining")
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert time.perf_counter() - began < 5
        _, err = request.communicate(timeout=10)
        assert "503" in err
        assert "cutting off 1 requests" in process.stderr.read()


def test_keys_from_a_file_and_what_is_printed():
    Path("keys.yaml").write_text("alice: {key: sk-alice-0001, tokens: 1}\n")
    Path("slow.yaml").write_text(SLOW.replace("1.0", "0"))
    with serving("slow.yaml", "--keys", "keys.yaml", "--host", "0.0.0.0") as (process, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        asked = {"model": "slow", **BODY}
        assert ask(f"{url}/chat/completions", asked)[0] == 401
        assert ask(f"{url}/chat/completions", asked, "sk-alice-0001")[0] == 200
        assert ask(f"{url}/chat/completions", asked, "sk-alice-0001")[0] == 429
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        said = process.stderr.read()
    assert re.search(r"200 alice slow \d+\.\d{3} s, \d+ tokens", said)
    assert "sk-alice" not in said and "1 keys" in said
    assert "sk-alice" not in Path("state/gateway/spent.json").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name a recipe"),
        (["slow.yaml", "--host", "0.0.0.0"], "Without API keys anybody"),
        (["slow.yaml", "--host", "::"], "Without API keys anybody"),
        (["slow.yaml", "slow.yaml"], "Two models are named 'slow'"),
        (["best-of-n-products"], "works with checks"),
        (["slo.yaml"], "No recipe file"),
        (["slow.yaml", "--keys", "none.yaml"], "none.yaml"),
        (["slow.yaml", "--concurrency", "0"], "'0' is not a whole number above 0"),
        (["slow.yaml", "--port", "70000"], "--port"),
        (["--model", "embeded"], "Did you mean 'embedded'"),
    ],
)
def test_what_it_refuses_to_start_with(words, said, capsys):
    assert cli.main(["serve", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_an_address_that_is_taken_is_told():
    with serving("slow.yaml") as (_, url):
        port = re.search(r":(\d+)/", url)[1]
        command = [sys.executable, "-m", "abduce", "serve", "slow.yaml", "--port", port]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        second = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 2 and "Choose another --port" in second.stderr
    assert "Traceback" not in second.stderr


async def test_the_real_model_behind_the_official_client(embedded):
    models = (
        passing("embedded", embedded),
        recipe("vote", embedded, "self_consistency", policy="few_shot", n=4, budget="4k tokens"),
    )
    asked = {"messages": [{"role": "user", "content": "A box holds 3 pens. How many pens are in 5 boxes?"}]}
    async with listening(*models) as served, served.client(timeout=120) as client:
        plain = await client.chat.completions.create(model="embedded", **asked, max_tokens=12, logprobs=True)
        assert plain.choices[0].message.content and len(plain.choices[0].logprobs.content) <= 12
        stream = await client.chat.completions.create(
            model="vote", **asked, seed=1, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert chunks[-1].usage.completion_tokens > 0
        schema = {
            "type": "object",
            "properties": {"pens": {"type": "integer"}},
            "required": ["pens"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema}}
        for model in ("embedded", "vote"):
            reply = await client.chat.completions.create(model=model, **asked, response_format=form)
            assert list(json.loads(reply.choices[0].message.content)) == ["pens"]
        form["json_schema"]["schema"] = {"type": "no type"}
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="embedded", **asked, response_format=form)
        tool = {
            "type": "function",
            "function": {"name": "multiply", "description": "Multiplies two numbers."},
        }
        without = plain.usage.prompt_tokens
        offered = await client.chat.completions.create(model="embedded", **asked, max_tokens=12, tools=[tool])
        assert offered.usage.prompt_tokens > without + 10  # the model is told of it
        with pytest.raises(openai.BadRequestError, match="context"):
            long = [{"role": "user", "content": "very " * 5000}]
            await client.chat.completions.create(model="embedded", messages=long)

"""What the gateway costs and holds: requests a second, the first streamed event, many clients at once.

    python benchmarks/gateway.py [--seconds 5] [--repeats 5] [--load-s 60] [--no-its-hub]

| measure           | how                                                                                  |
|-------------------|--------------------------------------------------------------------------------------|
| requests a second | one server process, 16 keep-alive connections, each sends its next request when it   |
|                   | has the reply; a constant reply at once from an engine in the process (`Scripted`)   |
|   one-sample      | a recipe of one sample: the whole pipeline, with a budget of tokens and seconds       |
|   pass-through    | `--model`                                                                             |
|   its_hub         | its own gateway (FastAPI, uvicorn), one sample of a model in the process              |
| first event       | a stream's first event against the moment the engine gets the search's first request  |
| 64 clients        | a particle filter on an engine that takes 5 ms a call, every fourth client a stream   |

Servers are started anew for each repeat and measured in turn. The client sends bytes over asyncio streams
and runs in this process. CPU is that of the server process. The exit code is 1 if a bar is not met.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from aiohttp import web
from arguments import command
from its_hub_parity import PACKAGE, environment
from printing import machine, met

from abduce.orchestrator.gateway.app import Gateway
from abduce.orchestrator.gateway.served import Served
from abduce.orchestrator.solve import build
from abduce.serving.scripted import Scripted

HERE = Path(__file__).parent
REPLY = "Seven eights are fifty-six. The answer is 56."
ASKED = {"model": "one-sample", "messages": [{"role": "user", "content": "What is 7 times 8?"}]}
CONNECTIONS = 16
ONE_SAMPLE = f"""# One sample of a constant reply.
name: one-sample
model: {{engine: scripted, replies: "{REPLY}"}}
policy: plain
budget: {{tokens: 8000, seconds: 60}}
pipeline:
  - solve: {{strategy: chain_of_thought}}
"""
FILTER = """# Particles over lines, each call 5 ms.
name: one-sample
model:
  engine: scripted
  latency_s: 0.005
  replies: {"VERDICT": "VERDICT: 7", "": "A line that is thought.\\n\\nAnd one that is not."}
reward: judge
policy: cot
budget: {tokens: 80000, seconds: 60}
pipeline:
  - solve: {strategy: particle_filter, particles: 4, max_steps: 4}
"""


def main() -> int:
    """Measure, print, judge."""
    parser = command(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--load-s", type=float, default=60.0, help="of the 64 clients")
    parser.add_argument("--no-its-hub", action="store_true", help="leave its_hub out: nothing is installed")
    options = parser.parse_args()
    print(f"{machine()}, aiohttp {aiohttp.__version__}; {CONNECTIONS} connections, "
          f"{options.seconds:g} s, {options.repeats} repeats")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        good = throughput(Path(folder), options)
        good &= asyncio.run(first_event())
        good &= asyncio.run(many_clients(Path(folder), options.load_s))
    return 0 if good else 1


# ---------------------------------------------------------------- requests a second


def throughput(folder: Path, options: argparse.Namespace) -> bool:
    """Requests a second and CPU of each server, in turn."""
    recipe = written(folder, "one-sample.yaml", ONE_SAMPLE)
    engine = f"scripted:{REPLY}"
    ours = [sys.executable, "-m", "abduce", "serve", "--quiet", "--port"]
    servers: dict[str, tuple[list[str], list[str], str]] = {
        "one-sample": (ours, [recipe], "one-sample"),
        "pass-through": (ours, ["--model", engine], engine),
    }
    if not options.no_its_hub:
        python = environment()
        subprocess.run(
            [python, "-m", "pip", "install", "-q", PACKAGE.replace("its_hub", "its_hub[iaas]")], check=True
        )
        servers["its_hub"] = ([str(python), str(HERE / "its_hub_gateway.py")], [], "one-sample")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(options.repeats):
        for name, (words, rest, model) in servers.items():
            with serving(words, rest) as (port, pid):
                rate = asyncio.run(rate_of(port, {**ASKED, "model": model}, options.seconds, pid))
            found[name].append(rate)
    for name, rates in found.items():
        told = ", ".join(f"{rate:.0f}" for rate, _ in rates)
        print(f"{name:13} {median(r for r, _ in rates):6.0f} requests/s ({told}), "
              f"{median(us for _, us in rates):.0f} µs CPU a request")  # fmt: skip
    own = median(rate for rate, _ in found["one-sample"])
    bars = [own >= 700]
    if "its_hub" in found:
        pairs = zip(found["one-sample"], found["its_hub"], strict=True)
        ratio = median(a / b for (a, _), (b, _) in pairs)
        print(f"one-sample / its_hub: {ratio:.2f}")
        bars.append(ratio >= 0.8)
    return judged("≥ 700 requests/s, or ≥ 0.8 of its_hub's", any(bars))


async def rate_of(port: int, body: dict[str, Any], seconds: float, pid: int) -> tuple[float, float]:
    """Requests a second, and µs CPU of the server for each, after a second of warming up."""
    await asyncio.gather(*(client(port, body, 1.0) for _ in range(CONNECTIONS)))
    before, began = cpu_s(pid), time.perf_counter()
    counts = await asyncio.gather(*(client(port, body, seconds) for _ in range(CONNECTIONS)))
    took, used = time.perf_counter() - began, cpu_s(pid) - before
    return sum(counts) / took, used / sum(counts) * 1e6


async def client(port: int, body: dict[str, Any], seconds: float) -> int:
    """How many requests one connection had answered. Raises if any was answered with an error."""
    sent = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(sent)}\r\n\r\n"
    )
    message = head.encode() + sent
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        writer.write(message)
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(told.partition(b"content-length:")[2].partition(b"\r\n")[0])
        reply = await reader.readexactly(length)
        if not told.startswith(b"http/1.1 200") or b"fifty-six" not in reply:
            raise SystemExit(f"a request failed: {told!r} {reply!r}")
        count += 1
    writer.close()
    return count


# ---------------------------------------------------------------- first event


async def first_event() -> bool:
    """Milliseconds from the engine's first request to a stream's first event, at the client."""
    asked_at: list[float] = []

    def reply(request: object, seed: int) -> str:
        return REPLY

    def latency(request: object) -> float:
        asked_at.append(time.perf_counter())
        return 0.3

    pipeline = build(strategy="self_consistency", model=Scripted(reply, latency_s=latency), policy="plain")
    gateway = Gateway({"one-sample": Served("one-sample", pipeline, pipeline)})
    waits = []
    async with local(gateway) as port, aiohttp.ClientSession() as session:
        for _ in range(10):
            asked_at.clear()
            async with session.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json={**ASKED, "stream": True}
            ) as response:
                await response.content.readline()
                waits.append((time.perf_counter() - asked_at[0]) * 1e3)
    print(f"first event: {median(waits):.1f} ms after the first search step (max {max(waits):.1f})")
    return judged("first event within 100 ms of the first search step", max(waits) <= 100)


@contextlib.asynccontextmanager
async def local(gateway: Gateway) -> Any:
    """The gateway in this process, at a free port."""
    runner = web.AppRunner(gateway.app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


# ---------------------------------------------------------------- many clients


async def many_clients(folder: Path, seconds: float) -> bool:
    """64 clients for a while: requests, failures, what is left running."""
    recipe = written(folder, "filter.yaml", FILTER)
    command = [sys.executable, "-m", "abduce", "serve", "--quiet", "--port"]
    with serving(command, [recipe]) as (port, pid):
        url = f"http://127.0.0.1:{port}"
        before = await gauges(url)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            end = time.perf_counter() + seconds
            took = await asyncio.gather(*(user(session, url, i % 4 == 0, end) for i in range(64)))
        times = sorted(each for one in took for each, _ in one)
        failed = [told for one in took for _, told in one if told]
        await asyncio.sleep(1.0)
        after = await gauges(url)
        grown = rss_mb(pid)
    mid, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"64 clients, {seconds:g} s: {len(times)} requests, {len(failed)} failed, median {mid:.3f} s, "
          f"99 % {late:.3f} s; tasks {before['abduce_tasks']:.0f} before, {after['abduce_tasks']:.0f} after; "
          f"{grown:.0f} MB")  # fmt: skip
    for told in failed[:5]:
        print("  failed:", told)
    left = after["abduce_requests_running"] + after["abduce_requests_waiting"]
    leaked = after["abduce_tasks"] > before["abduce_tasks"]
    return judged(
        "64 clients: no failed request, nothing left running", not failed and not left and not leaked
    )


async def user(
    session: aiohttp.ClientSession, url: str, stream: bool, end: float
) -> Sequence[tuple[float, str]]:
    """Seconds of each request of one client, and what failed."""
    found = []
    while time.perf_counter() < end:
        began, wrong = time.perf_counter(), ""
        try:
            async with session.post(
                f"{url}/v1/chat/completions", json={**ASKED, "stream": stream}
            ) as response:
                text = await response.text()
            if (
                response.status != 200
                or (stream and not text.rstrip().endswith("[DONE]"))
                or '"error"' in text
            ):
                wrong = f"{response.status} {text[-200:]}"
        except aiohttp.ClientError as error:
            wrong = repr(error)
        found.append((time.perf_counter() - began, wrong))
    return found


async def gauges(url: str) -> dict[str, float]:
    """The metrics without labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        rows = [line.split(" ") for line in (await response.text()).splitlines()]
    return {row[0]: float(row[1]) for row in rows if len(row) == 2 and "{" not in row[0]}


# ---------------------------------------------------------------- processes


@contextlib.contextmanager
def serving(command: list[str], rest: list[str]) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen([*command, str(port), *rest], env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}: {command}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def written(folder: Path, name: str, text: str) -> str:
    """A recipe file."""
    (folder / name).write_text(text)
    return str(folder / name)


def judged(bar: str, held: bool) -> bool:
    """Print whether a bar is met."""
    print(f"{met(held):8} {bar}")
    return held


if __name__ == "__main__":
    sys.exit(main())

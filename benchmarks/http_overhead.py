"""What a call over HTTP costs the client: CPU per call of our SGLang engine, against raw aiohttp.

    python benchmarks/http_overhead.py [--calls 4000] [--repeats 5] [--no-others]

A server in a process of its own answers at once, always the same: like SGLang's `/generate`, like an
OpenAI-compatible `/v1/chat/completions`. It counts the connections that are opened. `wide` calls are in
flight: as many workers send one call after another. CPU is user and system time of the client's process.

    raw aiohttp   one ClientSession, orjson both ways, the body made once
    our engine    `Sglang.generate`: prompt to ids, body, reply to a Completion with ids, usage
    its_hub, openai   their own clients in an environment of their own (see `its_hub_parity.py`), one
                  chat completion each; raw aiohttp on that route is their floor

A repeat measures everything in turn; ratios are taken within a repeat, the table has the median. The exit
code is 1 if our engine needs more than 1.5 times raw aiohttp, or opens more connections than calls in flight.
"""

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from arguments import command
from printing import met, spread, table_head, table_row

WIDTHS = (8, 256)
BAR = 1.5
IDS = [1, 4093, 198, *range(1000, 1040), 2]  # of a reply
TEXT = "Seven eights are fifty-six, since seven times four is twenty-eight, and twice that is fifty-six.\n\n"
META = {
    "id": "0" * 32,
    "finish_reason": {"type": "stop", "matched": "\n\n"},
    "prompt_tokens": 64,
    "completion_tokens": len(IDS),
    "cached_tokens": 63,
    "weight_version": "default",
    "e2e_latency": 0.1,
}
USAGE = {"prompt_tokens": 64, "completion_tokens": 44, "total_tokens": 108}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
REPLIES: dict[str, Any] = {
    "/generate": {"text": TEXT, "output_ids": IDS, "meta_info": META},
    "/v1/chat/completions": {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [CHOICE],
        "usage": USAGE,
    },
    "/v1/tokenize": {"tokens": list(range(64)), "count": 64, "max_model_len": 8192},
    "/server_info": {"max_req_input_len": 8192, "is_embedding": True},
}
QUESTION = "What is 7 times 8, and how do you know?"
Once = Callable[[], Awaitable[Any]]


# ---------------------------------------------------------------- the server


class Instant(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as little of it as a client needs."""

    opened = 0

    def __init__(self) -> None:
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        """Count it."""
        Instant.opened += 1
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._heard += data
        while (end := self._heard.find(b"\r\n\r\n")) >= 0:
            head = self._heard[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._heard) < end + 4 + length:
                return
            route = self._heard.split(b" ", 2)[1].decode()
            self._heard = self._heard[end + 4 + length :]
            self._transport.write(ANSWERS.get(route) or answer({"opened": Instant.opened}))


def answer(said: Any) -> bytes:
    body = json.dumps(said).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ANSWERS = {route: answer(said) for route, said in REPLIES.items()}


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# ---------------------------------------------------------------- the clients


async def measure(
    make: Callable[[str], Awaitable[tuple[Once, Once]]], url: str, wide: int, calls: int
) -> Any:
    """µs of CPU per call, and connections opened by the client."""
    before = await opened(url)
    once, close = await make(url)
    for _ in range(3):
        await asyncio.gather(*(once() for _ in range(wide)))  # connections are made before the clock starts
    left = calls

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await once()

    gc.collect()
    began = time.process_time()
    await asyncio.gather(*(work() for _ in range(wide)))
    spent = time.process_time() - began
    await close()
    return spent / calls * 1e6, await opened(url) - before - 1


async def opened(url: str) -> int:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(f"{url}/opened") as reply:
        return int((await reply.json())["opened"])


async def raw(url: str, route: str, body: dict[str, Any]) -> tuple[Once, Once]:
    import aiohttp

    try:
        from orjson import dumps, loads
    except ImportError:  # in its_hub's environment
        loads = json.loads

        def dumps(said: Any) -> bytes:  # type: ignore[misc]
            return json.dumps(said).encode()

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"Content-Type": "application/json"}
    )
    target = url + route

    async def once() -> Any:
        async with session.post(target, data=dumps(body)) as reply:
            return loads(await reply.read())

    return once, session.close


async def raw_generate(url: str) -> tuple[Once, Once]:
    params = {"temperature": 0.8, "max_new_tokens": 256, "stop": ["\n\n"]}
    return await raw(url, "/generate", {"input_ids": list(range(64)), "sampling_params": params})


async def raw_chat(url: str) -> tuple[Once, Once]:
    messages = [{"role": "user", "content": QUESTION}]
    return await raw(url, "/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 256})


async def ours(url: str) -> tuple[Once, Once]:
    from abduce.serving.flow import Generate, Prompt, Sampling
    from abduce.serving.sglang import Sglang

    engine = Sglang(url)
    head = Prompt.user(QUESTION).messages
    sampling = Sampling(stop=("\n\n",))
    n = 0

    async def once() -> Any:
        nonlocal n
        n += 1  # each call is for a step of a search: the same head, another prefix
        prompt = Prompt(head, prefix_ids=(n, *range(40)))
        return await engine.generate(Generate(prompt, sampling=sampling), seed=n)

    return once, engine.close


async def its_hub(url: str) -> tuple[Once, Once]:
    from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel

    model = OpenAICompatibleLanguageModel(
        endpoint=f"{url}/v1", api_key="none", model_name="m", max_concurrency=max(WIDTHS)
    )
    messages = [{"role": "user", "content": QUESTION}]

    async def once() -> Any:
        return await model.agenerate_single(messages, max_tokens=256)

    return once, model.close


async def openai(url: str) -> tuple[Once, Once]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")

    async def once() -> Any:
        return await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": QUESTION}], max_tokens=256
        )

    return once, client.close


OURS = {"raw aiohttp, /generate": raw_generate, "our engine": ours}
OTHERS = {"raw aiohttp, chat": raw_chat, "its_hub 1.2.0": its_hub, "openai SDK": openai}


async def repeat(cases: dict[str, Any], url: str, calls: int) -> list[list[Any]]:
    return [
        [name, wide, *await measure(make, url, wide, calls)]
        for wide in WIDTHS
        for name, make in cases.items()
    ]


# ---------------------------------------------------------------- the report


def main() -> int:
    """Measure, print, judge."""
    parser = command(__doc__)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-others", action="store_true", help="leave its_hub and the openai SDK out")
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--others-at", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        asyncio.run(serve())
        return 0
    if options.others_at:
        print(json.dumps(asyncio.run(repeat(OTHERS, options.others_at, options.calls))))
        return 0
    server = subprocess.Popen([sys.executable, __file__, "--server"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        rows = [row for _ in range(options.repeats) for row in once_each(url, options)]
    finally:
        server.kill()
        server.wait()
    return report(rows, options)


def once_each(url: str, options: argparse.Namespace) -> list[list[Any]]:
    rows = asyncio.run(repeat(OURS, url, options.calls))
    if not options.no_others:
        from its_hub_parity import PACKAGE, environment

        package = PACKAGE.replace("its_hub", "its_hub[iaas]")
        python = environment("aiohttp", "openai", package=package)
        words = [python, __file__, "--others-at", url, "--calls", str(options.calls // 4)]
        rows += json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return rows


def report(rows: list[list[Any]], options: argparse.Namespace) -> int:
    print(f"{options.calls} calls, {options.repeats} repeats, {sys.version.split()[0]}\n")
    table_head("client", "wide", "µs CPU a call", "× raw aiohttp (min to max)", "connections")
    held = True
    for name in [*OURS, *([] if options.no_others else OTHERS)]:
        floor = "raw aiohttp, /generate" if name in OURS else "raw aiohttp, chat"
        for wide in WIDTHS:
            mine = [row for row in rows if row[:2] == [name, wide]]
            base = [row for row in rows if row[:2] == [floor, wide]]
            ratios = [a[2] / b[2] for a, b in zip(mine, base, strict=True)]
            most = max(row[3] for row in mine)
            table_row(name, wide, f"{median(row[2] for row in mine):.0f}", spread(ratios, ".2f"), most)
            if name == "our engine":
                held &= median(ratios) <= BAR and most <= wide
    print(f"\nour engine ≤ {BAR} × raw aiohttp, connections ≤ calls in flight: {met(held)}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

"""The stream of changes that a live page follows."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from abduce.orchestrator.trace import JsonLines, RunStarted
from abduce.orchestrator.viewer import picture, serve


async def test_changes_add_up_to_the_finished_run(run_of):
    run = run_of("particle_filter")
    async with TestClient(TestServer(serve.application(lambda: run.trace))) as client:
        response = await client.get("/events")
        names, nodes, end = [], 0, None
        event = ""
        async for line in response.content:
            if line.startswith(b"event: "):
                event = line[7:].decode().strip()
                names.append(event)
            elif line.startswith(b"data: ") and event == "change":
                change = json.loads(line[6:])
                nodes += len(change.get("nodes", ()))
                if end := change.get("end"):
                    break
        assert names[0] == "new"
        assert nodes == len(picture.load(run.trace).nodes)
        assert end["answer"] == run.result["answer"]


async def test_only_this_machine_by_its_own_name_is_answered():
    async with TestClient(TestServer(serve.application(lambda: None))) as client:
        good = await client.get("/")
        assert good.status == 200
        assert good.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in good.headers
        for host in ("evil.example", "evil.example:8400", "127.0.0.1.evil.example"):
            for path in ("/", "/events"):
                assert (await client.get(path, headers={"Host": host})).status == 403


async def test_it_listens_at_the_loopback_alone():
    found = asyncio.get_running_loop().create_future()
    work = asyncio.ensure_future(serve.serve(lambda: None, port=0, started=found.set_result))
    address = await found
    assert address.startswith("http://127.0.0.1:")
    async with aiohttp.ClientSession() as client, client.get(address) as response:
        assert '{"live":true}' in await response.text()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_others_can_read_an_event_soon_after_it(tmp_path):
    lines = JsonLines(tmp_path / "trace.jsonl")
    lines(RunStarted("r", "q", 0))
    await asyncio.sleep(0.3)
    assert (tmp_path / "trace.jsonl").read_bytes().count(b"\n") == 1
    lines.close()


@pytest.mark.parametrize(
    "rows",
    [b'{"event":"noted","path":[0,0],"note":"nodes","data":{"nodes":[{"id":1}]},"t":0}\n', b"\xff\xfe\n"],
)
async def test_a_damaged_file_is_read_as_far_as_it_goes(run_of, tmp_path, rows):
    file = tmp_path / "trace.jsonl"
    file.write_bytes(rows + run_of("best_of_n", n=2).trace.read_bytes())
    async with TestClient(TestServer(serve.application(lambda: file))) as client:
        response = await client.get("/events")
        async for line in response.content:
            if line.startswith(b"data: ") and b'"end"' in line:
                break

"""A gateway on a loopback port for the length of a test, and the official client to ask it with."""

import asyncio
import contextlib
import json
import time

import pytest
from aiohttp import ClientSession, web

from abduce.orchestrator.gateway.app import Gateway, Limits
from abduce.orchestrator.gateway.served import _CHAT as CHAT
from abduce.orchestrator.gateway.served import _RAW as RAW
from abduce.orchestrator.gateway.served import PassThrough, Served
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import Pipeline, build
from abduce.serving.scripted import Scripted

openai = pytest.importorskip("openai")
ASKED = {"messages": [{"role": "user", "content": "What is 7 x 8?"}]}


class Recorded(Scripted):
    """A script that can do anything, and keeps what it was asked, when, and what was called off."""

    def __init__(self, replies="The answer is 56.", **options):
        super().__init__(replies, logprob=lambda request: -1.0, ids=True, **options)
        vars(self)["capabilities"] = self.capabilities | {"constraint", "json_schema"}
        self.requests = []
        self.began = []
        self.called_off = 0
        self.running = 0

    async def generate(self, request, *, seed):
        self.requests.append(request)
        self.began.append(time.perf_counter())
        self.running += 1
        try:
            return await super().generate(request, seed=seed)
        except asyncio.CancelledError:
            self.called_off += 1
            raise
        finally:
            self.running -= 1


def recipe(name, engine, strategy="chain_of_thought", **options):
    """A model of a pipeline."""
    pipeline = build(strategy=strategy, model=engine, **options)
    return Served(name, pipeline, pipeline)


def passing(name, engine):
    """An engine as it is."""
    services = Services({"policy": engine})
    chat, text = (Pipeline(PassThrough(policy=policy), services) for policy in (CHAT, RAW))
    return Served(name, chat, text)


class Running:
    """A gateway that listens, with clients for it."""

    def __init__(self, gateway, port, session):
        self.gateway = gateway
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.session = session

    def client(self, key="none", **options):
        return openai.AsyncOpenAI(
            api_key=key, base_url=f"{self.url}/v1", **{"max_retries": 0, "timeout": 20, **options}
        )

    async def post(self, path="/v1/chat/completions", body=None, key=None, **options):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if isinstance(body, dict):
            body = json.dumps(body)
        headers["Content-Type"] = "application/json"
        async with self.session.post(self.url + path, data=body, headers=headers | options) as response:
            return response.status, await response.json(), response.headers

    async def get(self, path, key=None):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.session.get(self.url + path, headers=headers) as response:
            return response.status, await response.text()


@contextlib.asynccontextmanager
async def listening(*models, **options):
    """Serve the models; at the end nothing must be left running."""
    limits = Limits(**{"heartbeat_s": 10.0, **options.pop("limits", {})})
    gateway = Gateway({model.name: model for model in models}, limits=limits, **options)
    runner = web.AppRunner(gateway.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ClientSession() as session:
            yield Running(gateway, runner.addresses[0][1], session)
    finally:
        await runner.cleanup()
        assert gateway.busy == 0
        assert not gateway._searches

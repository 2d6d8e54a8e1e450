"""What the API says of itself is true, and nothing that fits it, or nearly, is a fault of ours."""

import asyncio
import contextlib
import json
import threading

import pytest
from gateways import Recorded, listening, passing
from hypothesis import HealthCheck, settings

from abduce.orchestrator.gateway.openapi import document

schemathesis = pytest.importorskip("schemathesis")


@contextlib.contextmanager
def in_a_thread(*models, **options):
    """A gateway on an event loop of its own: the tests that ask it are not async."""
    ready, found = threading.Event(), []

    async def serve():
        end = asyncio.Event()
        async with listening(*models, **options) as served:
            found.extend((served.url, asyncio.get_running_loop(), end))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    url, loop, end = found
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


@pytest.fixture(scope="module")
def url():
    with in_a_thread(passing("plain", Recorded()), limits={"body_bytes": 100_000}) as url:
        yield url


schema = schemathesis.openapi.from_dict(document(False))
CHECKS = [schemathesis.checks.not_a_server_error]
CHECKS += schemathesis.checks.CHECKS.get_by_names(
    ["status_code_conformance", "content_type_conformance", "response_schema_conformance"]
)


@schema.parametrize()
@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
def test_nothing_is_a_fault_of_ours_and_every_reply_is_as_described(case, url):
    """Half of the requests name the model that exists: else none would get further than that."""
    if isinstance(case.body, dict) and "model" in case.body and len(repr(case.body)) % 2:
        case.body["model"] = "plain"
    response = case.call(base_url=url)
    case.validate_response(response, checks=CHECKS)
    assert "Traceback" not in response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


def test_the_description_names_every_route_and_error():
    told = document(True)
    assert json.loads(json.dumps(told))["security"] == [{"key": []}]
    assert set(told["paths"]["/v1/chat/completions"]["post"]["responses"]) >= {
        "200",
        "400",
        "401",
        "429",
        "503",
    }

import asyncio
import signal
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from abduce.serving import weights
from abduce.serving.embedded import Embedded
from abduce.serving.errors import UsageError
from abduce.serving.litellm import Litellm
from abduce.serving.llama import LlamaServer
from abduce.serving.transformers import Transformers
from abduce.tools.sandbox import Sandbox

# A busy machine is slow, not wrong.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# What a shell starts in the background is deaf to Ctrl-C, and so would be the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs a real SGLang server runs only when it is asked for."""
    if "sglang" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("sglang"):
                item.add_marker(pytest.mark.skip(reason="needs a real SGLang server: make test-sglang"))


@pytest.fixture(scope="session", autouse=True)
def programs_run() -> Iterator[None]:
    """Where this machine cannot isolate programs, tests that are not about that run them without."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            Sandbox().isolation  # noqa: B018
        except UsageError:
            patch.setenv("ABDUCE_SANDBOX", "unsafe")
        yield


@pytest.fixture(scope="session")
def small_model() -> str:
    """The path of the small model, from the cache or fetched; tests that need it skip without it."""
    try:
        return str(weights.fetch_default())
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def embedded(small_model: str) -> Iterator[Embedded]:
    """One engine for the whole session, so that the model loads once."""
    engine = Embedded(small_model, slots=8, context=1024, threads=1)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def white_box(small_model: str) -> Iterator[Transformers]:
    """One transformers engine for the whole session; tests that need it skip without torch."""
    for name in ("torch", "transformers", "llguidance"):
        pytest.importorskip(name)
    engine = Transformers(small_model, device="cpu", slots=8, context=1024)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def protocol_server(small_model: str) -> Iterator[LlamaServer]:
    """llama.cpp's own server, which speaks OpenAI's protocol, key and all."""
    engine = Embedded(small_model, slots=4, context=1024, threads=1)
    yield asyncio.run(engine._loaded())
    asyncio.run(engine.close())


@pytest.fixture
def hosted(protocol_server: LlamaServer, monkeypatch: pytest.MonkeyPatch) -> Litellm:
    """The small model as a hosted one."""
    if not find_spec("litellm"):
        pytest.skip("litellm is not installed")
    monkeypatch.setenv("HOSTED_KEY", protocol_server._key)
    where = f"http://{protocol_server.host}:{protocol_server.port}/v1"
    return Litellm("openai/small", api_base=where, api_key_env="HOSTED_KEY")

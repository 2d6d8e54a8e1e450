"""The SGLang server of the tests: a real one, started once, on the CPU. `make test-sglang` runs it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from abduce.serving import hf_folder
from abduce.serving.errors import UsageError
from abduce.serving.sglang import Sglang, launch

from .sglang_env import launcher

collect_ignore = ["sglang_env"]  # of the server's environment


@pytest.fixture(scope="session")
def hf_model() -> Path:
    """The small model as a Hugging Face folder."""
    try:
        return hf_folder.small_model()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def start_sglang(
    hf_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], launch.Server]]:
    """Starts the session's server, which has none of our plug-in; again at the same address when a test has
    killed it."""
    if not launcher.PYTHON.exists():
        pytest.skip("needs a real SGLang server: make test-sglang")
    port = launcher.free_port()
    with ExitStack() as stack:

        def start() -> launch.Server:
            log = tmp_path_factory.mktemp("sglang") / "log"
            server = launcher.server(hf_model, log, port=port, environment={"SGLANG_PLUGINS": "none"})
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session")
def sglang_server(start_sglang: Callable[[], launch.Server]) -> launch.Server:
    """One server for the whole session."""
    server = start_sglang()
    server.wait(900)
    return server


@pytest.fixture(scope="session")
def sglang_in_process(hf_model: Path) -> Iterator[Sglang]:
    """One engine in this process for the whole session."""
    pytest.importorskip("sglang")
    engine = Sglang(model=str(hf_model), options={"mem_fraction_static": 0.6})  # as in `launcher.server`
    yield engine
    asyncio.run(engine.close())

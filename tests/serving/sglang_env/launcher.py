"""A real SGLang server on the CPU, from the environment of `make test-sglang`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from abduce.serving.sglang import launch

HERE = Path(__file__).parent
PYTHON = HERE.parents[2] / ".venv-sglang" / "bin" / "python"
STAND_INS = HERE / "stand_ins"


def server(
    model: Path,
    log: Path,
    *more: str,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> launch.Server:
    """A server of a model folder, starting; `more` are further flags of SGLang's, which win over ours. Use it
    with `running`, or `wait` for it and `kill` it."""
    port = port or launch.free_port()
    chosen = launch.flags(gpu=False, amx=False)
    command = launch.command(str(PYTHON), str(model), "127.0.0.1", port, chosen)
    variables = {
        **launch.variables(chosen),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(STAND_INS),
        **(environment or {}),
    }
    return launch.Server([*command, *more], f"http://127.0.0.1:{port}", log=log, environment=variables)


@contextmanager
def running(*servers: launch.Server) -> Iterator[None]:
    """The servers while they are needed. They are killed: a server that is asked to end takes the end of its
    own scheduler for a crash, and waits 5 s."""
    try:
        for server in servers:
            server.wait(300)
        yield
    finally:
        for server in servers:
            server.kill()

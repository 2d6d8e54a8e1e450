"""A real SGLang server on the CPU, from the environment of `make test-sglang`."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abduce.serving.sglang import launch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYTHON = ROOT / ".venv-sglang" / "bin" / "python"
STAND_INS = HERE / "stand_ins"


def told(script: str, **asked: Any) -> Any:
    """What a script of this folder, run by that environment's Python, says to a question; both are JSON."""
    ended = subprocess.run(
        [PYTHON, HERE / script],
        input=json.dumps(asked),
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout)


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
            server.wait(900)  # a busy machine takes its time
        yield
    finally:
        for server in servers:
            server.kill()

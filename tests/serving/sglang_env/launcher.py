"""A real SGLang server on the CPU, from the environment of `make test-sglang`."""

from collections.abc import Mapping
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
    with `launch.running`, or `wait` and `stop` it."""
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

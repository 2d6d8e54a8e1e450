"""A plain function in a process of its own, with limits on memory and time: for work that may never end.

Only names, JSON arguments and a JSON result cross the border. It keeps honest work within its limits; it is
no defence against a hostile program, for which there is the sandbox.
"""

import asyncio
import json
import resource
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from math import ceil
from typing import Any

from ..serving.flow import ToolResult


async def in_process(
    function: Callable[..., Any], values: Mapping[str, Any], memory_bytes: int, seconds: float
) -> Any:
    """What the function returns, as JSON gives it back; a result that is not `ok` for what it raises.
    Cancelling the call kills the process."""
    about = {"path": sys.path, "module": function.__module__, "name": function.__qualname__}
    limits = {"memory_bytes": memory_bytes, "cpu_s": ceil(seconds) + 1}
    asked = json.dumps(about | limits | {"values": dict(values)}, default=str).encode()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        said, _ = await process.communicate(asked)
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    try:
        told = json.loads(said)
    except ValueError:
        return ToolResult(f"It was stopped: it needs more than {memory_bytes >> 20} MiB or failed.", ok=False)
    return told["value"] if "value" in told else ToolResult(told["error"], ok=False)


def main() -> None:
    """The other side: reads what to call from stdin, writes what came of it to stdout."""
    asked = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_AS, (asked["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (asked["cpu_s"],) * 2)
    out, sys.stdout = sys.stdout, sys.stderr  # what the function prints is no result
    found: Any = import_module(asked["module"])
    try:
        for part in asked["name"].split("."):
            found = getattr(found, part)
        told = {"value": getattr(found, "run", found)(**asked["values"])}
        text = json.dumps(told, ensure_ascii=True)
    except MemoryError:
        text = json.dumps({"error": f"It needs more than {asked['memory_bytes'] >> 20} MiB of memory."})
    except Exception as fault:
        text = json.dumps({"error": f"{type(fault).__name__}: {fault}"})
    out.write(text)
    out.flush()

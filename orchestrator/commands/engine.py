"""`abduce engine`: a SGLang server with our plug-in, started with the flags that this machine needs.

Every flag is printed with its reason. The servers are this command's: Ctrl-C ends them with all their
processes.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from ...serving.engram_folder import shape_in
from ...serving.errors import AbduceError, UsageError
from ...serving.scratch import Scratch
from ...serving.sglang import launch
from ...serving.sglang.plugin.kv_config import Config, parse

_LOADING_S = 1800  # a large model takes long to load
_PROBE = """
import importlib.util, json
from importlib.metadata import entry_points
print(json.dumps({
    "sglang": importlib.util.find_spec("sglang") is not None,
    "router": importlib.util.find_spec("sglang_router") is not None,
    "plugin": "abduce" in {each.name for each in entry_points(group="sglang.srt.plugins")},
}))
"""


def run(chosen: argparse.Namespace) -> int:
    """Start, wait until it serves, and stay until Ctrl-C."""
    gpu, amx = launch.has_gpu(), launch.has_amx()
    shape = shape_in(chosen.model)
    flags = launch.flags(gpu=gpu, amx=amx, kv=_kv(chosen.kv), engram=shape is not None)
    commands = _commands(chosen, flags, gpu)
    if shape is not None:
        print(f"  {shape.said()}, in the memory of the host")
    for flag in flags:
        print(f"  {' '.join(flag.words):40}  {flag.reason}")
    if chosen.flags:
        print(f"  {chosen.flags:40}  given by you")
    if chosen.replicas > 1:
        print(f"  {chosen.replicas} servers behind a router: a prompt goes to the one that has its beginning")
    if chosen.dry_run:
        variables = shlex.join(f"{name}={value}" for name, value in launch.variables(flags).items())
        for _, command in commands:
            print(f"\n{variables} {shlex.join(command)}")
        return 0
    needs = {"--kv": chosen.kv is not None, f"The Engram model {chosen.model}": shape is not None}
    _check(chosen.python, router=chosen.replicas > 1, needs=[what for what, there in needs.items() if there])
    signal.signal(signal.SIGTERM, _interrupt)
    return _serve(chosen, commands, launch.variables(flags))


def _serve(
    chosen: argparse.Namespace, commands: Sequence[tuple[str, list[str]]], variables: Mapping[str, str]
) -> NoReturn:
    with ExitStack() as stack:
        folder = Path(chosen.logs or stack.enter_context(Scratch()))
        folder.mkdir(parents=True, exist_ok=True)
        servers = []
        for url, command in commands:
            log = folder / f"{url.rpartition(':')[2]}.log"
            server = launch.Server(command, url, log=log, environment=variables)
            stack.callback(server.stop)
            servers.append(server)
        for server in servers:
            print(f"Loading {chosen.model} for {server.url} (log: {server.log})", file=sys.stderr)
            server.wait(_LOADING_S, tick=_Ticker())
        print(f"\nServing at {servers[-1].url}. In a recipe:\n")
        print(f'    model: {{engine: sglang, url: "{servers[-1].url}"}}\n\nCtrl-C ends it.', flush=True)
        _watch(servers)


def _commands(
    chosen: argparse.Namespace, flags: Sequence[launch.Flag], gpu: bool
) -> list[tuple[str, list[str]]]:
    """URL and command of each server, and of the router last if there are several."""
    model, more = _model(chosen.model), shlex.split(chosen.flags)
    if chosen.replicas == 1:
        command = launch.command(chosen.python, model, chosen.host, chosen.port, flags)
        return [(f"http://{chosen.host}:{chosen.port}", [*command, *more])]
    made = []
    for i in range(chosen.replicas):
        port = chosen.port + 1 + i
        command = launch.command(chosen.python, model, "127.0.0.1", port, flags)
        own = ["--base-gpu-id", str(i)] if gpu else []
        made.append((f"http://127.0.0.1:{port}", [*command, *own, *more]))
    router = [chosen.python, "-m", "sglang_router.launch_router", "--policy", "cache_aware"]
    router += ["--host", chosen.host, "--port", str(chosen.port), "--worker-urls", *(url for url, _ in made)]
    return [*made, (f"http://{chosen.host}:{chosen.port}", router)]


def _kv(text: str | None) -> Config | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"--kv: {error}.") from None


def _model(name: str) -> str:
    """A folder or hub name; "small" is the small model of the package."""
    if name == "small":
        from ...serving.hf_folder import small_model

        return str(small_model())
    if name.endswith(".gguf"):
        raise UsageError(
            f"SGLang serves Hugging Face folders, not {name!r}. Give a folder or hub name, or: "
            "abduce engine small"
        )
    return name


def _check(python: str, *, router: bool, needs: Sequence[str]) -> None:
    """Raises UsageError if SGLang is not there, or our plug-in where something needs it, with the line that
    installs it."""
    try:
        told = subprocess.run(  # noqa: S603
            [python, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        has = json.loads(told)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UsageError(f"{python!r} is no Python that runs: {error}. Name one with --python.") from None
    if not has["sglang"]:
        raise UsageError(
            f"SGLang is not installed for {python}. Install it in an environment of its own (it pins much) "
            "and name that one's Python:\n"
            "    python3.11 -m venv sglang && sglang/bin/pip install 'sglang>=0.5.23,<0.6'\n"
            "    sglang/bin/pip install --no-deps abduce\n"
            "    abduce engine MODEL --python sglang/bin/python"
        )
    if router and not has["router"]:
        raise UsageError(f"--replicas needs sglang-router: {python} -m pip install sglang-router")
    if not has["plugin"] and needs:
        raise UsageError(f"{needs[0]} needs our plug-in: {python} -m pip install --no-deps abduce")
    if not has["plugin"]:
        print(
            f"abduce: served without our plug-in. To have it: {python} -m pip install --no-deps abduce",
            file=sys.stderr,
        )


class _Ticker:
    """Says every five seconds that the wait goes on."""

    def __init__(self) -> None:
        self._told = 0.0

    def __call__(self, took: float) -> None:
        if took >= self._told + 5:
            self._told = took
            print(f"  loading, {took:.0f} s", file=sys.stderr)


def _watch(servers: Sequence[launch.Server]) -> NoReturn:
    """Until Ctrl-C. Raises AbduceError when a server ends by itself."""
    while True:
        for server in servers:
            if (code := server.ended()) is not None:
                raise AbduceError(
                    f"{server.url} ended with code {code}. The end of its log:\n{server.tail()}"
                )
        time.sleep(0.5)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt

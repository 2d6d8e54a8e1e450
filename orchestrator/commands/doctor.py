"""`abduce doctor`: what works on this machine, and the exact line that would make the rest work.

Nothing heavy of ours is imported and nothing is fetched.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, entry_points, version
from inspect import signature
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving import ENGINES
from ...serving.errors import AbduceError, UsageError
from ...serving.litellm import COMPROMISED, SAFE
from ...serving.registry import others
from ...serving.sglang import Sglang
from .show import show
from .solve import store

_CORE = (
    "aiohttp", "langgraph", "langgraph-checkpoint-sqlite", "networkx", "orjson", "prompt_toolkit", "pydantic",
    "pyyaml", "rich", "xllamacpp",
)  # fmt: skip
_EXTRAS = {  # those of engines stand with their engines
    "tools": ("the tools search and algebra", ("bm25s", "sympy")),
    "mcp": ("tools of MCP servers", ("mcp",)),
    "memory": (
        "memories found by meaning, not by words alone",
        ("numpy", "safetensors", "tokenizers", "wordllama"),
    ),
    "otel": (
        "runs as OpenTelemetry spans",
        ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
    ),
    "probe": ("probes of difficulty, for diffadapt", ("numpy",)),
    "plot": ("drawings of graphs and searches as pictures", ("matplotlib",)),
    "postgres": (
        "runs and memories in PostgreSQL",
        ("langgraph-checkpoint-postgres", "psycopg", "psycopg-pool"),
    ),
}
_FREE_MB = 500
_PROBE_S = 0.5  # for a server on this machine


class Finding(NamedTuple):
    """One line of the report. `remedy` is the exact line that would make it work."""

    part: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False  # whether the ordinary use of the package needs it


def run(chosen: argparse.Namespace) -> int:
    """Show all findings; exit code 1 if something is missing that ordinary use needs."""
    findings = [*_python(), *_model(), *_state(), *_sandbox(), *_engines(), *_extras()]
    findings += [*_of_others(), *_gpu()]
    utf = Console().encoding.lower().startswith("utf")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        mark, colour = ("✓", "green") if finding.ok else ("✗", "red" if finding.needed else "yellow")
        mark = mark if utf else ("ok" if finding.ok else "--")
        remedy = f"\n  {finding.remedy}" if finding.remedy else ""
        words = Text(finding.found).append(remedy, style="bold")
        table.add_row(Text(mark, style=colour), Text(finding.part), words)
    show(table)
    return int(any(finding.needed and not finding.ok for finding in findings))


def _python() -> Iterator[Finding]:
    enough = sys.version_info >= (3, 11)
    remedy = "" if enough else "sudo apt-get install python3.11 python3.11-venv"
    yield Finding("python", enough, f"{platform.python_version()} ({sys.executable})", remedy, True)
    missing = [name for name in _CORE if _version(name) is None]
    found = f"{len(_CORE) - len(missing)} of {len(_CORE)} core dependencies"
    found += f"; missing: {', '.join(missing)}" if missing else ""
    yield Finding("packages", not missing, found, f"pip install {' '.join(missing)}" if missing else "", True)


def _model() -> Iterator[Finding]:
    from ...serving import settings, weights

    named = settings.model()
    try:
        file = weights.resolve(named) if named and not named.startswith("hf:") else weights.cached_default()
    except UsageError as error:
        yield Finding("model", False, f"ABDUCE_MODEL: {error}", "unset ABDUCE_MODEL", True)
        return
    if file is not None:
        yield Finding("model", True, f"{file} ({file.stat().st_size / 1e6:.0f} MB)")
    elif named:
        yield Finding("model", True, f"ABDUCE_MODEL is {named}; fetched when first used")
    else:
        yield Finding("model", False, "the small model is not in the cache", "abduce model fetch", True)


def _state() -> Iterator[Finding]:
    try:
        kept = store()
    except UsageError as error:
        yield Finding("store", False, f"ABDUCE_STORE: {error}", "unset ABDUCE_STORE", True)
        return
    folder = kept.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror}"
        yield Finding("runs", False, found, "export ABDUCE_HOME=/a/folder/you/own", True)
        return
    free = shutil.disk_usage(folder).free / 1e6
    found = f"{folder} is writable, {free / 1000:.1f} GB free"
    remedy = "" if free >= _FREE_MB else f"free {_FREE_MB} MB, or: export ABDUCE_HOME=/a/larger/disk"
    yield Finding("runs", free >= _FREE_MB, found, remedy)
    if str(kept) != str(folder):
        try:
            yield Finding("store", True, f"{kept} holds {len(kept.names())} runs", "", True)
        except AbduceError as error:
            yield Finding("store", False, str(error), "unset ABDUCE_STORE", True)


def _sandbox() -> Iterator[Finding]:
    from ...serving import settings

    part = "sandbox"
    try:
        from ...tools.sandbox import Sandbox, SandboxRefused
    except ModuleNotFoundError as missing:  # as on Windows
        found = f"the tool python cannot run on this system, which has no {missing.name!r}"
        yield Finding(part, False, found, "run abduce in a Linux virtual machine, or in WSL 2")
        return
    try:
        if settings.unsafe_sandbox():
            found = "ABDUCE_SANDBOX is unsafe: programs of a model run without isolation"
            yield Finding(part, False, found, "unset ABDUCE_SANDBOX")
            return
        walls = Sandbox().isolation
    except SandboxRefused as refusal:
        found = f"programs of the tool python cannot be isolated: {refusal.reason}"
        yield Finding(part, False, found, refusal.remedy)
    except UsageError as error:
        yield Finding(part, False, str(error), "unset ABDUCE_SANDBOX")
    else:
        how = {"kernel": "the kernel's namespaces"}.get(walls, walls)
        yield Finding(part, True, f"programs of the tool python are isolated, by {how}")


def _of_others() -> Iterator[Finding]:
    """The parts that other packages declare, each imported: who writes one sees here why it is not found."""
    for group, what in GROUPS.items():
        for name, entry in sorted(others(group).items()):
            part = f"{what} {name}"
            try:
                entry.load()
            except Exception as error:  # whatever their module does
                found = f"{entry.value} cannot be imported: {type(error).__name__}: {error}"
                yield Finding(part, False, found, "mend that package, or uninstall it")
            else:
                yield Finding(part, True, f"of another package: {entry.value}")
    for group in sorted(entry_points().groups):
        if group.startswith("abduce.") and group not in GROUPS:
            yield Finding(f"parts {group}", False, "nothing is looked for there", f"use {', '.join(GROUPS)}")


GROUPS = {
    "abduce.strategies": "strategy",
    "abduce.rewards": "reward",
    "abduce.engines": "engine",
    "abduce.tools": "tool",
    "abduce.functions": "function",
}
"""The entry-point groups that are read."""


def _engines() -> Iterator[Finding]:
    """Each engine: installed, reachable, and what it gives besides text."""
    looks = {"embedded": _embedded, "litellm": _litellm, "sglang": _sglang, "transformers": _transformers}
    for name, built in ENGINES.items():
        part = f"engine {name}"
        finding = looks[name](part) if name in looks else Finding(part, True, "needs nothing")
        gives = ", ".join(sorted(built.capabilities - {"generate"}))
        yield finding._replace(found=f"{finding.found}\n  gives {gives}")


def _embedded(part: str) -> Finding:
    if (known := _version("xllamacpp")) is None:
        return Finding(part, False, "xllamacpp is not installed", "pip install xllamacpp", True)
    return Finding(part, True, f"xllamacpp {known}, {os.cpu_count()} cores")


def _litellm(part: str) -> Finding:
    known = _version("litellm")
    if known is None:
        return Finding(part, False, "litellm is not installed", "pip install 'abduce[hosted]'")
    if known in COMPROMISED:
        return Finding(part, False, f"litellm {known} is a compromised release", f"pip install '{SAFE}'")
    return Finding(part, True, f"litellm {known}; wants your provider's key, such as OPENAI_API_KEY")


def _transformers(part: str) -> Finding:
    known = {name: _version(name) for name in ("torch", "transformers", "llguidance")}
    if missing := [name for name, found in known.items() if found is None]:
        found = f"not installed: {', '.join(missing)}"
        return Finding(part, False, found, "pip install 'abduce[transformers]'")
    return Finding(part, True, ", ".join(f"{name} {found}" for name, found in known.items()))


def _sglang(part: str) -> Finding:
    url = str(signature(Sglang).parameters["url"].default)
    here = _version("sglang")
    package = f"sglang {here}" if here else "sglang is not installed in this environment"
    if (model := _served(url)) is not None:
        return Finding(part, True, f"a server answers at {url}, with {model}; {package}")
    start = f"abduce engine MODEL --port {urlsplit(url).port}"
    remedy = start if here else f"pip install 'abduce[sglang]' && {start}"
    return Finding(part, False, f"no server answers at {url}; {package}", remedy)


def _served(url: str) -> str | None:
    """The model of the SGLang server there, or None if there is no such server."""
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=_PROBE_S)
    try:
        connection.request("GET", "/model_info")
        told = json.loads(connection.getresponse().read())
        return str(told["model_path"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def _extras() -> Iterator[Finding]:
    """What else can be installed: what it is for, and whether it is here."""
    for extra, (use, packages) in _EXTRAS.items():
        found = {name: _version(name) for name in packages}
        missing = [name for name, known in found.items() if known is None]
        told = f"not installed: {', '.join(missing)}"
        if not missing:
            told = ", ".join(f"{name} {known}" for name, known in found.items())
        remedy = f"pip install 'abduce[{extra}]'" if missing else ""
        yield Finding(f"extra {extra}", not missing, f"{use}: {told}", remedy)


def _gpu() -> Iterator[Finding]:
    driver = Path("/proc/driver/nvidia/version")
    if driver.exists() or shutil.which("nvidia-smi"):
        yield Finding("GPU", True, "an NVIDIA driver is here")
    elif Path("/dev/kfd").exists():
        yield Finding("GPU", True, "an AMD driver is here")
    elif sys.platform == "darwin" and platform.machine() == "arm64":
        yield Finding("GPU", True, "Apple silicon: the embedded engine uses Metal")
    else:
        yield Finding("GPU", True, "none found, and none needed for the embedded engine")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

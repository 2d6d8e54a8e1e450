"""What stands between a program and this machine, and what the program is let see of it."""

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store")
_DATA = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

INSIDE = Path(__file__).resolve().parent
"""The folder from which the other side imports its package `inside`."""


@cache
def view() -> dict[str, Any]:
    """What of this machine's files is seen inside, all of it read-only: the system's libraries, Python's, and
    the packages of this environment. `paths` and `devices` hold no links; `links` are those to be made."""
    wanted = [*_LIBRARIES, *_DATA, *_python()]
    paths, links = _resolved(wanted)
    return {
        "paths": paths,
        "links": links,
        "devices": [path for path in _DEVICES if Path(path).exists()],
        "site": packages(),
        "own": str(INSIDE),
    }


def packages() -> list[str]:
    """Folders of this environment's installed packages."""
    found = sysconfig.get_paths()
    return list(dict.fromkeys(found[name] for name in ("purelib", "platlib")))


def interpreter() -> str:
    """The Python to start: that of the environment, without what activates the environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def bubblewrap(size: int) -> list[str] | None:
    """A command that does what `inside/launcher.py` does, by bubblewrap; None where it is not installed.
    Python and its arguments follow."""
    found = shutil.which("bwrap")
    if found is None:
        return None
    command = [found, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--as-pid-1"]
    command += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--clearenv", "--cap-drop", "ALL"]
    command += ["--size", str(size), "--tmpfs", "/tmp"]  # noqa: S108  before what lies there
    seen = view()
    for path in [*seen["paths"], *_resolved([interpreter(), str(INSIDE / "inside")])[0]]:
        command += ["--ro-bind", path, path]
    for link, target in seen["links"]:
        command += ["--symlink", target, link]
    for path in seen["devices"]:
        command += ["--dev-bind", path, path]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    return [*command, "--remount-ro", "/", "--chdir", "/"]


ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PATH": os.defpath,
    "PYTHONHASHSEED": "0",  # a program that is run again to rebuild a branch must do the same
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""The whole environment of a program, but for its folder."""


def supported() -> str:
    """Why no walls can be built here whatever is allowed, in words; empty if nothing is against it."""
    if sys.platform != "linux":
        return f"the sandbox is made of Linux's namespaces, and this is {platform.system()}"
    if platform.machine() not in ("x86_64", "aarch64"):
        return f"the sandbox knows the system calls of x86_64 and aarch64, not of {platform.machine()}"
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if release < (5, 14):
        return f"the sandbox needs Linux 5.14 or newer, and this is {platform.release()}"
    return ""


def _python() -> Iterable[str]:
    found = sysconfig.get_paths()
    yield from (found[name] for name in ("stdlib", "platstdlib"))
    yield from packages()
    for prefix in {sys.base_prefix, sys.base_exec_prefix}:
        yield from (f"{prefix}/{name}" for name in ("lib", "lib64"))


def _resolved(wanted: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """What is there of it, as places without links (none within another) and the links that lead to them."""
    links: dict[str, str] = {}
    places: set[str] = set()
    for path in wanted:
        if Path(path).exists():
            real = os.path.realpath(path)
            places.add(real)
            if real != path:
                links[path] = real
    outer = [p for p in sorted(places) if not any(p.startswith(f"{other}/") for other in places)]
    kept = [
        (p, target) for p, target in sorted(links.items()) if not any(p.startswith(f"{o}/") for o in outer)
    ]
    return outer, kept

"""From a plain process to one behind walls: namespaces, a root of its own, no privileges.

User, mount, pid, network, ipc, uts and cgroup namespaces are new. The root is an empty tmpfs with Python and
the system's libraries bound into it, all of it read-only; `/tmp` is a tmpfs; there is no `/proc`, no `/sys`,
and of `/dev` only null, zero, full, random and urandom. Programs are run as the host's own user, or as nobody
where that is root.
"""

import os
import signal
import socket
from pathlib import Path
from typing import Any, NoReturn

from . import keeper, wire

USER = 1000  # of programs, as they see it
FOLDER = "/tmp"  # noqa: S108  inside, it is a tmpfs of the sandbox's own


def launch(order: dict[str, Any], control: int, *rest: int) -> NoReturn:
    """Become the parent of a new sandbox, and end with it. Trouble is told to the host on `control`."""
    line = socket.socket(fileno=control)
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        wire.keep_only([control, *rest])
        if order["isolation"] != "kernel":
            keeper.keep(order, line, *rest)
        _isolated(order, line, rest)
    except EOFError:
        os._exit(1)
    except BaseException as error:
        told = f"{error.strerror}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        wire.send(line, {"error": told})
        line.recv(1)  # stay until the host has hung up: until then its number means this process
        os._exit(1)


def drop_privileges(*, two_ids: bool) -> None:
    """No capability is left, and none can be had again."""
    from . import kernel

    kernel.drop_bounding_set()
    if two_ids:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    kernel.drop_capabilities()
    kernel.forbid_new_privileges()


def _isolated(order: dict[str, Any], line: socket.socket, rest: tuple[int, ...]) -> NoReturn:
    from . import kernel

    kernel.unshare(kernel.NEWUSER)
    wire.send(line, {"unshared": True})
    answer, _ = wire.receive(line)  # the host has written who is who: only it may
    kernel.unshare(
        kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP
    )
    first = os.fork()
    if first:
        line.close()
        for descriptor in rest:
            os.close(descriptor)
        os.waitpid(first, 0)
        os._exit(0)
    kernel.die_with_parent()
    kernel.set_hostname("sandbox")
    _build_root(order)
    os.umask(0o077)
    drop_privileges(two_ids=answer["two_ids"])
    kernel.die_with_parent()  # a change of user takes it back
    keeper.keep(order, line, *rest)


def _build_root(order: dict[str, Any]) -> None:
    from . import kernel as k

    closed = k.ATTR_RDONLY | k.ATTR_NOSUID
    k.mount(None, "/", None, k.REC | k.PRIVATE)
    k.mount("tmpfs", FOLDER, "tmpfs", k.NOSUID | k.NODEV, "size=64k,mode=755")
    os.chdir(FOLDER)
    Path("old").mkdir()
    Path("new").mkdir()
    k.mount("tmpfs", "new", "tmpfs", k.NOSUID | k.NODEV, "size=256k,mode=755")
    k.swap_root(".", "old")
    Path(f"/new{FOLDER}").mkdir()
    told = f"size={order['limits']['files_bytes']},nr_inodes=10k,mode=1733"
    k.mount("tmpfs", f"/new{FOLDER}", "tmpfs", k.NOSUID | k.NODEV | k.NOEXEC, told)  # before what lies there
    for path in order["paths"]:
        _show(path, closed | k.ATTR_NODEV)
    for path in order["devices"]:
        _show(path, closed | k.ATTR_NOEXEC)
    for link, target in order["links"]:
        Path(f"/new{link}").parent.mkdir(parents=True, exist_ok=True)
        Path(f"/new{link}").symlink_to(target)
    k.restrict_mount("/new", closed | k.ATTR_NODEV | k.ATTR_NOEXEC, recursive=False)
    k.change_root("/new")


def _show(path: str, attributes: int) -> None:
    """Have what lies at `path`, which holds no links, at the same place inside."""
    from . import kernel

    outside, inside = Path(f"/old{path}"), Path(f"/new{path}")
    inside.parent.mkdir(parents=True, exist_ok=True)
    if outside.is_dir():
        inside.mkdir(exist_ok=True)
    else:
        inside.touch()
    kernel.mount(str(outside), str(inside), None, kernel.BIND | kernel.REC)
    kernel.restrict_mount(str(inside), attributes, recursive=True)

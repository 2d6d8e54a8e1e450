"""Temporary folders that no kill leaves behind for long: the next process of this user removes them.

    <tmp>/abduce-tmp-…    locked by the process that made it, and by the kernel no longer than that one lives

A folder that another process can lock has nobody left. So neither a process id that was given again nor a
second process at work is mistaken, and folders of other users are not touched.
"""

import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from functools import cache
from pathlib import Path

_PREFIX = "abduce-tmp-"


class Scratch:
    """A new folder, open to this user alone, at `path`; it goes with `close`, or with this object or process.

    Where folders cannot be locked (Windows) a kill leaves it behind."""

    def __init__(self) -> None:
        _sweep_once()
        self.path, lock = _made()
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._remove()


def sweep() -> None:
    """Remove the folders of processes that are gone. A process does so before it makes its first one."""
    if os.name != "posix":
        return
    import fcntl

    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another has the lock, or has removed it already
            lock = os.open(folder, _AS_IT_IS)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


_sweep_once = cache(sweep)


def _made() -> tuple[Path, int]:
    """A new folder and what holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        if os.name != "posix":
            return path, -1
        import fcntl

        with suppress(FileNotFoundError):
            lock = os.open(path, _AS_IT_IS)
            with suppress(OSError):  # a network folder that cannot lock: nobody sweeps it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():  # nobody swept it before it was locked
                return path, lock
            os.close(lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock >= 0:
        os.close(lock)


_AS_IT_IS = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)

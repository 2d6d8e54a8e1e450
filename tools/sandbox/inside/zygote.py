"""The zygote: a Python with everything imported, which forks a new sandbox when it is told to.

It runs no program and has no secrets: its environment is empty, and its descriptors are one line to the host.
It ends with that line.
"""

import os
import signal
import socket
import sys

from . import keeper, launcher, wire

if sys.platform == "linux":  # now, since behind the walls these files are not to be seen
    from . import kernel, seccomp  # noqa: F401


def main() -> None:
    """Serve the host on descriptor `argv[1]` until it hangs up."""
    line = socket.socket(fileno=int(sys.argv[1]))
    sys.argv = ["program.py"]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # launchers are not waited for
    while True:
        try:
            order, descriptors = wire.receive(line)
        except EOFError:
            os._exit(0)
        child = os.fork()
        if child == 0:
            line.close()
            launcher.launch(order, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        wire.send(line, {"pid": child})


def inside_bubblewrap() -> None:
    """What `bwrap` starts: the walls stand, and the descriptors are `argv[1:5]`."""
    control, *rest = map(int, sys.argv[1:5])
    sys.argv = ["program.py"]
    order, _ = wire.receive(line := socket.socket(fileno=control))
    launcher.drop_privileges(two_ids=False)
    keeper.keep(order, line, *rest)

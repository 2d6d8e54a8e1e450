"""Messages between the host and those inside: JSON behind four bytes of length, descriptors beside them.

Interpreters are told things this way, but what they say is read by the host as bytes of an enemy
(`sandbox/session.py`).
"""

import json
import os
import socket
from collections.abc import Sequence
from typing import Any


def send(line: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send a message whole. The other side gets descriptors of its own."""
    told = json.dumps(message).encode()
    head = len(told).to_bytes(4, "big")
    if descriptors:
        socket.send_fds(line, [head], list(descriptors))
        line.sendall(told)
    else:
        line.sendall(head + told)


def receive(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message and its descriptors. Raises EOFError once the other side is gone."""
    head, descriptors, _, _ = socket.recv_fds(line, 4, 8)
    size = int.from_bytes(head + _exactly(line, 4 - len(head)) if head else b"", "big")
    if not head:
        raise EOFError("the other side is gone")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    message: dict[str, Any] = json.loads(_exactly(line, size))
    return message, descriptors


def keep_only(descriptors: list[int]) -> None:
    """Close all other descriptors but 0, 1 and 2."""
    last = 2
    for descriptor in sorted(descriptors):
        os.closerange(last + 1, descriptor)
        last = descriptor
    os.closerange(last + 1, 1 << 16)


def _exactly(line: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        part = line.recv(min(size - len(found), 1 << 16))
        if not part:
            raise EOFError("the other side is gone")
        found += part
    return bytes(found)

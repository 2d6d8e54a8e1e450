"""What a program prints: read as it comes, kept up to a limit, counted beyond it."""

import os


class Output:
    """The first bytes of what is printed, the last of what is complained. `size` counts everything."""

    def __init__(self, out: int, err: int, cap: int) -> None:
        os.set_blocking(out, False)
        os.set_blocking(err, False)
        self._cap = cap
        self._kept = {out: bytearray(), err: bytearray()}
        self._sizes = {out: 0, err: 0}
        self._out, self._err = out, err

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return sum(self._sizes.values())

    def read(self, descriptor: int) -> bool:
        """Read once. Returns whether more may come."""
        try:
            part = os.read(descriptor, _PART)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._sizes[descriptor] += len(part)
        kept = self._kept[descriptor]
        if descriptor == self._err:
            kept += part
            del kept[: -self._cap]
        else:
            kept += part[: self._cap - len(kept)]
        return bool(part)

    def read_rest(self) -> None:
        """Read what has been written already, at most what a pipe holds."""
        for descriptor in self._kept:
            for _ in range(_PIPE // _PART + 1):
                before = self._sizes[descriptor]
                if not self.read(descriptor) or self._sizes[descriptor] == before:
                    break

    def forget(self) -> None:
        """Throw away what threads of an earlier program have written since."""
        self.read_rest()
        for descriptor in self._kept:
            self._kept[descriptor].clear()
            self._sizes[descriptor] = 0

    @property
    def printed(self) -> str:
        """The beginning of what was printed, and how much more there was."""
        text = self._kept[self._out].decode("utf-8", "replace")
        more = self._sizes[self._out] - self._cap
        return f"{text}\n… ({more} more bytes)\n" if more > 0 else text

    @property
    def complaint(self) -> str:
        """The last lines of the complaint."""
        lines = self._kept[self._err].decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-_LINES:])


_PART = 1 << 16
_PIPE = 1 << 20  # what a pipe can hold at most
_LINES = 8

"""The coarse half of a search by vectors: one bit for each number of a vector, all in memory.

    query ──► Hamming distance to every code ──► nearest 16 n ──► query · signs ──► first n ──► exact cosines

The distance forgets how large the query's numbers are. Their product with the signs does not, and keeps more
of those that are really near: 0.99 of the ten nearest among 512 of 40,000 texts, in place of 0.93.

A code of 256 bits is 32 bytes, so a million entries take 56 MB and a scan of a few milliseconds, where their
vectors would take 512 MB. Codes are grouped in planes of 64 bits, so that numpy runs along memory.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedder import Vectors


def packed(vectors: "Vectors") -> "list[bytes]":
    """Vectors as they are stored: half precision."""
    import numpy as np

    return [row.tobytes() for row in vectors.astype(np.float16)]


def unpacked(rows: Sequence[bytes]) -> "Vectors":
    """Stored vectors."""
    import numpy as np

    dims = len(rows[0]) // 2 if rows else 0
    return np.frombuffer(b"".join(rows), np.float16).reshape(len(rows), dims).astype(np.float32)


def codes(vectors: "Vectors") -> "list[bytes]":
    """The signs of each vector's numbers, as bits, filled up to whole words of 64."""
    import numpy as np

    bits = np.packbits(vectors > 0, axis=1)
    return [row.tobytes() for row in np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))]


class Codes:
    """The codes of a store's active entries, numbered by `n`, which only ever rises."""

    def __init__(self) -> None:
        self.n = 0
        self.last_n = 0  # of those that were added
        self.last_drop = 0
        self._room = 0
        self._ns: Any = None
        self._ids: Any = None
        self._labels: Any = None  # [2, room]: kind and domain
        self._planes: Any = None  # [words, room]
        self._dropped: list[int] = []  # positions

    def add(self, rows: Sequence[tuple[int, int, int, int, bytes]]) -> None:
        """Add codes: n, id of the entry, kind, domain, code."""
        import numpy as np

        if not rows:
            return
        new = np.frombuffer(b"".join(row[4] for row in rows), np.uint64).reshape(len(rows), -1)
        self._grow(len(rows), new.shape[1])
        span = slice(self.n, self.n + len(rows))
        columns = (self._ns, self._ids, *self._labels)
        for i, column in enumerate(columns):
            column[span] = [row[i] for row in rows]
        self._planes[:, span] = new.T
        self.n += len(rows)
        self.last_n = rows[-1][0]

    def drop(self, ns: Sequence[int]) -> None:
        """Take codes out, by their numbers."""
        import numpy as np

        if not self.n or not ns:
            return
        places = np.searchsorted(self._ns[: self.n], ns)
        self._dropped += [int(p) for p, n in zip(places, ns, strict=True) if p < self.n and self._ns[p] == n]
        if len(self._dropped) > max(1000, self.n // 8):
            kept = np.delete(np.arange(self.n), self._dropped)
            self.n = len(kept)
            for array in (self._ns, self._ids, *self._labels, *self._planes):
                array[: self.n] = array[kept]
            self._dropped = []

    def nearest(
        self, vector: "Vectors", n: int, *, kinds: Sequence[int] | None, domain: int | None
    ) -> list[int]:
        """The ids of about the `n` nearest; of some kinds and a domain only, by their labels."""
        import numpy as np

        if not self.n:
            return []
        distances = self._distances(np.frombuffer(codes(vector[None])[0], np.uint64))
        if self._dropped:
            distances[self._dropped] = _NEVER
        if kinds is not None:
            distances[~np.isin(self._labels[0, : self.n], kinds)] = _NEVER
        if domain is not None:
            distances[self._labels[1, : self.n] != domain] = _NEVER
        limit = min(_limit(distances, _COARSE * n), len(self._planes) * 64)
        places = np.flatnonzero(distances <= limit)
        if len(places) > n:
            places = places[np.argpartition(-self._products(vector, places), n)[:n]]
        found: list[int] = self._ids[places].tolist()
        return found

    def _distances(self, code: Any) -> Any:
        import numpy as np

        distances = np.zeros(self.n, np.uint16)
        for plane, word in zip(self._planes, code, strict=True):
            for first in range(0, self.n, _BLOCK):
                part = slice(first, min(first + _BLOCK, self.n))
                distances[part] += np.bitwise_count(plane[part] ^ word)
        return distances

    def _products(self, vector: "Vectors", places: Any) -> Any:
        """The query's numbers, added up where the sign is positive: byte by byte, by a table of all bytes."""
        import numpy as np

        padded = np.zeros(len(self._planes) * 64, np.float32)
        padded[: len(vector)] = vector
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
        sums = bits @ padded.reshape(-1, 8).T  # [256, bytes]
        found = np.zeros(len(places), np.float32)
        for i, plane in enumerate(self._planes):
            for k, byte in enumerate(plane[places].view(np.uint8).reshape(-1, 8).T):
                found += sums[byte, 8 * i + k]
        return found

    def _grow(self, more: int, words: int) -> None:
        import numpy as np

        if self.n + more <= self._room:
            return
        room = max(self.n + more, self._room + self._room // 4, 1024)
        ns, ids, labels = np.zeros(room, np.int64), np.zeros(room, np.int64), np.zeros((2, room), np.int32)
        planes = np.zeros((words, room), np.uint64)
        if self.n:
            ns[: self.n], ids[: self.n] = self._ns[: self.n], self._ids[: self.n]
            labels[:, : self.n], planes[:, : self.n] = self._labels[:, : self.n], self._planes[:, : self.n]
        self._ns, self._ids, self._labels, self._planes, self._room = ns, ids, labels, planes, room


def _limit(distances: Any, n: int) -> int:
    """The distance within which about `n` lie, judged by a sample of many."""
    import numpy as np

    stride = max(len(distances) // 65_536, 1)
    sample = distances[::stride]
    place = min(n // stride, len(sample) - 1)
    return int(np.partition(sample, place)[place])


_BLOCK = 1 << 15  # 256 KB of a plane: stays in the cache
_NEVER = 60_000
_COARSE = 16

"""What several tests of stores share: a toy embedder, entries, and how a store is made."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
from hypothesis import strategies as st

from abduce.memory.base import Store
from abduce.memory.ranking import words
from abduce.serving.entries import Entry, Evidence

WORDS = [
    "sum",
    "angle",
    "prime",
    "area",
    "circle",
    "product",
    "grid",
    "fill",
    "rotate",
    "Äpfel",
    "東京",
    "x_y",
]


class Toy:
    """A text's vector is the sum of fixed ones of its words."""

    name = "toy"

    async def embed(self, texts: Sequence[str]) -> Any:
        rows = np.zeros((len(texts), 48), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in words(text):
                row += np.random.default_rng(crc32(word.encode())).normal(size=48)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """What a coroutine returns, in a loop of its own."""

    async def main() -> Any:
        return await work()

    return asyncio.run(main())


names = st.sampled_from([f"n{i}" for i in range(12)] + ["Ü 1", "a'b\"c", "東京"])
texts = st.lists(st.sampled_from(WORDS), min_size=0, max_size=7).map(" ".join) | st.text(max_size=20)
evidence = st.builds(
    Evidence, st.text(max_size=5), st.text(max_size=5), st.sampled_from(["", "tests", "judge"]),
    st.sampled_from([0.0, 0.5, 1.0]), st.lists(names, max_size=2).map(tuple),
)  # fmt: skip
json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def entries(draw: Any) -> Entry:
    """Any entry that can be kept."""
    uses = draw(st.integers(0, 5))
    return Entry(
        draw(names),
        draw(texts),
        draw(st.sampled_from(["note", "routine", "lesson"])),
        draw(st.dictionaries(st.text(max_size=4), json, max_size=2)),
        draw(st.sampled_from(["", "", "grids"])),
        draw(st.sampled_from(["active", "active", "active", "retired"])),
        draw(st.lists(evidence, max_size=2).map(tuple)),
        uses,
        draw(st.integers(0, uses)),
    )


batches = st.lists(entries(), max_size=6, unique_by=lambda entry: entry.name)


async def all_of(store: Store, *, at: int) -> Any:
    """Whatever can be read of a store, as of some version."""
    return (
        await store.version(),
        await store.everything(),
        await store.everything(at=at),
        await store.everything(kinds=("note", "lesson")),
        await store.history(),
        await store.history("n1"),
        await store.get(["n3", "none", "n1", "東京"]),
    )

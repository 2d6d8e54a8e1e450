"""What do other local stores cost and find, on the entries, queries and vectors of `memory.py`, beside ours?

    python benchmarks/memory_beside.py ours langgraph mem0 [--sizes 1000 10000 100000] [--queries 100]

    langgraph   LangGraph's InMemoryStore with an index, which langmem's tools write to and search in
    mem0        mem0's Memory with its local vector store (Qdrant on disk), `infer=False`: no model is asked

mem0 is not among our extras: make an environment with `pip install mem0ai wordllama orjson` and run this with
its Python. All embed with wordllama. `found` is the part of queries whose entry is among the first ten. What
takes more than --most seconds to write is not asked for larger sizes.
"""

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arguments import command
from printing import table_head, table_row

from abduce.memory.embedder import wordllama
from abduce.serving.entries import Entry
from memory import BATCH, made, memory_mb, query

Write = Callable[[Sequence[Entry]], None]
Search = Callable[[str], list[str]]


def ours(folder: str) -> tuple[Write, Search]:
    """The SQLite store, called as the others are."""
    from abduce.memory.sqlite import SqliteStore

    store, loop = SqliteStore(Path(folder) / "m.db", wordllama()), asyncio.new_event_loop()

    def search(text: str) -> list[str]:
        return [match.entry.name for match in loop.run_until_complete(store.search(text, 10))]

    def write(batch: Sequence[Entry]) -> None:
        loop.run_until_complete(store.write(batch))

    return write, search


def langgraph(folder: str) -> tuple[Write, Search]:
    """LangGraph's store in memory."""
    from langgraph.store.base import PutOp
    from langgraph.store.memory import InMemoryStore

    store = InMemoryStore(index={"dims": 256, "embed": _embed, "fields": ["text"]})

    def write(batch: Sequence[Entry]) -> None:
        store.batch([PutOp(("m",), entry.name, {"text": entry.text}) for entry in batch])

    return write, lambda text: [item.key for item in store.search(("m",), query=text, limit=10)]


def mem0(folder: str) -> tuple[Write, Search]:
    """mem0 with Qdrant in a folder."""
    os.environ |= {"MEM0_TELEMETRY": "False", "OPENAI_API_KEY": "none", "MEM0_DIR": folder}
    from mem0 import Memory

    where = {"path": f"{folder}/qdrant", "embedding_model_dims": 256, "on_disk": True, "collection_name": "m"}
    config = {
        "vector_store": {"provider": "qdrant", "config": where},
        "history_db_path": f"{folder}/history.db",
    }
    memory = Memory.from_config(config)
    memory.embedding_model = _Embedding()

    def write(batch: Sequence[Entry]) -> None:
        for entry in batch:
            memory.add(entry.text, user_id="m", infer=False, metadata={"name": entry.name})

    def search(text: str) -> list[str]:
        found = memory.search(text, filters={"user_id": "m"}, top_k=10)
        return [row["metadata"]["name"] for row in found["results"]]

    return write, search


class _Embedding:
    """As mem0 calls an embedder."""

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return _embed([text])[0]

    def embed_batch(self, texts: list[str], memory_action: str | None = None) -> list[list[float]]:
        return _embed(texts)


def _embed(texts: Sequence[str]) -> list[list[float]]:
    found: Any = wordllama()._embed(list(texts))
    return list(found.tolist())


STORES = {"ours": ours, "langgraph": langgraph, "mem0": mem0}


def measure(name: str, sizes: Sequence[int], n: int, most_s: float) -> None:
    """One store's lines."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("ABDUCE_BENCH_DIR")) as folder:
        write, search = STORES[name](folder)
        start = 0
        for size in sizes:
            wrote = 0.0
            for first in range(start, size, BATCH):
                batch = [made(i) for i in range(first, min(first + BATCH, size))]
                began = time.perf_counter()
                write(batch)
                wrote += time.perf_counter() - began
                if wrote > most_s:
                    rate = f"{(first + BATCH - start) / wrote:,.0f}"
                    table_row(name, f"{size:,}", rate, "not reached", "", "", "")
                    return
            rng, took, found = random.Random(size), [], 0
            targets = [rng.randrange(size) for _ in range(n)]
            queries = [query(target, rng) for target in targets]
            search(queries[0])
            for target, text in zip(targets, queries, strict=True):
                began = time.perf_counter()
                found += f"concept {target}" in search(text)
                took.append(1e3 * (time.perf_counter() - began))
            took.sort()
            p50, p99 = took[n // 2], took[int(0.99 * n)]
            rate = f"{(size - start) / wrote:,.0f}"
            figures = (f"{p50:.1f}", f"{p99:.1f}", f"{found / n:.2f}", f"{memory_mb():,.0f}")
            table_row(name, f"{size:,}", rate, *figures)
            start = size


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("stores", nargs="+", choices=list(STORES))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--most", type=float, default=120.0)
    options = parser.parse_args()
    table_head("store", "entries", "written/s", "p50 ms", "p99 ms", "found@10", "memory MB")
    for name in options.stores:
        measure(name, options.sizes, options.queries, options.most)


if __name__ == "__main__":
    main()

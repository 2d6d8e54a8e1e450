"""Prompts that are read inexactly, and keys in fewer bytes, on the small model: what that does to the text.

    python benchmarks/kv_inexact.py [--documents 12] [--rows FILE]

Documents, needles and questions are those of kv_quality.py. Two tables: prompts that are read by ActQKV's
retrieval, or by DeltaLLM's differences, and then kept whole; and prompts that are read exactly, whose keys
are then stored as DeltaLLM's bits and changed values, or otherwise in as many bytes. "Both" is DeltaLLM in
both places. "share" is of pairs of a query and a key that are read (retrieval), of multiply-adds of keys that
are left (differences: 1 - work sparsity), or of bytes of keys and values in half precision. Needs torch.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kv_quality import N_PREFIX, cell, filled, is_found, nll

from abduce.serving.transformers import kv

THETAS = (0.25, 0.5, 0.75, 1.0, 1.5)
RETRIEVALS = [(n_best, power) for n_best in (8, 4) for power in (1.0, 0.0)]
MEMORIES: dict[str, Callable[[], kv.Method]] = {
    **{f"packed, θ {theta:g}": lambda theta=theta: kv.PackedDeltaLLM(theta) for theta in THETAS},
    "INT8 keys": kv.Int8Keys,
    "SnapKV": lambda: kv.SnapKV(0.75),
    "StreamingLLM": lambda: kv.StreamingLLM(0.75),
}


def measure(reader: kv.Reader, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each reading and each memory."""
    ids = document["prefix"]

    def row(name: str, share: float, prefix: Sequence[kv.Prefix], method: kv.Method) -> dict[str, Any]:
        memory = method(prefix)
        found = [is_found(reader, memory, *each, N_PREFIX) for each in document["asked"]]
        return {"way": name, "share": share, "nll": nll(reader, memory, document["next"]), "found": found}

    exact = reader.read(ids)
    yield row("exact", 1.0, exact, kv.FullCache())
    for n_best, power in RETRIEVALS:
        prompt = kv.Retrieving(n_best, power=power)
        name = f"retrieval, {n_best} pages" + (", mean query" if power == 0 else "")
        read = reader.read(ids, prompt=prompt)
        yield row(name, prompt.read_share(len(ids)), read, kv.FullCache())
    for theta in THETAS:
        differences = kv.ByDifferences(theta)
        read = reader.read(ids, prompt=differences)
        share = 1 - sum(each.work for each in differences.seen) / len(differences.seen)
        yield row(f"differences, θ {theta:g}", share, read, kv.FullCache())
        yield row(f"both, θ {theta:g}", share, read, kv.PackedDeltaLLM(theta))
    for name, make in MEMORIES.items():
        share = 0.75 + 0.25 / 64 if name == "INT8 keys" else make()(exact).read_share
        yield row(name, share, exact, make())


def n_rows() -> int:
    """Of a document."""
    return 1 + len(RETRIEVALS) + 2 * len(THETAS) + len(MEMORIES)


def measured(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The documents that have all rows."""
    n = Counter(row["document"] for row in rows)
    return sorted(d for d in n if n[d] == n_rows())


def report(rows: Sequence[dict[str, Any]]) -> None:
    """A table of Markdown."""
    whole = measured(rows)
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["way"], {})[row["document"]] = row
    print(f"{len(whole)} documents\n\n| way | share | perplexity | nats a token over exact | needles |")
    print("|---|---|---|---|---|")
    for way, of in cells.items():
        share, loss = (sum(of[d][key] for d in whole) / len(whole) for key in ("share", "nll"))
        over = cell([of[d]["nll"] - cells["exact"][d]["nll"] for d in whole], "+.3f")
        found = cell([sum(of[d]["found"]) / len(of[d]["found"]) for d in whole], ".2f")
        print(f"| {way} | {share:.2f} | {math.exp(loss):.2f} | {over} | {found} |")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--documents", type=int, default=12)
    arguments.add_argument("--texts", type=Path)
    arguments.add_argument("--rows", type=Path, help="measurements as JSON lines: go on from them, and add")
    given = arguments.parse_args()
    report(filled(given, measured, lambda reader, document, _: measure(reader, document)))


if __name__ == "__main__":
    main()

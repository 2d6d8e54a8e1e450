"""Prompts that are read inexactly, and keys in fewer bytes, on the small model: what that does to the text.

    python benchmarks/kv_inexact.py [--documents 12] [--texts FOLDER] [--rows FILE]
                                    [--over "INT8 keys"]

Documents, needles and questions are those of kv_quality.py. Two tables: prompts that are read by ActQKV's
retrieval, or by DeltaLLM's differences, and then kept whole; and prompts that are read exactly, whose keys
are then stored as DeltaLLM's bits and changed values, or otherwise in as many bytes. "Both" is DeltaLLM in
both places. "share" is of pairs of a query and a key that are read (retrieval), of multiply-adds of keys that
are left (differences: 1 - work sparsity), or of bytes of keys and values in half precision. `--over` adds
paired differences from a way. Needs torch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from arguments import checked, command, keeps_rows
from kv_quality import N_PREFIX, Found, cell, filled, is_found, lead, nll
from printing import table_head, table_row
from rows import Row

from abduce.serving.transformers import kv

THETAS = (0.25, 0.5, 0.75, 0.85, 1.0, 1.5)
RETRIEVALS = {
    f"retrieval, {n_best} pages{'' if power else ', mean query'}": (n_best, power)
    for n_best in (8, 4)
    for power in (1.0, 0.0)
}
MEMORIES: dict[str, Callable[[], kv.Method]] = {
    **{f"packed, θ {theta:g}": lambda theta=theta: kv.PackedDeltaLLM(theta) for theta in THETAS},
    "INT8 keys": kv.Int8Keys,
    "SnapKV": lambda: kv.SnapKV(0.75),
    "StreamingLLM": lambda: kv.StreamingLLM(0.75),
}
WAYS = [
    "exact",
    *RETRIEVALS,
    *(f"{name}, θ {theta:g}" for theta in THETAS for name in ("differences", "both")),
    *MEMORIES,
]


def measure(reader: kv.Reader, document: Row) -> Iterator[tuple[str, Row]]:
    """A row for each reading and each memory."""
    ids = document["prefix"]

    def row(name: str, share: float, prefix: Sequence[kv.Prefix], method: kv.Method) -> tuple[str, Row]:
        memory = method(prefix)
        found = [is_found(reader, memory, *each, N_PREFIX) for each in document["asked"]]
        return name, {"share": share, "nll": nll(reader, memory, document["next"]), "found": found}

    exact = reader.read(ids)
    yield row("exact", 1.0, exact, kv.FullCache())
    for name, (n_best, power) in RETRIEVALS.items():
        prompt = kv.Retrieving(n_best, power=power)
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


def report(rows: Found, over: str | None) -> None:
    """A table of Markdown."""
    heads = ["way", "share", "perplexity", "nats a token over exact", "needles"]
    heads += [f"nats over {over}", f"needles over {over}"] if over else []
    print(f"{len(rows)} documents\n")
    table_head(*heads)
    for way in WAYS if rows else ():
        each = [of[way] for of in rows.values()]
        share, loss = (sum(row[key] for row in each) / len(each) for key in ("share", "nll"))
        parts = [way, f"{share:.2f}", f"{math.exp(loss):.2f}", cell(lead(rows, way, "exact", "nll"), "+.3f")]
        parts.append(cell([sum(row["found"]) / len(row["found"]) for row in each], ".2f"))
        if over:
            parts.append(cell(lead(rows, way, over, "nll"), "+.3f") if way != over else "")
            parts.append(cell(lead(rows, way, over, "found"), "+.2f") if way != over else "")
        table_row(*parts)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--over", help="a way: differences from it as well")
    keeps_rows(parser)
    options = parser.parse_args()
    checked(parser, [options.over] if options.over else [], WAYS)

    def each(reader: kv.Reader, document: Row, _: int, lacking: Sequence[str]) -> Iterator[tuple[str, Row]]:
        return ((way, row) for way, row in measure(reader, document) if way in lacking)

    report(filled(options, ["inexact"], WAYS, each), options.over)


if __name__ == "__main__":
    main()

"""An index for the nearest vectors of a large memory in PostgreSQL: pgvector's HNSW.

    up to EXACT vectors     all are compared
    beyond that             the index finds candidates, most of the nearest; their scores are exact

It is made by the write that passes EXACT, which takes a while, and makes each later one dearer. It knows no
kinds and domains: where only some are looked for, all are compared.

Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical
Navigable Small World graphs", arXiv 1603.09320; M and ef_construction as pgvector comes.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .embedder import Vectors
    from .postgres_link import Server

EXACT = 20_000
_LOOKED_AT = 256  # ef: candidates kept during the search
_MOST_LOOKED_AT = 1000  # pgvector's own limit
_MOST_DIMS = 2000  # the same

_NAME = "abduce_memory_vectors_near"


def make_index(server: "Server", schema: str, dims: int) -> None:
    """Make the index if the memory has grown so large, and the server can."""
    if dims > _MOST_DIMS or _made(server):
        return
    [(n,)] = server.execute("SELECT count(*) FROM abduce_memory_vectors").fetchall()
    if n <= EXACT or not server.execute("SELECT FROM pg_am WHERE amname = 'hnsw'").fetchall():
        return
    server.execute(
        f"CREATE INDEX {_NAME} ON abduce_memory_vectors "
        f"USING hnsw ((vector::{schema}.vector({dims})) {schema}.vector_ip_ops)"
    )


def nearest(server: "Server", schema: str, vector: "Vectors", n: int) -> list[tuple[str, str, float]] | None:
    """Name, text and cosine of about the `n` nearest active entries; None if there is no index to ask."""
    if n > _MOST_LOOKED_AT or not _made(server, looked_at=max(n, _LOOKED_AT)):
        return None
    kind = f"{schema}.vector({len(vector)})"
    rows = server.execute(
        f"SELECT name, text, -negative FROM (SELECT id, "  # noqa: S608
        f"(vector::{kind}) OPERATOR({schema}.<#>) %(vector)s::{kind} AS negative "
        "FROM abduce_memory_vectors ORDER BY negative LIMIT %(n)s) AS found "
        "JOIN abduce_memory_entries USING (id) WHERE active ORDER BY negative",
        {"vector": spelled(vector), "n": n},
    )
    return [(name, text, float(near_by)) for name, text, near_by in rows]


def spelled(vector: "Vectors") -> str:
    """A vector as pgvector reads it."""
    return f"[{','.join(map(repr, vector.tolist()))}]"


def _made(server: "Server", looked_at: int = _LOOKED_AT) -> bool:
    """Whether there is the index; how it is searched, until the transaction ends, is set on the same way."""
    [(found, _)] = server.execute(
        "SELECT to_regclass(%s) IS NOT NULL, set_config('hnsw.ef_search', %s, true)", [_NAME, str(looked_at)]
    ).fetchall()
    return bool(found)

"""What the index for vectors misses of a large memory in PostgreSQL, and what it costs.

    python benchmarks/memory_near.py [--size 20000] [--queries 50] [--url postgresql://…]

Vectors as entries have them: of 256 numbers, about 200 centres, with the spread of texts of one subject. The
queries lie near entries. Searched are the nearest 128, as a store does for ten matches, by comparing all and
by the index (`memory/postgres_near.py`). Without a URL a private server is started, that of the wheel
`pgserver`.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np
import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import command

from abduce.memory import postgres_near
from tests.orchestrator import postgres_server

DIMS, CENTRES, SPREAD, N = 256, 200, 0.7, 128
TABLES = """
CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;
CREATE TABLE abduce_memory_entries (id bigint PRIMARY KEY, name text, text text, active boolean);
CREATE TABLE abduce_memory_vectors (vector public.vector NOT NULL, id bigint PRIMARY KEY);
"""
EXACT = """
SELECT name FROM abduce_memory_vectors JOIN abduce_memory_entries USING (id) WHERE active
ORDER BY vector OPERATOR(public.<#>) %s::public.vector LIMIT %s
"""


def main() -> int:
    """Measure and print."""
    parser = command(__doc__)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--url", help="a server with pgvector")
    options = parser.parse_args()
    if options.url:
        return measured(options.url, options.size, options.queries)
    spec = find_spec("pgserver")
    programs = Path(str(spec.origin)).parent / "pginstall" / "bin" if spec else None
    with postgres_server.found(programs=programs) as url:
        if url is None:
            print("PostgreSQL is not installed: pip install pgserver")
            return 1
        return measured(url, options.size, options.queries)


def measured(url: str, size: int, n_queries: int) -> int:
    """One table, both ways."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, DIMS))
    vectors = unit(centres[rng.integers(0, CENTRES, size)] + SPREAD * rng.normal(size=(size, DIMS)))
    queries = unit(vectors[rng.integers(0, size, n_queries)] + 0.03 * rng.normal(size=(n_queries, DIMS)))
    postgres_near.EXACT = size - 1
    with (
        postgres_server.place(url, "abduce_memory_near") as place,
        psycopg.connect(place, autocommit=True) as server,
    ):
        server.execute(TABLES)
        for table, row in (
            ("abduce_memory_entries", lambda i: (i, f"e{i}", "", True)),
            ("abduce_memory_vectors", lambda i: (postgres_near.spelled(vectors[i]), i)),
        ):
            with server.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                for i in range(size):
                    copy.write_row(row(i))
        server.execute("ANALYZE")

        def compare_all(query: np.ndarray) -> list[tuple[str, ...]]:
            with server.transaction():
                return server.execute(EXACT, [postgres_near.spelled(query), N]).fetchall()

        exact, exact_ms = timed(queries, compare_all)
        began = perf_counter()
        postgres_near.make_index(server, "public", DIMS)
        built_s = perf_counter() - began

        def by_index(query: np.ndarray) -> list[tuple[str, str, float]]:
            with server.transaction():
                found = postgres_near.nearest(server, "public", query, N)
            assert found is not None
            return found

        found, index_ms = timed(queries, by_index)
    print(f"{size} vectors of {DIMS} numbers, {n_queries} queries, the nearest {N}")
    for k in (10, 64, N):
        recall = fmean(len({*a[:k]} & {*b[:k]}) / k for a, b in zip(exact, found, strict=True))
        print(f"    of the nearest {k:3} found    {recall:.3f}")
    print(f"    compare all  {exact_ms:7.1f} ms      index  {index_ms:6.1f} ms      made in {built_s:.1f} s")
    return 0


def unit(vectors: np.ndarray) -> np.ndarray:
    """Of length 1, in the precision that stores keep."""
    scaled = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled.astype(np.float16).astype(np.float32)


def timed(queries: np.ndarray, ask: Callable[[np.ndarray], list]) -> tuple[list[list[str]], float]:
    """The names each query finds, and the median over queries of the least of three times, in ms."""
    found, ms = [], []
    for query in queries:
        times = []
        for _ in range(3):
            began = perf_counter()
            rows = ask(query)
            times.append((perf_counter() - began) * 1e3)
        found.append([row[0] for row in rows])
        ms.append(min(times))
    return found, median(ms)


if __name__ == "__main__":
    sys.exit(main())

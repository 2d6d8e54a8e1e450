"""A PostgreSQL server as a memory: vectors by pgvector or none, lost connections, no password shown.
What holds for every store is in test_conformance.py."""

import asyncio
import random
import subprocess
import sys

import postgres_server
import psycopg
import pytest
from stores import WORDS, Toy

from abduce.memory import postgres, postgres_link, postgres_near
from abduce.memory.in_memory import InMemory
from abduce.memory.postgres import PostgresStore
from abduce.memory.registry import open_store
from abduce.serving.entries import Entry
from abduce.serving.errors import AbduceError, UsageError


async def test_vectors_are_ranked_by_pgvector(database):
    store = PostgresStore(database, Toy())
    await store.write([Entry("a", "circle area"), Entry("b", "prime"), Entry("c", "circle")])
    if store._link.vectors == "-":
        pytest.skip("the server has no pgvector: pip install pgserver")
    found = await store.search("area of the circle", 2)
    assert found[0].entry.name == "a" and "toy: cosine" in found[0].why
    with psycopg.connect(database) as server:
        assert server.execute("SELECT count(*) FROM abduce_memory_vectors").fetchone() == (3,)
    await store.close()


async def test_tables_of_the_first_schema_are_brought_up_to_date(database):
    first = PostgresStore(database)
    await first.write([Entry("a", "circle")])
    await first.close()
    with psycopg.connect(database) as server:
        server.execute("DROP TABLE abduce_memory_made")
        server.execute("UPDATE abduce_memory SET schema = 1")
    store = PostgresStore(database)
    for _ in range(2):
        assert await store.write([Entry("b", "c")], credit={"a": True}, once="r:0") == 2
    assert (await store.get(["a"]))[0].uses == 1
    await store.close()


async def test_a_server_without_pgvector_finds_by_words_and_says_so(database, monkeypatch):
    monkeypatch.setattr(postgres_link, "_vectors", lambda server: "-")
    store, reference = PostgresStore(database, Toy()), InMemory()
    for each in (store, reference):
        await each.write([Entry("a", "circle area"), Entry("b", "prime area")])
    found, right = await store.search("circle area", 2), await reference.search("circle area", 2)
    assert [(m.entry, m.score) for m in found] == [(m.entry, m.score) for m in right]
    assert found[0].why == "shares circle, area; by words alone, the server has no pgvector"
    await store.close()


async def test_a_large_memory_has_an_index_and_ranks_by_exact_scores(database, monkeypatch):
    monkeypatch.setattr(postgres_near, "EXACT", 700)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) + f" {i}" for i in range(1000)]
    entries = [Entry(f"e{i}", text, kind="odd" if i % 2 else "even") for i, text in enumerate(texts)]
    store = PostgresStore(database, Toy())
    if await store.write(entries[:500]) and store._link.vectors == "-":
        pytest.skip("the server has no pgvector: pip install pgserver")

    def asked_of_the_index() -> int | None:
        with psycopg.connect(database) as server:
            row = server.execute(
                "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'abduce_memory_vectors_near' "
                "AND schemaname = current_schema()"
            ).fetchone()
        return row[0] if row else None

    async def found(**words):
        return [(m.entry.name, m.score, m.why) for q in WORDS[:8] for m in await store.search(q, 10, **words)]

    assert asked_of_the_index() is None
    await store.write(entries[500:])
    await store.forget(["e7"])
    by_index, odd = await found(), await found(kinds=["odd"])
    await store.close()  # so that the server counts
    assert asked_of_the_index() == 8
    monkeypatch.setattr(postgres, "nearest", lambda *_: None)
    exact = await found()
    assert len(by_index) == len(exact) == 80 and len(set(by_index) & set(exact)) >= 76
    assert odd == await found(kinds=["odd"])
    await store.close()


async def test_a_lost_connection_is_made_anew(database):
    store = PostgresStore(database)
    await store.write([Entry("a", "one")])
    with psycopg.connect(database, autocommit=True) as server:
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database()"
        )
    assert await store.write([Entry("b", "two")]) == 2
    await store.close()
    assert [e.name for e in await store.everything()] == ["a", "b"]  # and after `close`
    await store.close()


WRITER = """
import asyncio, sys
from abduce.memory.postgres import PostgresStore
from abduce.serving.entries import Entry

async def main(url, who):
    store = PostgresStore(url)
    for i in range(25):
        await store.write([Entry(f"{who} {i}", f"entry {i} of {who}"), Entry("both", f"last by {who} {i}")])
        await store.credit({"both": True})
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_two_processes_write_at_once(database):
    running = [subprocess.Popen([sys.executable, "-c", WRITER, database, who]) for who in ("anna", "bert")]
    assert [process.wait(timeout=60) for process in running] == [0, 0]

    async def look():
        store = PostgresStore(database)
        found = await store.everything(), await store.version(), await store.search("entry", 99)
        await store.close()
        return found

    kept, version, found = asyncio.run(look())
    assert (len(kept), version, len(found)) == (51, 50, 50)
    assert next(entry.uses for entry in kept if entry.name == "both") == 50


async def test_no_password_is_shown(database):
    assert postgres_server.PASSWORD not in repr(PostgresStore(database))
    wrong = database.replace("127.0.0.1", "127.0.0.1:1,127.0.0.1") if "," in database else None
    for url in filter(None, [wrong, "postgresql://me:hush-hush-1@127.0.0.1:1/db"]):
        with pytest.raises(UsageError, match=r"postgresql://\w+@127.0.0.1.* cannot be used") as told:
            await PostgresStore(url).version()
        assert "hush" not in str(told.value) and postgres_server.PASSWORD not in str(told.value)


async def test_what_fails_on_the_server_is_told_and_undone(database):
    store = PostgresStore(database)
    await store.write([Entry("a", "one")])
    with psycopg.connect(database, autocommit=True) as server:
        server.execute("ALTER TABLE abduce_memory_changes ADD CONSTRAINT small CHECK (length(entry) < 500)")
    with pytest.raises(AbduceError, match=r"failed: .*small.* Nothing of a write that failed was kept"):
        await store.write([Entry("b", "x" * 600)])
    assert await store.version() == 1 and len(await store.everything()) == 1
    await store.close()


async def test_another_embedder_is_refused(database):
    class Other(Toy):
        name = "other"

    store = PostgresStore(database, Toy())
    await store.write([Entry("a", "circle")])
    if store._link.vectors == "-":
        pytest.skip("the server has no pgvector: pip install pgserver")
    with pytest.raises(UsageError, match="Write embedder: toy, or none"):
        await PostgresStore(database, Other()).search("circle", 1)
    await store.close()


def test_a_store_by_its_name(database, monkeypatch, tmp_path):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    assert isinstance(open_store(database), postgres.PostgresStore)
    assert open_store("x.db").path == tmp_path / "memory" / "x.db"
    assert isinstance(open_store(":memory:"), InMemory)
    for name in ("../x.db", "/tmp/x.db", ".hidden", "a/b", ""):
        with pytest.raises(UsageError, match=r"memory.store must be the name of a file"):
            open_store(name)
    with pytest.raises(UsageError, match=r"cannot be kept at mysql://…"):
        open_store("mysql://x/y")
    with pytest.raises(UsageError, match=r"cannot be read. Write postgresql://"):
        open_store("postgresql://a b:c@/%zz")

"""The file: found by words and vectors whoever wrote it, in large ones by shortcuts, and erased for good."""

import asyncio
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Toy

from abduce.memory import sqlite_search
from abduce.memory.codes import Codes, codes, packed, unpacked
from abduce.memory.in_memory import InMemory
from abduce.memory.sqlite import SqliteStore
from abduce.serving.entries import Entry
from abduce.serving.errors import UsageError

COMMON = [f"common{i}" for i in range(20)]


def crowd(n):
    """Entries of common words, each with two rare ones."""
    rng = random.Random(0)
    for i in range(n):
        yield Entry(f"e{i}", " ".join([f"rare{i % 997}", *rng.choices(COMMON, k=12), f"seldom{i % 1009}"]))


async def test_shortcuts_find_what_the_reference_finds_first(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_search, "POSTINGS", 100)
    monkeypatch.setattr(sqlite_search, "CANDIDATES", 16)
    monkeypatch.setattr(sqlite_search, "NEAREST", 16)
    store, words, reference = (
        SqliteStore(tmp_path / "m.db", Toy()),
        SqliteStore(tmp_path / "w.db"),
        InMemory(),
    )
    for each in (store, words, reference):
        await each.write(list(crowd(1500)))
    for i in range(0, 1500, 150):
        query = f"rare{i % 997} common1 common2 seldom{i % 1009}"
        [found], [right] = await words.search(query, 1), await reference.search(query, 1)
        assert found == right
        assert right.entry.name in [match.entry.name for match in await store.search(query, 5)]
    for query in ("common3", "common3 common4", "common5 unheard of"):  # nothing rare in it
        assert len(await store.search(query, 5)) == len(await words.search(query, 5)) == 5
    assert {m.entry.kind for m in await store.search("common1 rare1", 5, kinds=("note",))} == {"note"}
    assert await store.search("common1 rare1", 5, kinds=("other",)) == ()
    await store.close(), await words.close()


async def test_what_another_process_writes_is_found_at_once(tmp_path):
    ours, theirs = SqliteStore(tmp_path / "m.db", Toy()), SqliteStore(tmp_path / "m.db", Toy())
    await ours.write([Entry("a", "circle of fire")])
    assert [m.entry.name for m in await ours.search("fire", 1)] == ["a"]
    for i in range(5):
        await theirs.write([Entry("b", f"water {i}"), Entry("a", f"circle {i}")])
        [found] = await ours.search(f"water {i}", 1)
        assert (found.entry.name, found.entry.text) == ("b", f"water {i}")
        assert all(m.entry.text == f"circle {i}" for m in await ours.search("fire circle", 1))
    await theirs.forget(["b"])
    assert "b" not in [m.entry.name for m in await ours.search("water", 5)]
    await ours.close(), await theirs.close()


async def test_what_was_written_without_an_embedder_is_embedded_by_the_first_that_has_one(tmp_path):
    plain = SqliteStore(tmp_path / "m.db")
    await plain.write([Entry("a", "circle"), Entry("b", "square", status="retired")])
    assert "without an embedder" in (await plain.search("circle", 1))[0].why
    able = SqliteStore(tmp_path / "m.db", Toy())
    assert (await able.search("circle", 1))[0].why.startswith("shares circle; toy: cosine 0.")
    await able.rollback(0)
    await able.rollback(1)
    assert (await able.search("circle", 1))[0].why.startswith("shares circle; toy: cosine 0.")
    await plain.close(), await able.close()


async def test_vectors_of_two_embedders_are_not_compared(tmp_path):
    class Other(Toy):
        name = "other"

    await SqliteStore(tmp_path / "m.db", Toy()).write([Entry("a", "circle")])
    store = SqliteStore(tmp_path / "m.db", Other())
    for deed in (store.search("circle", 1), store.write([Entry("b", "square")])):
        with pytest.raises(
            UsageError, match=r"were made by toy, .* those of other\. Write embedder: toy, or none"
        ):
            await deed
    assert [e.name for e in await store.everything()] == ["a"]
    await store.close()


async def test_what_is_forgotten_is_not_in_the_file(tmp_path):
    store = SqliteStore(tmp_path / "m.db", Toy())
    await store.write([Entry(f"n{i}", "nothing special") for i in range(50)])
    for text in ("zanzibar quokka", "quokka of zanzibar"):
        await store.write([Entry("secret", text, data={"where": text})], reason="told so")
    held = [file for file in tmp_path.iterdir() if b"quokka" in file.read_bytes()]
    assert held
    assert await store.forget(["secret"]) == 1
    await store.close()
    assert not [file for file in tmp_path.iterdir() if b"quokka" in file.read_bytes()]


async def test_reading_makes_nothing(tmp_path):
    store = SqliteStore(tmp_path / "none" / "m.db", Toy())
    assert await store.search("x", 3) == await store.everything() == await store.history() == ()
    assert await store.version() == await store.forget(["x"]) == 0
    await store.credit({"x": True})
    assert not (tmp_path / "none").exists()
    await store.close()


def test_it_works_without_numpy(tmp_path):
    code = (
        "import sys, asyncio\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('numpy', 'wordllama', 'tokenizers', 'psycopg', 'langgraph'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from abduce.memory.sqlite import SqliteStore\n"
        "from abduce.serving.entries import Entry\n"
        "async def main():\n"
        "    store = SqliteStore(sys.argv[1])\n"
        "    await store.write([Entry('a', 'circle')])\n"
        "    print((await store.search('circles', 1))[0].why)\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.db")], capture_output=True, text=True)
    assert ran.stdout.strip() == "shares circle; by words alone, without an embedder", ran.stderr


def test_the_loop_may_change_from_call_to_call(tmp_path):
    store = SqliteStore(tmp_path / "m.db", Toy())
    for i in range(3):
        assert asyncio.run(store.write([Entry(f"{i}", f"circle {i}")])) == i + 1
    assert len(asyncio.run(store.search("circle", 9))) == 3
    asyncio.run(store.close())


vectors = st.integers(1, 200).flatmap(
    lambda n: st.integers(0, 2**31).map(lambda seed: np.random.default_rng(seed).normal(size=(n, 100)))
)


@settings(max_examples=30, deadline=None)
@given(vectors, st.sets(st.integers(1, 200)), st.integers(1, 20))
def test_codes_give_those_that_go_with_the_query_most(rows, dropped, n):
    rows = rows.astype(np.float32)
    kept, coded = Codes(), [(i + 1, 10 * (i + 1), i % 2, 0, code) for i, code in enumerate(codes(rows))]
    kept.add(coded[: len(rows) // 2])
    kept.add(coded[len(rows) // 2 :])
    kept.drop(sorted(dropped))
    worth = (rows > 0) @ rows[0]
    for kinds in (None, [1]):
        able = [i for i in range(len(rows)) if i + 1 not in dropped and (kinds is None or i % 2 == 1)]
        found = kept.nearest(rows[0], n, kinds=kinds, domain=None)
        assert len(found) == len(set(found)) == min(n, len(able))
        assert set(found) <= {10 * (i + 1) for i in able}
        if len(able) <= 16 * n:  # all of them are looked at
            first = sorted((float(worth[i]) for i in able), reverse=True)[:n]
            assert np.allclose(sorted((worth[id // 10 - 1] for id in found), reverse=True), first, atol=1e-4)
    assert kept.nearest(rows[0], n, kinds=None, domain=7) == []


def test_vectors_come_back_in_half_precision():
    rows = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    assert np.array_equal(unpacked(packed(rows)), rows.astype(np.float16).astype(np.float32))


async def test_a_write_that_is_called_off_harms_no_other(tmp_path):
    store = SqliteStore(tmp_path / "m.db")
    await store.write([Entry("first", "x")])
    writes = [asyncio.ensure_future(store.write([Entry(f"{i}", "y")])) for i in range(20)]
    await asyncio.sleep(0)
    for write in writes[::2]:
        write.cancel()
    done = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(each, int) for each in done[1::2])
    kept = {entry.name for entry in await store.everything()}
    assert {f"{i}" for i in range(1, 20, 2)} <= kept
    assert len(kept) == await store.version()
    await store.close()


async def test_closing_waits_for_what_is_under_way(tmp_path):
    store = SqliteStore(tmp_path / "m.db", Toy())
    going = [asyncio.ensure_future(store.write([Entry(f"{i}", "circle")])) for i in range(9)]
    await asyncio.sleep(0)
    going += [asyncio.ensure_future(store.search("circle", 9)) for _ in range(9)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*going)
    assert len(await store.search("circle", 99)) == 9
    await store.close()

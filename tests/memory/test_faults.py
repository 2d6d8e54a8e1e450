"""Nothing that was acknowledged is lost: killed while writing, two at once, a full disk, a damaged file."""

import asyncio
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from stores import Toy

from abduce.memory import sqlite_file
from abduce.memory.sqlite import SqliteStore
from abduce.serving.entries import Entry
from abduce.serving.errors import UsageError

BATCH = 3
NURSERY = """
import asyncio, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from stores import Toy
from abduce.memory.sqlite import SqliteStore
from abduce.serving.entries import Entry

async def write(path, start, told):
    store = SqliteStore(path, Toy())
    for i in range(start, 10**6):
        await store.write([Entry(f"{i}-{part}", f"entry {i} part {part}") for part in range(3)])
        os.write(told, b"%d\\n" % i)  # acknowledged
        if i % 3 == 0:
            await store.credit({f"{i}-0": True})
            os.write(told, b"-%d\\n" % i)

rng, start = random.Random(0), 1
for moment in range(int(sys.argv[2])):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        asyncio.run(write(Path(sys.argv[1]), start, theirs))
    os.close(theirs)
    with open(ours) as told:
        lines = [told.readline()] if moment % 4 else []  # or it is killed while it opens the file
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        lines += told.readlines()
    os.waitpid(child, 0)
    heard = [int(line) for line in lines if line.endswith("\\n")]
    print(*heard)
    start = max([start - 1, *heard]) + 2  # one more may have been written, and not acknowledged
"""


def sound(path: Path) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.execute("INSERT INTO found (found) VALUES ('integrity-check')")
    db.close()


def test_killed_at_twenty_moments(tmp_path):
    path = tmp_path / "m.db"
    here = str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-c", NURSERY, str(path), "20", here], capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    told = [int(word) for word in ran.stdout.split()]
    written, credited = [i for i in told if i > 0], [-i for i in told if i < 0]
    assert len(ran.stdout.splitlines()) == 20 and len(written) > 40
    rare = [i for i in written[::10] if i > BATCH]  # numbers that no part has

    async def look():
        store = SqliteStore(path, Toy())
        kept = {entry.name: entry for entry in await store.everything()}
        found = [await store.search(f"entry {i} part 1", 1) for i in rare]
        history, version = await store.history(), await store.version()
        await store.close()
        return kept, found, history, version

    kept, found, history, version = asyncio.run(look())
    assert all(f"{i}-{part}" in kept for i in written for part in range(BATCH))
    assert all(kept[f"{i}-0"].wins >= 1 for i in credited)
    assert len(kept) == BATCH * version == len(history)  # whole batches, and each is a version
    assert [match.entry.name for [match] in found] == [f"{i}-1" for i in rare]
    sound(path)


WRITER = """
import asyncio, sys
from abduce.memory.sqlite import SqliteStore
from abduce.serving.entries import Entry

async def main(path, who):
    store = SqliteStore(path)
    for i in range(60):
        await asyncio.gather(
            store.write([Entry(f"{who} {i}", f"entry {i} of {who}"), Entry("both", f"last by {who} {i}")]),
            store.credit({"both": True}),
            store.search("entry", 3),
        )
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


def test_two_processes_write_at_once(tmp_path):
    path = tmp_path / "new" / "m.db"
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), who], stderr=subprocess.PIPE)
        for who in ("anna", "bert")
    ]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    store = SqliteStore(path)

    async def look():
        found = await store.everything(), await store.version(), await store.history("both")
        await store.close()
        return found

    kept, version, history = asyncio.run(look())
    assert len(kept) == 121 and version == 120
    [both] = [entry for entry in kept if entry.name == "both"]
    assert 118 <= both.uses <= 120  # a credit may come before the entry that it is for
    assert [change.version for change in history] == list(range(1, 121))
    sound(path)


async def test_writes_of_one_moment_share_a_transaction(tmp_path):
    store = SqliteStore(tmp_path / "m.db")
    await store.write([Entry("first", "x")])
    begun = []
    await asyncio.wrap_future(store._file.write(lambda db: db.set_trace_callback(begun.append)))
    wrong = store.rollback(99)
    writes = [store.write([Entry(f"{i}", f"number {i}")]) for i in range(50)]
    *versions, refused = await asyncio.gather(*writes, wrong, return_exceptions=True)
    assert versions == list(range(2, 52))
    assert isinstance(refused, UsageError)
    assert sum(statement == "COMMIT" for statement in begun) < 10
    await store.close()


FULL = """
import asyncio, resource, sys
from abduce.memory.sqlite import SqliteStore
from abduce.serving.entries import Entry
from abduce.serving.errors import UsageError

async def main(path):
    store, i = SqliteStore(path), 0
    await store.write([Entry("0", "x" * 5000)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    try:
        while i < 1000:
            await store.write([Entry(str(i + 1), "x" * 5000)])
            i += 1
    except UsageError as error:
        print(i, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert {int(entry.name) for entry in await store.everything()} == set(range(i + 1))
    assert await store.write([Entry("after", "there is space again")]) == i + 2
    await store.close()

asyncio.run(main(sys.argv[1]))
"""


def test_a_file_that_may_not_grow(tmp_path):
    path = tmp_path / "m.db"
    ran = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.partition(" ")[2]
    assert said.startswith(f"The memory {path} cannot be used: ") and "space" in said
    sound(path)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB; None where this user may not make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not made or made.returncode != 0:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run([str(shutil.which("umount")), str(folder)], check=True)


async def test_a_full_disk(small_disk):
    (small_disk / "others").write_bytes(bytes(1_000_000))
    store, kept = SqliteStore(small_disk / "m.db"), 0
    with pytest.raises(UsageError, match=r"Free some space and write again|disk works and has space"):
        for i in range(1000):
            await store.write([Entry(f"{i}", "x" * 5000)])
            kept += 1
    assert len(await store.everything()) == kept == await store.version()
    (small_disk / "others").unlink()
    assert await store.write([Entry("after", "there is space again")]) == kept + 1
    await store.close()
    sound(small_disk / "m.db")


async def filled(path: Path) -> None:
    store = SqliteStore(path, Toy())
    await store.write([Entry(f"{i}", f"area of circle {i} " + "x" * (i % 700)) for i in range(400)])
    await store.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"no database at all" * 999, "file is not a database"),
        (lambda data: data[:16] + os.urandom(len(data) - 16), "."),
        (lambda data: data[: len(data) // 2], "malformed"),
        (lambda data: data[:4096] + bytes(len(data) - 4096), "malformed"),
    ],
    ids=["another file", "noise", "cut", "zeros"],
)
async def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage, said):
    path = tmp_path / "m.db"
    await filled(path)
    path.write_bytes(damaged := damage(path.read_bytes()))
    for deed in (
        lambda s: s.search("circle", 1),
        lambda s: s.everything(),
        lambda s: s.write([Entry("a", "b")]),
    ):
        store = SqliteStore(path, Toy())
        with pytest.raises(UsageError, match=rf"m\.db cannot be used: .*{said}.*\.recover"):
            await deed(store)
        await store.close()
    assert path.read_bytes() == damaged  # which may still be repaired


async def test_any_damaged_page_is_noticed_or_harmless(tmp_path):
    path, rng = tmp_path / "m.db", random.Random(0)
    await filled(path)
    whole = path.read_bytes()
    for _ in range(25):
        place = 4096 * rng.randrange(len(whole) // 4096)
        noise = bytes(4096) if rng.random() < 0.5 else rng.randbytes(4096)
        path.write_bytes(whole[:place] + noise + whole[place + 4096 :])
        for left in tmp_path.glob("m.db-*"):
            left.unlink()
        store = SqliteStore(path, Toy())
        for deed in (
            lambda s: s.search("area of circle 7", 3), lambda s: s.everything(), lambda s: s.history(),
            lambda s: s.get(["7"]), lambda s: s.write([Entry("7", "changed")]), lambda s: s.forget(["8"]),
        ):  # fmt: skip
            try:
                await deed(store)
            except UsageError as error:
                assert "m.db cannot be used" in str(error)
        await store.close()


async def test_a_file_of_the_first_schema_is_brought_up_to_date(tmp_path):
    await filled(tmp_path / "m.db")
    with sqlite3.connect(tmp_path / "m.db") as db:
        db.execute("DROP TABLE made")
        db.execute("PRAGMA user_version = 1")
    db.close()
    store = SqliteStore(tmp_path / "m.db", Toy())
    before = await store.version()
    for _ in range(2):
        assert await store.write([Entry("x", "y")], credit={"x": True}, once="r:0") == before + 1
    [x] = await store.get(["x"])
    assert x.uses == 1
    await store.close()


async def test_a_file_of_the_first_schema_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    await filled(tmp_path / "m.db")
    with sqlite3.connect(tmp_path / "m.db") as db:
        db.execute("DROP TABLE made")
        db.execute("PRAGMA user_version = 1")
    db.close()
    connect = sqlite3.connect

    def only_reading(*args, **options):
        made = connect(*args, **options)
        made.execute("PRAGMA query_only = ON")
        return made

    monkeypatch.setattr(sqlite3, "connect", only_reading)
    store = SqliteStore(tmp_path / "m.db", Toy())
    assert await store.version() > 0 and await store.everything()
    with pytest.raises(UsageError, match="readonly"):
        await store.write([Entry("x", "y")])
    await store.close()


async def test_counting_needs_no_embedder(tmp_path):
    await filled(tmp_path / "m.db")
    another = Toy()
    another.name = "another"
    store = SqliteStore(tmp_path / "m.db", another)
    with pytest.raises(UsageError, match="another"):
        await store.write([Entry("x", "y")])
    version = await store.version()
    assert await store.write([], credit={"7": True}) == version
    [entry] = await store.get(["7"])
    assert entry.uses == 1
    await store.close()


async def test_a_newer_file_a_foreign_one_and_a_place_that_is_none(tmp_path, monkeypatch):
    await filled(tmp_path / "m.db")
    monkeypatch.setattr(sqlite_file, "SCHEMA", 0)
    with pytest.raises(UsageError, match=r"made by a newer abduce .* pip install --upgrade abduce"):
        await SqliteStore(tmp_path / "m.db").version()
    monkeypatch.undo()
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(UsageError, match="is a database, but no memory of abduce's"):
        await SqliteStore(tmp_path / "other.db").write([Entry("a", "b")])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"m\.db cannot be made: "):
        await SqliteStore(tmp_path / "file" / "m.db").write([Entry("a", "b")])

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from abduce.memory.notes import Notes
from abduce.serving.errors import UsageError


async def test_what_shares_rare_words_comes_first(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    texts = ["the sum of the angles is 180", "the primes below ten", "the area of the circle", "the the the"]
    for text in texts:
        await notes.remember(text)
    assert (await notes.recall("What is the area of the circles?", 2))[0] == "the area of the circle"
    assert len(await notes.recall("the", 3)) == 3
    assert await notes.recall("zebra", 3) == ()


async def test_the_same_text_is_kept_once(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.db")
    await asyncio.gather(*(notes.remember("twice two is four") for _ in range(5)))
    assert await notes.recall("two", 9) == ("twice two is four",)


@pytest.mark.parametrize("query", ["", "?!", '" OR 1=1 --', "NEAR(a b) AND NOT c*", "x" * 10_000])
async def test_no_query_is_read_as_syntax(tmp_path: Path, query: str) -> None:
    notes = Notes(tmp_path / "notes.db")
    await notes.remember("something else")
    assert await notes.recall(query, 3) == ()


async def test_nothing_is_found_where_nothing_was_stored_and_nothing_made(tmp_path: Path) -> None:
    assert await Notes(tmp_path / "none" / "notes.db").recall("x", 3) == ()
    assert not (tmp_path / "none").exists()


def test_processes_share_the_file(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom abduce.memory.notes import Notes\n"
        "notes = Notes(Path(sys.argv[1]))\n"
        "for i in range(20): asyncio.run(notes.remember(f'entry {i} of {sys.argv[2]}'))\n"
    )
    file = str(tmp_path / "notes.db")
    running = [subprocess.Popen([sys.executable, "-c", script, file, name]) for name in ("anna", "bert")]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    assert len(asyncio.run(Notes(Path(file)).recall("entry", 100))) == 40


async def test_a_file_that_is_no_memory_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("no database at all, just some text that is long enough to be read as a header")
    with pytest.raises(UsageError, match=r"notes\.db cannot be used: file is not a database"):
        await Notes(file).recall("x", 1)

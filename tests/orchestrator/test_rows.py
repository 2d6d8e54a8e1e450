"""Rows that are kept as they are made, and gone on with."""

import pytest

from abduce.orchestrator.rows import Rows
from abduce.serving import redact
from abduce.serving.errors import UsageError


def rows(file, header=None, *, resume=False):
    return Rows(file, "sums", header or {"seed": 1}, resume=resume, command="abduce sum", option="--out")


@pytest.fixture
def file(tmp_path):
    made = rows(tmp_path / "new" / "rows.jsonl")
    for n in range(3):
        made.add({"n": n, "said": "ä"})
    made.close()
    return made.file


def test_rows_come_back_whatever_the_last_line_lost(file):
    whole = file.read_bytes()
    for end in range(len(whole) + 1):
        file.write_bytes(whole[:end])
        again = rows(file, resume=True)
        again.close()
        n_whole = max(0, whole[:end].count(b"\n") - 1)
        assert [row["n"] for row in again.rows] == list(range(n_whole))
        assert file.read_bytes().count(b"\n") == n_whole + 1


def test_nothing_is_overwritten_or_mixed(file):
    before = file.read_bytes()
    with pytest.raises(UsageError, match=r"exists\. Add --resume .* --out"):
        rows(file)
    with pytest.raises(UsageError, match=r"another seed, size\. Resume with the same"):
        rows(file, {"seed": 2, "size": 3}, resume=True)
    with pytest.raises(UsageError, match="no file of `abduce other`"):
        Rows(file, "others", {}, resume=True, command="abduce other", option="--out")
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["hello\n", "[]\n", "3\n", '{"sums": 3}\n', '{"sums": {"seed": 1}}\n[1]\n'])
def test_what_is_no_such_file_is_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(UsageError, match="no file of `abduce sum`"):
        rows(tmp_path / "x", resume=True)


def test_what_cannot_be_written_is_told(file):
    with pytest.raises(UsageError, match=r"Cannot write .*--out"):
        rows(file / "below.jsonl")


def test_secrets_stay_out(tmp_path):
    redact.register("hush-hush-1234")
    made = rows(tmp_path / "rows.jsonl")
    made.add({"said": "it is hush-hush-1234"})
    made.close()
    assert "hush" not in made.file.read_text()

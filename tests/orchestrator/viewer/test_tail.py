"""Following a file that grows, is torn, begun anew, or replaced."""

import json

from abduce.orchestrator.viewer.tail import Tail


def line(n, event="noted"):
    return json.dumps({"event": event, "path": [n]}) + "\n"


def numbers(tail):
    return [row["path"][0] for row in tail.rows()]


def test_rows_come_as_they_are_written_whole(tmp_path):
    file = tmp_path / "trace.jsonl"
    tail = Tail(file)
    assert numbers(tail) == []
    assert not tail.begun_anew()
    with file.open("w") as out:
        out.write(line(0) + line(1)[:10])
        out.flush()
        assert numbers(tail) == [0]
        out.write(line(1)[10:] + line(2))
        out.flush()
        assert numbers(tail) == [1, 2]
    assert numbers(tail) == []
    assert not tail.begun_anew()


def test_what_is_no_event_is_passed_over(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text('no json\n[1]\n{"event": 3, "path": []}\n{"event": "noted"}\n\n' + line(7))
    assert numbers(Tail(file)) == [7]


def test_a_letter_cut_in_two_is_put_together(tmp_path):
    file = tmp_path / "trace.jsonl"
    data = json.dumps({"event": "ü", "path": []}, ensure_ascii=False).encode() + b"\n"
    cut = data.index("ü".encode()) + 1
    tail = Tail(file)
    file.write_bytes(data[:cut])
    assert list(tail.rows()) == []
    with file.open("ab") as out:
        out.write(data[cut:])
    assert [row["event"] for row in tail.rows()] == ["ü"]


def test_a_resumed_run_begins_anew(tmp_path):
    file = tmp_path / "trace.jsonl"
    file.write_text(line(0) + line(1) + line(2))
    tail = Tail(file)
    assert numbers(tail) == [0, 1, 2]
    file.write_text(line(5))
    assert tail.begun_anew()
    assert numbers(tail) == [5]
    assert not tail.begun_anew()


def test_a_sorted_file_in_its_place_begins_anew(tmp_path):
    file, other = tmp_path / "trace.jsonl", tmp_path / "trace.sorted"
    file.write_text(line(1) + line(0))
    tail = Tail(file)
    assert numbers(tail) == [1, 0]
    other.write_text(line(0) + line(1) + line(2))
    other.replace(file)
    assert tail.begun_anew()
    assert numbers(tail) == [0, 1, 2]

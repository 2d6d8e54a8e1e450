import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abduce.memory.base import Store
from abduce.memory.checking import checked
from abduce.memory.in_memory import InMemory
from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator.memory_files import MAX_LINE_BYTES, MAX_YAML_BYTES, Kept, read, restore, written
from abduce.serving.entries import Entry, Evidence
from abduce.serving.errors import UsageError

HEAD = '{"abduce_memory": 1}\n'
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TRICKY = st.sampled_from(
    ["yes", "1:30", "2024-01-01", "null", "~", "a: b", "- a", "a\nb\n", " x ", "\t", "#", "", "0x1"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | TRICKY,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(TEXT, parts, max_size=3),
    max_leaves=6,
)
EVIDENCE = st.builds(Evidence, TEXT, TEXT, TEXT, st.floats(0, 1), st.lists(TEXT, max_size=2).map(tuple))
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.text("abc d-1", min_size=1, max_size=5).filter(str.strip),
        TEXT | TRICKY,
        TEXT,
        st.dictionaries(TEXT, JSON, max_size=3),
        TEXT,
        st.sampled_from(["active", "retired"]),
        st.lists(EVIDENCE, max_size=2).map(tuple),
        st.integers(5, 9),
        st.integers(0, 5),
    ),
    max_size=4,
    unique_by=lambda entry: entry.name,
)


@pytest.mark.parametrize("form", ["jsonl", "yaml"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=ENTRIES)
def test_what_is_exported_is_read_back_without_loss(tmp_path: Path, form: str, entries: list[Entry]) -> None:
    kept = Kept(checked(entries))
    file = tmp_path / f"m.{form}"
    file.write_text("".join(written(kept, form=form)), encoding="utf-8", newline="\n")
    assert read(file) == kept


async def eventful(store: Store) -> None:
    """A store with all that may happen to one, but for what is forgotten."""
    a, b = (
        Entry("a", "one", evidence=(Evidence("r", "p", "tests", 1.0, ("b",)),)),
        Entry("b", "two", data={"n": [1]}),
    )
    await store.write([a, b], reason="first")
    await store.write([Entry("a", "one, better")], action="merged", reason="again")
    await store.credit({"a": True, "b": False})
    await store.write([Entry("c", "three"), Entry("b", "two", status="retired")], action="retired")
    await store.rollback(2, reason="regretted")
    await store.write([Entry("d", "four")])
    await store.credit({"a": False})


@pytest.mark.parametrize("form", ["jsonl", "yaml"])
async def test_a_store_moves_with_its_history_and_every_version_of_it(tmp_path: Path, form: str) -> None:
    old, new = InMemory(), SqliteStore(tmp_path / "new.db")
    await eventful(old)
    file = tmp_path / f"m.{form}"
    file.write_text(
        "".join(written(Kept(await old.everything(), await old.history()), form=form)), encoding="utf-8"
    )
    assert await restore(new, read(file)) == await old.version() == 5
    assert await new.everything() == await old.everything()
    for version in range(6):
        told = [
            [(e.name, e.text, e.status, e.data) for e in await each.everything(at=version)]
            for each in (old, new)
        ]
        assert told[0] == told[1]
    assert [(c.version, c.name, c.action, c.reason) for c in await new.history()] == [
        (c.version, c.name, c.action, c.reason) for c in await old.history()
    ]
    await new.close()


async def test_a_history_is_restored_only_into_a_new_memory() -> None:
    store = InMemory()
    await eventful(store)
    with pytest.raises(UsageError, match="only be restored into a new memory"):
        await restore(store, Kept((), await store.history()))


def lines(*rows: object) -> str:
    return HEAD + "".join(json.dumps(row) + "\n" for row in rows)


ENTRY = {"name": "a", "text": "x"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"abduce_memory": 2}\n', r"m:1: this is no memory of format 1"),
        ('{"name": "a"}\n', r"m:1: this is no memory"),
        (lines({"entry": ENTRY}, {"entry": ENTRY}), "'a' stands twice"),
        (lines({"entry": {**ENTRY, "txt": 1}}), r"m:2: there is no field 'txt'. Did you mean 'text'"),
        (lines({"entry": {"name": "a"}}), "m:2: an entry needs text"),
        (lines({"entry": {**ENTRY, "uses": "3"}}), "m:2: uses is a whole number, got '3'"),
        (lines({"entry": {**ENTRY, "uses": True}}), "m:2: uses is a whole number, got True"),
        (lines({"entry": {**ENTRY, "wins": 3}}), "m:2: wins of the entry 'a' cannot be 3"),
        (lines({"entry": {**ENTRY, "status": "dead"}}), "m:2: status of the entry 'a' cannot be 'dead'"),
        (lines({"entry": {**ENTRY, "data": []}}), "m:2: data is a mapping"),
        (lines({"entry": {**ENTRY, "evidence": ["tests"]}}), "m:2: evidence is a mapping such as"),
        (lines({"entry": {**ENTRY, "evidence": [{"confidence": 2}]}}), "m:2: confidence .* cannot be 2"),
        (lines({"entry": {**ENTRY, "evidence": [{"read": [1]}]}}), "m:2: read is a list of names"),
        (lines({"entry": {**ENTRY, "name": "n" * 300}}), "m:2: An entry's name has 1 to 200 characters"),
        (lines({"entry": ENTRY, "more": 1}), r'm:2: a line is {"entry": …}'),
        (lines({"change": {"version": 1, "entry": ENTRY}}), "m:2: action is a text, got None"),
        (lines([1]), "m:2: a line is a JSON object"),
        (
            HEAD + '{"entry": {"name": "a", "name": "b", "text": ""}}',
            "m:2: the line is no JSON: a key stands twice",
        ),
        (HEAD + '{"entry": {"name": "a", "text": "", "data": {"x": NaN}}}', "m:2: the line is no JSON: NaN"),
        (HEAD + "{nonsense", "m:2: the line is no JSON"),
        (HEAD + '{"entry": ' + "[" * 100_000, "m:2: the line is no JSON"),
        (HEAD + '{"x": "' + "y" * MAX_LINE_BYTES, "m:2: the line is longer than"),
        ("abduce_memory: 1\nentries: &a [*a]\n", "m:2: anchors and aliases"),
        ("abduce_memory: 1\nentries: !!python/object:os.system x\n", "m:2: the tag"),
        ("abduce_memory: 1\nentries: {}\n", "entries is a list"),
        ("abduce_memory: 1\nentry: []\n", "there is no field 'entry'. Did you mean 'entries'"),
        ("abduce_memory: 1\nentries:\n- {name: a, text: 3}\n", "entry 1: text is a text, got 3"),
        ("a recipe for soup\n", "It should begin with abduce_memory: 1"),
        ("abduce_memory: 1\n" + "#" * MAX_YAML_BYTES, "Export it as .jsonl"),
    ],
)
def test_a_strangers_file_is_read_strictly(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "m"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        read(file)


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        read(tmp_path / "m")
    (tmp_path / "l").write_bytes(HEAD.encode() + b'{"entry": "\xff"}\n')
    with pytest.raises(UsageError, match="l:2: the line is not UTF-8"):
        read(tmp_path / "l")
    with pytest.raises(UsageError, match="Cannot read"):
        read(tmp_path / "none")


def test_yaml_of_concepts_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("- {concept: row, kind: structure, cues: [the input has lines]}\n")
    [entry] = read(file).entries
    assert (entry.name, entry.kind, list(entry.data["cues"])) == ("row", "structure", ["the input has lines"])

"""What a write does to the tables of a SQLite store, within a transaction that is open.

entry ──changed?──► row, full-text index, counts of words, vector and code, line of history
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..serving.entries import Entry
from .base import changed, merged
from .checking import clean, dump_entry, load_entry
from .codes import codes, packed
from .embedder import other_embedder
from .in_memory import no_version
from .ranking import Tally, searched, words
from .sqlite_file import Db
from .sqlite_search import ENTRY, entry, indexed, label_of, whole

if TYPE_CHECKING:
    from .embedder import Vectors


def _store(db: Db, tally: Tally) -> None:
    changes = [(tally.n, "n"), (tally.n_words, "n_words")]
    db.executemany("UPDATE meta SET value = value + ? WHERE key = ?", changes)
    rows = [(word, n) for word, n in tally.holding.items() if n]
    db.executemany("INSERT INTO words VALUES (?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n", rows)
    fewer = [(word,) for word, n in rows if n < 0]
    db.executemany("DELETE FROM words WHERE word = ? AND n = 0", fewer)


def version(db: Db) -> int:
    """The newest version."""
    return int(db.execute("SELECT value FROM meta WHERE key = 'version'").fetchone()[0])


def write(
    db: Db,
    entries: Sequence[Entry],
    vectors: "Vectors | None",
    embedder: str,
    action: str,
    reason: str,
    after: int | None,
) -> int:
    """Put entries in. Without vectors they are left to be embedded later."""
    use(db, embedder)
    old = whole(db, [each.name for each in entries])
    new = [i for i, each in enumerate(entries) if changed(old.get(each.name), each)]
    if new and after not in (None, version(db)):
        return 0
    kept = [merged(old.get(each.name), each) for each in entries]
    counts = [(each.uses, each.wins, each.name) for each in kept]
    tally = Tally()
    _take_out(db, [kept[i].name for i in new if kept[i].name in old], tally)
    ids = _put(db, [kept[i] for i in new], tally)
    db.executemany("UPDATE entries SET uses = ?, wins = ? WHERE name = ?", counts)
    active = [(i, id) for i, id in zip(new, ids, strict=True) if kept[i].status == "active"]
    if vectors is None:
        db.executemany("INSERT INTO unembedded VALUES (?)", [(id,) for _, id in active])
    elif active:
        places = [i for i, _ in active]
        add_vectors(db, [(id, kept[i].kind, kept[i].domain) for i, id in active], vectors[places])
    _store(db, tally)
    return _log(db, {action: [kept[i] for i in new]}, reason)


def count(db: Db, outcomes: Mapping[str, bool]) -> None:
    """Count uses and wins."""
    rows = [(bool(won), clean(name)) for name, won in outcomes.items()]
    db.executemany("UPDATE entries SET uses = uses + 1, wins = wins + ? WHERE name = ?", rows)


def made(db: Db, once: str) -> int:
    """The version that a write of this name returned; 0 if there was none."""
    row = db.execute("SELECT version FROM made WHERE once = ?", (once,)).fetchone()
    return int(row[0]) if row else 0


def mark(db: Db, once: str, version: int) -> None:
    """Keep what the write of a name returns; "" is none."""
    if once:
        db.execute("INSERT INTO made VALUES (?, ?)", (once, version))


def rollback(db: Db, to: int, reason: str) -> int:
    """Make a new version equal to an old one."""
    newest = version(db)
    if not 0 <= to <= newest:
        raise no_version(to, newest)
    now, then, tally = {each.name: each for each in map(entry, db.execute(ENTRY))}, at(db, to), Tally()
    back = [merged(now.get(name), each) for name, each in then.items() if changed(now.get(name), each)]
    gone = [each for name, each in now.items() if name not in then]
    _take_out(db, [each.name for each in (*back, *gone) if each.name in now], tally)
    ids = zip(back, _put(db, back, tally), strict=True)
    db.executemany(
        "INSERT INTO unembedded VALUES (?)", [(id,) for each, id in ids if each.status == "active"]
    )
    _store(db, tally)
    return _log(db, {"rolled back": back, "removed": gone}, reason)


def forget(db: Db, names: Sequence[str]) -> int:
    """Erase entries and their history."""
    known = [name for name in dict.fromkeys(names) if db.execute(_IS_KNOWN, (name,)).fetchone()]
    tally = Tally()
    _take_out(db, known, tally)
    _store(db, tally)
    db.executemany("DELETE FROM changes WHERE name = ?", [(name,) for name in known])
    if known:  # the words of what was taken out stay in the index until it is merged
        db.execute("INSERT INTO found (found) VALUES ('optimize')")
    return len(known)


_IS_KNOWN = "SELECT 1 FROM changes WHERE name = ? LIMIT 1"


def at(db: Db, version: int) -> dict[str, Entry]:
    """The entries as they were written up to a version, by name."""
    rows = db.execute(_AT, (version,)).fetchall()
    return {name: load_entry(json.loads(said)) for name, action, said in rows if action != "removed"}


# SQLite takes the other columns from the row that has the maximum.
_AT = "SELECT name, action, entry FROM (SELECT *, max(version) FROM changes WHERE version <= ? GROUP BY name)"


def use(db: Db, embedder: str) -> None:
    """Raises UsageError if the vectors that there are were made by another embedder; "" is none."""
    [(made_by,)] = db.execute("SELECT value FROM meta WHERE key = 'embedder'").fetchall()
    if embedder and not made_by:
        db.execute("UPDATE meta SET value = ? WHERE key = 'embedder'", (embedder,))
    elif embedder and made_by != embedder:
        raise other_embedder(made_by, embedder)


def add_vectors(db: Db, rows: Sequence[tuple[int, str, str]], vectors: "Vectors") -> None:
    """Store the vectors of active entries: id, kind, domain."""
    labels: Mapping[str, int] = {label: _label(db, label) for _, *both in rows for label in both}
    exact = [(id, vector) for (id, _, _), vector in zip(rows, packed(vectors), strict=True)]
    db.executemany("INSERT INTO vectors VALUES (?, ?)", exact)
    coarse = [
        (id, labels[kind], labels[domain], code)
        for (id, kind, domain), code in zip(rows, codes(vectors), strict=True)
    ]
    db.executemany("INSERT INTO codes (id, kind, domain, code) VALUES (?, ?, ?, ?)", coarse)


def unembedded(db: Db) -> list[tuple[int, str, str, str]]:
    """Some of the entries that have no vector yet: id, kind, domain and what is searched of them."""
    rows = db.execute(_UNEMBEDDED).fetchall()
    return [(id, kind, domain, searched(Entry(name, text))) for id, kind, domain, name, text in rows]


_UNEMBEDDED = (
    "SELECT id, kind, domain, name, text FROM unembedded JOIN entries USING (id) ORDER BY id LIMIT 1000"
)


def embed(db: Db, rows: Sequence[tuple[int, str, str, str]], vectors: "Vectors", embedder: str) -> None:
    """Give entries their vectors, unless another process did, or they are gone."""
    use(db, embedder)
    left = [
        i for i, (id, *_) in enumerate(rows)
        if db.execute("DELETE FROM unembedded WHERE id = ?", (id,)).rowcount
    ]  # fmt: skip
    if left:
        add_vectors(db, [rows[i][:3] for i in left], vectors[left])


def _put(db: Db, entries: Sequence[Entry], tally: Tally) -> list[int]:
    """Make the entries' rows. Returns their ids."""
    ids = []
    for each in entries:
        evidence = [json.loads(dump_entry(each))["evidence"]] if each.evidence else [[]]
        rest = json.dumps({"data": dict(each.data), "evidence": evidence[0]}, ensure_ascii=False)
        row = (
            each.name,
            each.kind,
            each.domain,
            each.status == "active",
            each.uses,
            each.wins,
            each.text,
            rest,
        )
        id = db.execute(_INSERT, row).lastrowid
        assert id is not None
        ids.append(id)
    active = [(id, words(searched(e))) for id, e in zip(ids, entries, strict=True) if e.status == "active"]
    for _, text in active:
        tally.count(text, 1)
    db.executemany("INSERT INTO found (rowid, words) VALUES (?, ?)", [(id, indexed(t)) for id, t in active])
    return ids


_INSERT = (
    "INSERT INTO entries (name, kind, domain, active, uses, wins, text, rest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def _take_out(db: Db, names: Sequence[str], tally: Tally) -> None:
    """Delete entries' rows, and what is in the indexes of them."""
    for name in names:
        row = db.execute("SELECT id, active, text FROM entries WHERE name = ?", (name,)).fetchone()
        if row is None:
            continue
        id, active, said = row
        db.execute("DELETE FROM entries WHERE id = ?", (id,))
        if not active:
            continue
        text = words(searched(Entry(name, said)))
        tally.count(text, -1)
        gone = "INSERT INTO found (found, rowid, words) VALUES ('delete', ?, ?)"
        db.execute(gone, (id, indexed(text)))
        db.execute("INSERT INTO dropped (n) SELECT n FROM codes WHERE id = ?", (id,))
        for table in ("vectors", "codes", "unembedded"):
            db.execute(f"DELETE FROM {table} WHERE id = ?", (id,))  # noqa: S608


def _log(db: Db, changes: Mapping[str, Sequence[Entry]], reason: str) -> int:
    """Write down what was changed, as a new version if there is anything. Returns the newest version."""
    if not any(changes.values()):
        return version(db)
    db.execute("UPDATE meta SET value = value + 1 WHERE key = 'version'")
    made = version(db)
    rows: list[tuple[Any, ...]] = [
        (made, each.name, action, reason, dump_entry(each))
        for action, some in changes.items()
        for each in some
    ]
    db.executemany("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", rows)
    return made


def _label(db: Db, label: str) -> int:
    if (known := label_of(db, label)) is not None:
        return known
    made = db.execute("INSERT INTO labels (label) VALUES (?)", (label,)).lastrowid
    assert made is not None
    return made

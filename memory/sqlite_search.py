"""How the SQLite store finds: candidates from the indexes, then the exact ranking of `ranking.py` among them.

    words     the rows of the query's rarest words (at most POSTINGS), from the full-text index; the best
              CANDIDATES of them by the rarity of what they share
    vectors   the NEAREST by their codes (`codes.py`)

So a store with fewer entries than that ranks as the reference does, exactly; in a larger one common words do
not find an entry, they only rank those that are found.
"""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..serving.entries import Entry, Match
from .checking import load_entry
from .codes import Codes, unpacked
from .embedder import TEXT_ONLY, cosines, near, other_embedder
from .ranking import Corpus, Ranked, asked, best, depth, fused, searched, why, words

if TYPE_CHECKING:
    from .embedder import Embedder, Vectors

POSTINGS = 8_000
CANDIDATES = 256
NEAREST = 512


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    text: str
    k: int
    kinds: tuple[str, ...]
    domain: str


@dataclass(frozen=True)
class Row:
    """An entry as far as it is ranked."""

    id: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, read anew each time."""
        return words(searched(Entry(self.name, self.text)))


def corpus(db: sqlite3.Connection, query: Sequence[str]) -> Corpus:
    """What is known of the query's words."""
    counts = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('n', 'n_words')").fetchall())
    marks = ", ".join("?" * len(query))
    found = db.execute(f"SELECT word, n FROM words WHERE word IN ({marks})", query).fetchall()  # noqa: S608
    return Corpus(counts["n"], counts["n_words"], dict(found))


def search(
    db: sqlite3.Connection, query: Query, embedder: "Embedder | None", vector: "Vectors | None", kept: Codes
) -> tuple[Match, ...]:
    """The best entries. `kept` are the codes as far as they were read before."""
    asked_for = asked(query.text)
    [(made_by,)] = db.execute("SELECT value FROM meta WHERE key = 'embedder'").fetchall()
    if embedder is not None and made_by not in ("", embedder.name):
        raise other_embedder(made_by, embedder.name)
    known = corpus(db, asked_for)
    rarity = known.rarity(asked_for)
    rows = {row.name: row for row in _by_words(db, known, rarity, query)}
    scores = {name: known.bm25(rarity, row.words) for name, row in rows.items()}
    similar: dict[str, float] = {}
    if vector is None:
        found: Ranked = best(scores, query.k)
    else:
        by_id = _by_vector(db, vector, query, kept)
        nearest = sorted(by_id, key=lambda id: -by_id[id])[: depth(query.k) + _TIES]
        rows |= {row.name: row for row in _rows(db, list({*nearest} - {row.id for row in rows.values()}))}
        similar = {row.name: by_id[row.id] for row in rows.values() if row.id in by_id}
        found = fused(best(scores, depth(query.k)), best(similar, depth(query.k)), query.k)
        similar |= _cosines(db, vector, [rows[name] for name, _ in found if name not in similar])
    entries = whole(db, [name for name, _ in found])
    told = {n: near(embedder, similar.get(n, 0.0)) if vector is not None else TEXT_ONLY for n, _ in found}
    return tuple(
        Match(entries[name], score, why(rarity, rows[name].words, told[name])) for name, score in found
    )


_TIES = 64  # more of the nearest, of which some have the same cosine: among these the name decides


def _by_words(db: sqlite3.Connection, known: Corpus, rarity: Mapping[str, float], query: Query) -> list[Row]:
    scores: dict[int, float] = {}
    rarest = sorted((word for word in rarity if word in known.holding), key=lambda w: (known.holding[w], w))
    left, common = POSTINGS, []
    for word in rarest:
        if known.holding[word] > left:
            common.append(word)
            continue
        left -= known.holding[word]
        _count(db, _quoted(word), rarity[word], scores, POSTINGS)
    if len(common) > 1 and len(scores) < CANDIDATES:
        pair = common[:2]
        _count(db, " AND ".join(map(_quoted, pair)), sum(map(rarity.__getitem__, pair)), scores, POSTINGS)
    if common and len(scores) < CANDIDATES:
        _count(db, _quoted(common[0]), rarity[common[0]], scores, POSTINGS)
    ids = sorted(scores, key=scores.__getitem__, reverse=True)
    found: list[Row] = []
    for first in range(0, len(ids), CANDIDATES):
        found += _rows(db, ids[first : first + CANDIDATES], query)
        if len(found) >= min(CANDIDATES, len(ids)):
            break
    return found


def _count(db: sqlite3.Connection, match: str, worth: float, scores: dict[int, float], most: int) -> None:
    """Add what a word is worth to the newest entries that hold it."""
    ids = db.execute("SELECT rowid FROM found WHERE found MATCH ? ORDER BY rowid DESC LIMIT ?", (match, most))
    for (id,) in ids.fetchall():
        scores[id] = scores.get(id, 0.0) + worth


def indexed(text: Sequence[str]) -> str:
    """Words as the full-text index is given them: it knows letters of ASCII only."""
    return " ".join(map(_spelled, text))


def _quoted(word: str) -> str:
    return f'"{_spelled(word)}"'


def _spelled(word: str) -> str:
    return word if word.isascii() else f"__{word.encode().hex()}"


def _by_vector(db: sqlite3.Connection, vector: "Vectors", query: Query, kept: Codes) -> Mapping[int, float]:
    """The cosine of each of the nearest, by id."""
    refresh(db, kept)
    kinds = [label for kind in query.kinds if (label := label_of(db, kind)) is not None]
    domain = label_of(db, query.domain) if query.domain else None
    if (query.kinds and not kinds) or (query.domain and domain is None):
        return {}
    ids = kept.nearest(vector, NEAREST, kinds=kinds or None, domain=domain)
    return _exact(db, vector, ids)


def _exact(db: sqlite3.Connection, vector: "Vectors", ids: Sequence[int]) -> dict[int, float]:
    rows = db.execute(
        f"SELECT id, vector FROM vectors WHERE id IN ({', '.join(map(str, ids))})"  # noqa: S608
    ).fetchall()
    exact = cosines(unpacked([row[1] for row in rows]), vector) if rows else []
    return dict(zip((row[0] for row in rows), exact, strict=True))


def _cosines(db: sqlite3.Connection, vector: "Vectors", rows: Sequence[Row]) -> dict[str, float]:
    by_id = _exact(db, vector, [row.id for row in rows])
    return {row.name: by_id[row.id] for row in rows if row.id in by_id}


def refresh(db: sqlite3.Connection, kept: Codes) -> None:
    """Read the codes that were added since, by whomever, and forget those that were dropped."""
    if not kept.last_n:
        [(kept.last_drop,)] = db.execute("SELECT coalesce(max(seq), 0) FROM dropped").fetchall()
    cursor = db.execute("SELECT n, id, kind, domain, code FROM codes WHERE n > ? ORDER BY n", (kept.last_n,))
    while rows := cursor.fetchmany(50_000):
        kept.add(rows)
    gone = db.execute("SELECT seq, n FROM dropped WHERE seq > ? ORDER BY seq", (kept.last_drop,)).fetchall()
    if gone:
        kept.drop([n for _, n in gone])
        kept.last_drop = gone[-1][0]


def label_of(db: sqlite3.Connection, label: str) -> int | None:
    """The number of a kind or a domain."""
    found = db.execute("SELECT id FROM labels WHERE label = ?", (label,)).fetchone()
    return None if found is None else int(found[0])


def _rows(db: sqlite3.Connection, ids: Sequence[int], query: Query | None = None) -> list[Row]:
    found = db.execute(
        f"SELECT id, name, kind, domain, text FROM entries WHERE id IN ({', '.join(map(str, ids))})"  # noqa: S608
    ).fetchall()
    if query is not None:
        found = [
            row
            for row in found
            if (not query.kinds or row[2] in query.kinds) and query.domain in ("", row[3])
        ]
    return [Row(id, name, text) for id, name, _, _, text in found]


def whole(db: sqlite3.Connection, names: Sequence[str]) -> dict[str, Entry]:
    """Entries by name, those that there are."""
    found: dict[str, Entry] = {}
    for first in range(0, len(names), 500):
        part = names[first : first + 500]
        marks = ", ".join("?" * len(part))
        rows = db.execute(f"{ENTRY} WHERE name IN ({marks})", part)
        found |= {row[0]: entry(row) for row in rows}
    return found


ENTRY = "SELECT name, kind, domain, active, uses, wins, text, rest FROM entries"


def entry(row: Sequence[Any]) -> Entry:
    """The entry of a row of ENTRY."""
    name, kind, domain, active, uses, wins, text, rest = row
    status = "active" if active else "retired"
    said = {"name": name, "kind": kind, "domain": domain, "status": status, "uses": uses, "wins": wins}
    return load_entry({**said, "text": text, **json.loads(rest)})

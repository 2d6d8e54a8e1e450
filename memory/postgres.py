"""A store in a PostgreSQL database, shared by all machines that reach it; vectors by pgvector, if there.

    abduce_memory           version, embedder, what BM25 has to know     …_words     how many hold a word
    abduce_memory_entries   what there is now, with its words            …_vectors   of the active ones
    abduce_memory_changes   every version of every entry

Candidates come from the server: by words those that share most of the query's rarest ones (GIN index), by
vectors the nearest, exactly; in a large memory, where all kinds are looked for, those that an index finds
(`postgres_near.py`). They are ranked here, as `ranking.py` says, by exact scores. There is one memory to a
schema: another one is chosen by `?options=-csearch_path%3DNAME` at the end of the URL.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..serving.entries import Entry, Match
from ..serving.errors import EngineError
from ..serving.postgres_url import shown
from .base import Change, changed, merged
from .checking import check_action, checked, clean, dump_entry, load_entry
from .codes import packed, unpacked
from .embedder import TEXT_ONLY, near, other_embedder
from .in_memory import no_version
from .postgres_link import Link
from .postgres_near import make_index, nearest, spelled
from .ranking import Corpus, Ranked, Tally, asked, best, depth, fused, searched, why, words

if TYPE_CHECKING:
    from .embedder import Embedder, Vectors
    from .postgres_link import Server

POSTINGS = 8_000
CANDIDATES = 256
_TIES = 64
NO_PGVECTOR = "by words alone, the server has no pgvector"


class PostgresStore:
    """Tables are made on first use. Without an embedder, or on a server without pgvector, it finds by words
    alone."""

    def __init__(self, url: str, embedder: "Embedder | None" = None) -> None:
        self._link = Link(url)
        self._embedder = embedder

    def __repr__(self) -> str:
        return f"PostgresStore({shown(self._link.url)!r})"

    async def version(self) -> int:
        """The newest version."""
        return await asyncio.wrap_future(self._link.read(_version))

    async def write(
        self,
        entries: Sequence[Entry],
        *,
        action: str = "written",
        reason: str = "",
        after: int | None = None,
        credit: Mapping[str, bool] | None = None,
        once: str = "",
    ) -> int:
        """Put the entries in."""
        check_action(action)
        kept, reason = checked(entries), clean(reason)

        def change(server: "Server") -> int:
            made = server.execute("SELECT version FROM abduce_memory_made WHERE once = %s", [once]).fetchone()
            if made is not None:
                return int(made[0])
            old = _whole(server, [each.name for each in kept])
            whole = [merged(old.get(each.name), each) for each in kept]
            new = [each for each in whole if changed(old.get(each.name), each)]
            if new and after not in (None, _version(server)):
                return 0
            _replace(server, [old[e.name] for e in new if e.name in old], new)
            counts = [(each.uses, each.wins, each.name) for each in whole]
            with server.cursor() as cursor:
                cursor.executemany(
                    "UPDATE abduce_memory_entries SET uses = %s, wins = %s WHERE name = %s", counts
                )
            version = _log(server, {action: new}, reason)
            _count(server, credit or {})
            if once:
                server.execute("INSERT INTO abduce_memory_made VALUES (%s, %s)", [once, version])
            return version

        made = await asyncio.wrap_future(self._link.write(change))
        if kept:
            with suppress(EngineError):  # of the embedder: what is written is written, and embedded later
                await self._catch_up()
        return made

    async def get(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """The entries of these names."""
        kept = [clean(name) for name in names]
        found = await asyncio.wrap_future(self._link.read(lambda server: _whole(server, kept)))
        return tuple(found[name] for name in kept if name in found)

    async def search(
        self, query: str, k: int, *, kinds: Sequence[str] = (), domain: str = ""
    ) -> tuple[Match, ...]:
        """By words, and by vectors if there are any; then both rankings are fused."""
        query = clean(query)
        await self._catch_up()
        vector = (await self._embedder.embed([query]))[0] if self._embedder and self._embeds else None
        able, values = _able(kinds, domain)

        def look(server: "Server") -> tuple[Match, ...]:
            return self._search(server, query, k, vector, able, values)

        return await asyncio.wrap_future(self._link.read(look))

    async def everything(self, *, kinds: Sequence[str] = (), at: int | None = None) -> tuple[Entry, ...]:
        """All entries, by name."""

        def look(server: "Server") -> tuple[Entry, ...]:
            rows = server.execute(f"{_ENTRY} ORDER BY name") if at is None else ()
            found = list(map(_entry, rows)) if at is None else list(_at(server, at).values())
            return tuple(each for each in found if not kinds or each.kind in kinds)

        return await asyncio.wrap_future(self._link.read(look))

    async def credit(self, outcomes: Mapping[str, bool]) -> None:
        """Count uses and wins."""
        if outcomes:
            await asyncio.wrap_future(self._link.write(lambda server: _count(server, outcomes)))

    async def history(self, name: str = "") -> tuple[Change, ...]:
        """What happened, oldest first."""

        def look(server: "Server") -> tuple[Change, ...]:
            rows = server.execute(_CHANGES, {"name": clean(name)}).fetchall()
            return tuple(Change(v, n, a, r, load_entry(json.loads(said))) for v, n, a, r, said in rows)

        return await asyncio.wrap_future(self._link.read(look))

    async def rollback(self, version: int, *, reason: str = "") -> int:
        """Make a new version equal to an old one."""
        kept = clean(reason)

        def change(server: "Server") -> int:
            newest = _version(server)
            if not 0 <= version <= newest:
                raise no_version(version, newest)
            now, then = {e.name: e for e in map(_entry, server.execute(_ENTRY))}, _at(server, version)
            back = [merged(now.get(n), e) for n, e in then.items() if changed(now.get(n), e)]
            gone = [each for name, each in now.items() if name not in then]
            _replace(server, [now[e.name] for e in (*back, *gone) if e.name in now], back)
            return _log(server, {"rolled back": back, "removed": gone}, kept)

        return await asyncio.wrap_future(self._link.write(change))

    async def forget(self, names: Sequence[str]) -> int:
        """Erase entries and their history. What the server keeps of deleted rows is overwritten by and by."""
        kept = [clean(name) for name in names]

        def change(server: "Server") -> int:
            _replace(server, list(_whole(server, kept).values()), [])
            erased = server.execute(
                "DELETE FROM abduce_memory_changes WHERE name = ANY(%s) RETURNING name", [kept]
            )
            return len({name for (name,) in erased})

        n = await asyncio.wrap_future(self._link.write(change))
        if n:
            await asyncio.wrap_future(self._link.vacuum())
        return n

    async def close(self) -> None:
        """Let go of the connection."""
        await asyncio.to_thread(self._link.close)

    # ------------------------------------------------------------ search

    @property
    def _embeds(self) -> bool:
        return self._embedder is not None and self._link.vectors not in ("", "-")

    def _search(
        self,
        server: "Server",
        query: str,
        k: int,
        vector: "Vectors | None",
        able: str,
        values: Mapping[str, Any],
    ) -> tuple[Match, ...]:
        known, rarity = _corpus(server, asked(query))
        texts = dict(_by_words(server, known, rarity, able, values))
        scores = {name: known.bm25(rarity, _words(name, text)) for name, text in texts.items()}
        similar: dict[str, float] = {}
        if vector is None:
            found: Ranked = best(scores, k)
        else:
            n = depth(k) + _TIES
            everywhere = not (values["kinds"] or values["domain"])
            rows = nearest(server, self._link.vectors, vector, n) if everywhere else None
            if rows is None:
                rows = self._nearest(server, vector, n, f"{able} AND active", values)
            texts |= {name: text for name, text, _ in rows}
            similar = {name: round(near_by, 4) for name, _, near_by in rows}
            found = fused(best(scores, depth(k)), best(similar, depth(k)), k)
            missing = {"names": [name for name, _ in found if name not in similar]}
            rows = self._nearest(server, vector, k, "name = ANY(%(names)s)", missing)
            similar |= {name: round(near_by, 4) for name, _, near_by in rows}
        entries = _whole(server, [name for name, _ in found])
        alone = NO_PGVECTOR if self._embedder is not None else TEXT_ONLY
        told = {
            n: near(self._embedder, similar.get(n, 0.0)) if vector is not None else alone for n, _ in found
        }
        return tuple(
            Match(entries[name], score, why(rarity, _words(name, texts[name]), told[name]))
            for name, score in found
        )

    def _nearest(
        self, server: "Server", vector: "Vectors", n: int, able: str, values: Mapping[str, Any]
    ) -> list[tuple[str, str, float]]:
        schema = self._link.vectors
        rows = server.execute(
            f"SELECT name, text, -(vector OPERATOR({schema}.<#>) %(vector)s::{schema}.vector) "  # noqa: S608
            f"FROM abduce_memory_vectors JOIN abduce_memory_entries USING (id) WHERE {able} "
            f"ORDER BY vector OPERATOR({schema}.<#>) %(vector)s::{schema}.vector LIMIT %(n)s",
            {**values, "vector": spelled(vector), "n": n},
        )
        return [(name, text, float(near_by)) for name, text, near_by in rows]

    async def _catch_up(self) -> None:
        """Embed what has no vector yet, whoever wrote it."""
        if self._embedder is None:
            return
        await asyncio.wrap_future(self._link.read(self._right_embedder))
        while self._embeds:
            rows = await asyncio.wrap_future(
                self._link.read(lambda server: server.execute(_UNEMBEDDED).fetchall())
            )
            if not rows:
                return
            vectors = await self._embedder.embed([searched(Entry(name, text)) for _, name, text in rows])
            said = [(id, spelled(row)) for (id, *_), row in zip(rows, unpacked(packed(vectors)), strict=True)]
            await asyncio.wrap_future(self._link.write(lambda server, said=said: self._store(server, said)))  # type: ignore[misc]

    def _right_embedder(self, server: "Server") -> None:
        [(made_by,)] = server.execute("SELECT embedder FROM abduce_memory").fetchall()
        if self._embedder is not None and made_by not in ("", self._embedder.name):
            raise other_embedder(made_by, self._embedder.name)

    def _store(self, server: "Server", vectors: Sequence[tuple[int, str]]) -> None:
        self._right_embedder(server)
        assert self._embedder is not None
        server.execute("UPDATE abduce_memory SET embedder = %s", [self._embedder.name])
        marked = {id for (id,) in server.execute(_MARK, [[id for id, _ in vectors]])}
        with server.cursor() as cursor:
            rows = [row for row in vectors if row[0] in marked]
            cursor.executemany("INSERT INTO abduce_memory_vectors (id, vector) VALUES (%s, %s)", rows)
        if rows:
            make_index(server, self._link.vectors, rows[0][1].count(",") + 1)


def _able(kinds: Sequence[str], domain: str) -> tuple[str, dict[str, Any]]:
    """What entries may be found, as a condition and its values."""
    conditions = [
        "true",
        *(["kind = ANY(%(kinds)s)"] if kinds else []),
        *(["domain = %(domain)s"] if domain else []),
    ]
    return " AND ".join(conditions), {"kinds": list(kinds), "domain": domain}


def _corpus(server: "Server", query: Sequence[str]) -> tuple[Corpus, dict[str, float]]:
    [(n, n_words)] = server.execute("SELECT n, n_words FROM abduce_memory").fetchall()
    found = server.execute("SELECT word, n FROM abduce_memory_words WHERE word = ANY(%s)", [list(query)])
    known = Corpus(n, n_words, dict(found.fetchall()))
    return known, known.rarity(query)


def _by_words(
    server: "Server", known: Corpus, rarity: Mapping[str, float], able: str, values: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Name and text of those that share most of the rarest words; of common words only the rarest is asked
    for, if there is no other."""
    rare: list[str] = []
    left = POSTINGS
    for word in sorted(
        (word for word in rarity if word in known.holding), key=lambda w: (known.holding[w], w)
    ):
        if known.holding[word] > left and rare:
            break
        left -= known.holding[word]
        rare.append(word)
    if not rare:
        return []
    worth = [rarity[word] for word in rare]
    rows = server.execute(_BY_WORDS.format(able), {**values, "rare": rare, "worth": worth, "n": CANDIDATES})
    return [(name, text) for name, text in rows]


_BY_WORDS = """
SELECT name, text FROM abduce_memory_entries
WHERE words && %(rare)s::text[] AND {}
ORDER BY (
    SELECT sum(worth) FROM unnest(%(rare)s::text[], %(worth)s::float8[]) AS asked (word, worth)
    WHERE word = ANY(words)
) DESC, id DESC
LIMIT %(n)s
"""


def _words(name: str, text: str) -> list[str]:
    return words(searched(Entry(name, text)))


# ---------------------------------------------------------------- writing


def _count(server: "Server", outcomes: Mapping[str, bool]) -> None:
    rows = [(int(bool(won)), clean(name)) for name, won in outcomes.items()]
    with server.cursor() as cursor:
        cursor.executemany(_CREDIT, rows)


def _version(server: "Server") -> int:
    [(found,)] = server.execute("SELECT version FROM abduce_memory").fetchall()
    return int(found)


def _replace(server: "Server", old: Sequence[Entry], new: Sequence[Entry]) -> None:
    """Take entries out and put others in, and count their words."""
    tally = Tally()
    server.execute("DELETE FROM abduce_memory_entries WHERE name = ANY(%s)", [[each.name for each in old]])
    rows = []
    for sign, entries in ((-1, old), (1, new)):
        for each in entries:
            held = _words(each.name, each.text) if each.status == "active" else []
            if each.status == "active":
                tally.count(held, sign)
            if sign > 0:
                said = json.loads(dump_entry(each))
                rest = json.dumps({"data": said["data"], "evidence": said["evidence"]}, ensure_ascii=False)
                row = (each.name, each.kind, each.domain, each.status == "active", each.uses, each.wins)
                rows.append((*row, each.text, rest, sorted(set(held)), False))
    with server.cursor() as cursor:
        cursor.executemany(_INSERT, rows)
    server.execute("UPDATE abduce_memory SET n = n + %s, n_words = n_words + %s", [tally.n, tally.n_words])
    counts = sorted((word, n) for word, n in tally.holding.items() if n)
    if counts:
        spelled = [list(column) for column in zip(*counts, strict=True)]
        server.execute(_COUNT, spelled)
        server.execute("DELETE FROM abduce_memory_words WHERE n = 0 AND word = ANY(%s)", [spelled[0]])


def _log(server: "Server", changes: Mapping[str, Sequence[Entry]], reason: str) -> int:
    if not any(changes.values()):
        return _version(server)
    server.execute("UPDATE abduce_memory SET version = version + 1")
    made = _version(server)
    rows = [(made, e.name, action, reason, dump_entry(e)) for action, some in changes.items() for e in some]
    with server.cursor() as cursor:
        cursor.executemany("INSERT INTO abduce_memory_changes VALUES (%s, %s, %s, %s, %s)", rows)
    return made


def _at(server: "Server", version: int) -> dict[str, Entry]:
    rows = server.execute(_AT, [version]).fetchall()
    return {name: load_entry(json.loads(said)) for name, action, said in rows if action != "removed"}


def _whole(server: "Server", names: Sequence[str]) -> dict[str, Entry]:
    rows = server.execute(f"{_ENTRY} WHERE name = ANY(%s)", [list(names)])
    return {row[0]: _entry(row) for row in rows}


def _entry(row: Sequence[Any]) -> Entry:
    name, kind, domain, active, uses, wins, text, rest = row
    said = {"name": name, "kind": kind, "domain": domain, "uses": uses, "wins": wins, "text": text}
    return load_entry({**said, "status": "active" if active else "retired", **json.loads(rest)})


_ENTRY = "SELECT name, kind, domain, active, uses, wins, text, rest FROM abduce_memory_entries"
_INSERT = (
    "INSERT INTO abduce_memory_entries (name, kind, domain, active, uses, wins, text, rest, words, embedded) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
)
_COUNT = """
INSERT INTO abduce_memory_words AS w SELECT * FROM unnest(%s::text[], %s::bigint[])
ON CONFLICT (word) DO UPDATE SET n = w.n + excluded.n
"""
_CREDIT = "UPDATE abduce_memory_entries SET uses = uses + 1, wins = wins + %s WHERE name = %s"
_CHANGES = """
SELECT version, name, action, reason, entry FROM abduce_memory_changes
WHERE %(name)s = '' OR name = %(name)s ORDER BY version, name
"""
_AT = """
SELECT DISTINCT ON (name) name, action, entry FROM abduce_memory_changes
WHERE version <= %s ORDER BY name, version DESC
"""
_MARK = "UPDATE abduce_memory_entries SET embedded = true WHERE id = ANY(%s) AND NOT embedded RETURNING id"
_UNEMBEDDED = (
    "SELECT id, name, text FROM abduce_memory_entries WHERE active AND NOT embedded ORDER BY id LIMIT 1000"
)

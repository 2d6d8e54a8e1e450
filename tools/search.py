"""Document search: the passages of a folder or of JSON lines that fit a query best, by BM25.

Each passage is a paragraph or a few, up to `passage_chars`; the index is built when it is first asked, and
kept in memory. Words are compared in lower case, without the most frequent English ones unless all are asked
for.

Source: Okapi BM25 as in bm25s, arXiv 2407.03618 (k1 = 1.5, b = 0.75, the variant of Lucene).
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..serving.errors import UsageError
from ..serving.flow import ToolResult
from ..serving.tool_calls import inert
from .base import Limits, Tool, tool

SUFFIXES = (".txt", ".md", ".rst", ".json", ".jsonl")
MOST_PASSAGES = 1000
_MAX_FILE_BYTES = 50 << 20
_WORDS: dict[str, dict[str, Any]] = {
    "english": {"stopwords": "en"},
    "all": {"stopwords": [], "token_pattern": "[a-z0-9]+"},
}


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, and where it stands. `id` is the document's own or its place, and the number of
    the piece where that is not the first."""

    source: str
    text: str
    id: str = ""


@dataclass(frozen=True)
class Search:
    """The tool `search` over `folder` (its text files, with those below), `file` (JSON lines) or `rows` of
    JSON.

    A line or row of JSON is one document: its `text`, or the first of `contents`, `content`, `body`,
    `passage`, and its `title` or `id`. `passages` are found for a query, or as many as the call asks for by
    `k`. `words` that count: `english`, two letters and more without the most frequent, or `all` runs of
    letters a to z and digits. With `titles` those of a document's title count like those of its text.
    """

    folder: str | None = None
    file: str | None = None
    rows: tuple[Mapping[str, Any], ...] = ()
    passages: int = 3
    passage_chars: int = 800
    about: str = ""  # what the documents are, for the model
    name: str = "search"
    words: Literal["english", "all"] = "english"
    titles: bool = False
    k1: float = 1.5  # with b: bm25s's own
    b: float = 0.75
    _index: "_Index" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if [self.folder is None, self.file is None, not self.rows].count(False) != 1:
            raise UsageError("The tool search needs a folder, a file or rows: {name: search, folder: docs}.")
        if not 1 <= self.passages <= MOST_PASSAGES or self.passage_chars < 50:
            raise UsageError(f"passages must be from 1 to {MOST_PASSAGES}, and passage_chars at least 50.")
        if self.words not in _WORDS or self.k1 < 0 or not 0 <= self.b <= 1:
            raise UsageError("words must be english or all, k1 at least 0, and b from 0 to 1.")
        if not self.rows:
            where = Path(self.folder or self.file or "").expanduser()
            if not (where.is_dir() if self.folder is not None else where.is_file()):
                kind = "folder" if self.folder is not None else "file"
                raise UsageError(
                    f"There is no {kind} {str(where)!r} to search. Write the path of one that exists."
                )
        object.__setattr__(self, "_index", _Index(self))

    def tools(self) -> tuple[Tool, ...]:
        """The one tool."""
        chars = MOST_PASSAGES * (self.passage_chars + 200)  # for programs; what a model sees, its agent cuts
        limits = Limits(seconds=60, output_chars=chars)
        return (_named(tool(effect="pure", limits=limits)(self.search), self.name, self.about),)

    def search(self, query: str, k: int | None = None) -> ToolResult:
        """Search the documents and return the passages that fit the query best, with their sources."""
        wanted = self.passages if k is None else max(1, min(k, MOST_PASSAGES))
        found = self._index.best(query, wanted)
        if not found:
            return ToolResult("Nothing was found. Try other words.", ok=True, value=[])
        text = "\n\n".join(f"[{passage.source}]\n{inert(passage.text)}" for passage, _ in found)
        rows = [
            {"source": p.source, "text": inert(p.text), "id": p.id, "score": round(score, 6)}
            for p, score in found
        ]
        return ToolResult(text, value=rows)


class _Index:
    """BM25 over passages, built once, by whoever asks first."""

    def __init__(self, settings: Search) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._made: tuple[Any, list[Passage]] | None = None

    def best(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """The best passages that share a word with the query, with their scores, best first; ties in the
        order of the files."""
        import bm25s

        with self._lock:
            ranking, passages = self._made = self._made or self._build()
        how = _WORDS[self._settings.words]
        [words] = bm25s.tokenize([query], return_ids=False, show_progress=False, **how)
        known = [word for word in words if word in ranking.vocab_dict] if ranking is not None else []
        if not known:
            return []
        scores = ranking.get_scores(known)
        order = sorted(range(len(passages)), key=lambda i: (-float(scores[i]), i))[:k]
        return [(passages[i], float(scores[i])) for i in order if scores[i] > 0]

    def _build(self) -> tuple[Any, list[Passage]]:
        import bm25s

        of = self._settings
        where = Path(of.folder or of.file or "").expanduser()
        passages = list(read(where, of.passage_chars) if not of.rows else _of_rows(of.rows, of.passage_chars))
        texts = [f"{p.source}. {p.text}" if of.titles else p.text for p in passages]
        words = bm25s.tokenize(texts, show_progress=False, **_WORDS[of.words])
        if not words.vocab:
            return None, passages
        ranking = bm25s.BM25(k1=of.k1, b=of.b)
        ranking.index(words, show_progress=False)
        return ranking, passages


def read(where: Path, passage_chars: int) -> Iterator[Passage]:
    """The passages of a folder's text files, or of one file."""
    files = sorted(p for p in where.rglob("*") if p.suffix in SUFFIXES) if where.is_dir() else [where]
    root = where.resolve() if where.is_dir() else where.resolve().parent
    for path in files:
        # A link out of the folder is not followed: what may be read is what was named.
        if not path.is_file() or not path.resolve().is_relative_to(root):
            continue
        if path.stat().st_size > _MAX_FILE_BYTES and path.suffix != ".jsonl":
            continue
        source = str(path.relative_to(where)) if where.is_dir() else path.name
        for title, text, id in _documents(path, source):
            yield from _passages(title, text, id, passage_chars)


def _of_rows(rows: Iterable[Any], passage_chars: int) -> Iterator[Passage]:
    for title, text, id in _rows(rows, "row"):
        yield from _passages(title, text, id, passage_chars)


def _passages(title: str, text: str, id: str, most: int) -> Iterator[Passage]:
    for n, piece in enumerate(pieces(text, most), 1):
        yield Passage(title, piece, id if n == 1 else f"{id}#{n}")


def _documents(path: Path, source: str) -> Iterator[tuple[str, str, str]]:
    """Title, text and id of each."""
    if path.suffix not in (".jsonl", ".json"):
        yield source, path.read_text(encoding="utf-8", errors="replace"), source
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        rows = enumerate(lines, 1) if path.suffix == ".jsonl" else [(1, lines.read())]
        for number, line in rows:
            if not line.strip():
                continue
            place = f"{source}:{number}"
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                told = line
            yield from _rows(told, place) if isinstance(told, list) else [_row(told, place)]


def _rows(rows: Iterable[Any], place: str) -> Iterator[tuple[str, str, str]]:
    return (_row(row, f"{place}:{n}") for n, row in enumerate(rows, 1))


def _row(row: Any, place: str) -> tuple[str, str, str]:
    own = str(row["id"]) if isinstance(row, dict) and "id" in row else place
    return *_document(row, place), own


def _document(row: Any, source: str) -> tuple[str, str]:
    if not isinstance(row, dict):
        return source, row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)
    keys = ("text", "contents", "content", "body", "passage")
    text = next((row[key] for key in keys if isinstance(row.get(key), str)), None)
    title = next((str(row[key]) for key in ("title", "id", "name") if row.get(key)), source)
    return title, json.dumps(row, ensure_ascii=False) if text is None else text


def pieces(text: str, most: int) -> Iterator[str]:
    """A text in pieces of at most `most` characters, cut between paragraphs, else lines, else words.

    >>> list(pieces("One.\\n\\nTwo.\\n\\nThree is longer.", 16))
    ['One.\\n\\nTwo.', 'Three is longer.']
    """
    kept = ""
    for part in _split(text, most, ("\n\n", "\n", " ")):
        if kept and len(kept) + 2 + len(part) > most:
            yield kept
            kept = part
        else:
            kept = f"{kept}\n\n{part}" if kept else part
    if kept:
        yield kept


def _split(text: str, most: int, marks: tuple[str, ...]) -> Iterator[str]:
    text = text.strip()
    if len(text) <= most:
        if text:
            yield text
    elif not marks:
        yield from (text[i : i + most] for i in range(0, len(text), most))
    else:
        parts = text.split(marks[0])
        if marks[0] == " ":  # words go back into lines
            yield from _filled(parts, most)
        else:
            for part in parts:
                yield from _split(part, most, marks[1:])


def _filled(words: list[str], most: int) -> Iterator[str]:
    line = ""
    for word in words:
        for piece in _split(word, most, ()):
            if line and len(line) + 1 + len(piece) > most:
                yield line
                line = piece
            else:
                line = f"{line} {piece}" if line else piece
    if line:
        yield line


def _named(made: Tool, name: str, about: str) -> Tool:
    if not name.isidentifier():
        raise UsageError(f"The name of a tool is one word such as search_docs, not {name!r}.")
    told = f"{made.description} The documents: {about}" if about else made.description
    return replace(made, name=name, description=told)

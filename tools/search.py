"""Document search: the passages of a folder or of JSON lines that fit a query best, by BM25.

Each passage is a paragraph or a few, up to `passage_chars`; the index is built when it is first asked, and
kept in memory. Words are compared in lower case, without the most frequent English ones.

Source: Okapi BM25 as in bm25s, arXiv 2407.03618 (k1 = 1.5, b = 0.75, the variant of Lucene).
"""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..serving.errors import UsageError
from ..serving.flow import ToolResult
from ..serving.tool_calls import inert
from .base import Limits, Tool, tool

SUFFIXES = (".txt", ".md", ".rst", ".json", ".jsonl")
_MAX_FILE_BYTES = 50 << 20


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, and where it stands."""

    source: str
    text: str


@dataclass(frozen=True)
class Search:
    """The tool `search` over `folder` (its text files, with those below) or `file` (JSON lines).

    A line of JSON is one document: its `text`, or the first of `contents`, `content`, `body`, `passage`, and
    its `title` or `id`. `passages` are found for a query.
    """

    folder: str | None = None
    file: str | None = None
    passages: int = 3
    passage_chars: int = 800
    about: str = ""  # what the documents are, for the model
    name: str = "search"
    _index: "_Index" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.file is None):
            raise UsageError("The tool search needs a folder or a file: {name: search, folder: docs}.")
        if not 1 <= self.passages <= 50 or self.passage_chars < 50:
            raise UsageError("passages must be from 1 to 50, and passage_chars at least 50.")
        where = Path(self.folder or self.file or "").expanduser()
        if not (where.is_dir() if self.folder is not None else where.is_file()):
            kind = "folder" if self.folder is not None else "file"
            raise UsageError(
                f"There is no {kind} {str(where)!r} to search. Write the path of one that exists."
            )
        object.__setattr__(self, "_index", _Index(where, self.passage_chars))

    def tools(self) -> tuple[Tool, ...]:
        """The one tool."""
        return (_named(tool(effect="pure", limits=Limits(seconds=60))(self.search), self.name, self.about),)

    def search(self, query: str) -> ToolResult:
        """Search the documents and return the passages that fit the query best, with their sources."""
        found = self._index.best(query, self.passages)
        if not found:
            return ToolResult("Nothing was found. Try other words.", ok=True, value=[])
        text = "\n\n".join(f"[{passage.source}]\n{inert(passage.text)}" for passage in found)
        return ToolResult(text, value=[{"source": p.source, "text": inert(p.text)} for p in found])


class _Index:
    """BM25 over passages, built once, by whoever asks first."""

    def __init__(self, where: Path, passage_chars: int) -> None:
        self._where = where
        self._chars = passage_chars
        self._lock = threading.Lock()
        self._made: tuple[Any, list[Passage]] | None = None

    def best(self, query: str, k: int) -> list[Passage]:
        """The best passages that share a word with the query, best first; ties in the order of the files."""
        import bm25s

        with self._lock:
            ranking, passages = self._made = self._made or self._build()
        [words] = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)
        known = [word for word in words if word in ranking.vocab_dict] if ranking is not None else []
        if not known:
            return []
        scores = ranking.get_scores(known)
        order = sorted(range(len(passages)), key=lambda i: (-float(scores[i]), i))[:k]
        return [passages[i] for i in order if scores[i] > 0]

    def _build(self) -> tuple[Any, list[Passage]]:
        import bm25s

        passages = list(read(self._where, self._chars))
        words = bm25s.tokenize([p.text for p in passages], stopwords="en", show_progress=False)
        if not words.vocab:
            return None, passages
        ranking = bm25s.BM25()
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
        for title, text in _documents(path, source):
            for piece in pieces(text, passage_chars):
                yield Passage(title, piece)


def _documents(path: Path, source: str) -> Iterator[tuple[str, str]]:
    if path.suffix not in (".jsonl", ".json"):
        yield source, path.read_text(encoding="utf-8", errors="replace")
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        rows = enumerate(lines, 1) if path.suffix == ".jsonl" else [(1, lines.read())]
        for number, line in rows:
            if not line.strip():
                continue
            try:
                told = json.loads(line)
            except (ValueError, RecursionError):
                told = line
            for row in told if isinstance(told, list) else [told]:
                yield _document(row, f"{source}:{number}")


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

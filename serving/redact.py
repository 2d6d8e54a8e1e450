"""Secrets stay out of whatever is written or shown: `[secret]` stands in their place.

A value is known as a secret once it is registered: what `settings.secret` reads, variables of the environment
that are named like keys, and what an engine is given as `api_key` or in headers. Every sink (trace and run
files, screen, pages, spans, logs, error messages) passes what it writes through one of these:

| function   | for                       | replaces                                                      |
|------------|---------------------------|---------------------------------------------------------------|
| `known`    | text of models and tools  | what is registered                                            |
| `line`     | the same in JSON          | that, and the token ids of a text that held a secret          |
| `text`     | messages and logs         | what is registered, and what looks like a key (`_SHAPES`)     |
| `settings` | what a run is made from   | as `text`, and values named like keys                         |

Text of models and tools is not searched for what looks like a key: `sk-…` in an answer is part of the answer.
A secret cut in two, or told in another encoding than those of `_spellings`, is not found.
"""

import json
import logging
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlsplit

MARK = "[secret]"
SHORTEST = 8
LONGEST_WORD = 15
"""What is shorter, such as "none" for a server that wants no key, or letters alone up to this length, such as
the password "postgres", is a word: to replace it everywhere would spoil what has nothing to do with it."""


class _Known:
    """What is registered, as it may be spelled. It tells nobody: no repr, no pickle, no iteration."""

    __slots__ = ("_lock", "_values", "lines", "texts")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: frozenset[str] = frozenset()
        self.texts: tuple[str, ...] = ()  # longest first: a secret may hold another
        self.lines: tuple[bytes, ...] = ()

    def add(self, value: str) -> None:
        with self._lock:
            if value in self._values:
                return
            self._values |= {value}
            spelled = {form for each in self._values for form in _spellings(each)}
            self.texts = tuple(sorted(spelled, key=lambda form: (-len(form), form)))
            self.lines = tuple(form.encode("utf-8", "surrogatepass") for form in self.texts)

    def __repr__(self) -> str:
        return f"<{len(self._values)} secrets>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Secrets are not pickled.")


_known = _Known()


def register(value: str | None) -> None:
    """From now on this is a secret, and so is the password of an address. A word is none, and neither is what
    only names a secret: ${secret:NAME}."""
    if not isinstance(value, str) or _REFERENCE.search(value):
        return
    value = value.strip()
    if not _is_word(value):
        _known.add(value)
    register_password(value)


def register_password(address: str) -> None:
    """Register the password in an address, if there is one, and nothing else of it."""
    try:
        password = urlsplit(address).password if "://" in address and "${" not in address else None
    except ValueError:
        return
    for spelled in (password or "", unquote(password or "")):
        if not _is_word(spelled):
            _known.add(spelled)


def _is_word(value: str) -> bool:
    letters_alone = value.isalpha() and len(value) <= LONGEST_WORD
    return len(value) < SHORTEST or letters_alone or value == MARK


def register_named(words: Mapping[str, Any]) -> None:
    """Register the values of an engine's parameters that are named like keys, and its headers."""
    for name, value in words.items():
        if isinstance(value, Mapping):
            if "header" in name.lower():
                register_headers(value)
            else:
                register_named(value)
        elif isinstance(value, str) and is_secret(name):
            register(value)


def register_headers(headers: Mapping[str, Any]) -> None:
    """Register the values of headers, but for those that hold no secret in any protocol, and what follows
    `Bearer` or `Basic` in them."""
    for name, value in headers.items():
        if name.lower() not in _HARMLESS:
            register(str(value))
            register(str(value).partition(" ")[2])


def known(said: str) -> str:
    """The text without what is registered."""
    for secret in _known.texts:
        if secret in said:
            said = said.replace(secret, MARK)
    return said


def text(said: str) -> str:
    """The text without what is registered and without what looks like a key.

    >>> text("refused: sk-proj-0123456789abcdef, at postgresql://ann:pass@db/runs")
    'refused: [secret], at postgresql://ann:[secret]@db/runs'
    """
    said = known(said)
    lower = said.lower()
    for hints, shape, instead in _SHAPES:
        if any(hint in lower for hint in hints):
            said = shape.sub(instead, said)
    return said


def line(said: bytes) -> bytes:
    """A line of JSON without what is registered."""
    for secret in _known.lines:
        if secret in said:
            return _cleared(said)
    return said


def settings(words: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was started with, without secrets: as `text`, and without values that are named like keys.
    Of its `task` only what is registered is left out, since a run is resumed by asking the same again."""
    return {key: data(part) if key == "task" else _configured(key, part) for key, part in words.items()}


def data(value: Any) -> Any:
    """Plain data without what is registered. Where a text of a mapping held a secret, the token ids beside it
    are left out, since they spell it too."""
    if isinstance(value, str):
        return known(value)
    if isinstance(value, Mapping):
        cleared = {known(key): data(part) for key, part in value.items()}
        if any(isinstance(part, str) and cleared[known(key)] != part for key, part in value.items()):
            cleared |= {key: [] for key in cleared if key == "ids" or key.endswith("_ids")}
        return cleared
    return [data(part) for part in value] if isinstance(value, (list, tuple)) else value


def _configured(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _configured(str(key), part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_configured(name, part) for part in value]
    if not isinstance(value, str):
        return value
    named = is_secret(name) and len(value) >= SHORTEST and not _REFERENCE.fullmatch(value)
    return MARK if named else text(value)


def is_secret(name: str) -> bool:
    """Whether a parameter or a header is named like a key.

    >>> [name for name in ("api_key", "x-token", "api_key_env", "max_tokens") if is_secret(name)]
    ['api_key', 'x-token']
    """
    return bool(_KEY_NAMES.search(name))


def _cleared(said: bytes) -> bytes:
    import orjson  # not at once: a server that only loads our plug-in may lack it

    try:
        return orjson.dumps(data(orjson.loads(said)))
    except ValueError:  # not JSON after all
        return known(said.decode("utf-8", "replace")).encode("utf-8", "replace")


class Filter(logging.Filter):
    """For a logger: what it says, tracebacks included, without secrets, whatever handlers there are.

    It puts together message and arguments, so it belongs on loggers of our own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; never drop it."""
        record.msg, record.args = text(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = text(logging.Formatter().formatException(record.exc_info))
        if record.stack_info:
            record.stack_info = text(record.stack_info)
        return True


def guard(log: logging.Logger) -> logging.Logger:
    """The logger, with the filter on it once."""
    if not any(isinstance(each, Filter) for each in log.filters):
        log.addFilter(Filter())
    return log


def _spellings(value: str) -> Iterable[str]:
    """A value as it is, as JSON and Python write it, and as it stands in an address."""
    yield value
    for whole in (True, False):
        escaped = json.dumps(value, ensure_ascii=whole)[1:-1]
        yield escaped
        yield json.dumps(escaped)[1:-1]  # JSON within JSON: the arguments of tools
    yield repr(value)[1:-1]
    yield quote(value, safe="")
    yield quote(value)


_KEY_NAMES = re.compile(r"(?:^|[_-])(?:api_?key|key|token|secret|password|passwd)$", re.IGNORECASE)
_HARMLESS = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "content-encoding",
        "content-type",
        "referer",
        "user-agent",
    }
)
_REFERENCE = re.compile(r"\$\{secret:\w+\}")

_BOUNDED = r"(?<![\w-])"
_LONG = r"(?=[\w-]*\d)[\w-]{16,}"  # with a digit: words joined by hyphens have none
_PREFIXES = (
    "sk-", "sk_", "xai-", "hf_", "ghp_", "gho_", "ghs_", "ghu_", "github_pat_", "glpat-", "xoxb-", "xoxp-",
)  # fmt: skip
# What a text must hold in lower case for the shape to be looked for: most hold nothing of the kind.
_SHAPES: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # Keys of providers and hosts, whole, or with the stars that providers put into them.
    (
        _PREFIXES,
        re.compile(rf"{_BOUNDED}g?(?:{'|'.join(_PREFIXES)})(?:{_LONG}|[\w-]*\*[\w*-]+)"),
        MARK,
    ),
    (("aiza", "akia"), re.compile(rf"{_BOUNDED}(?:AIza[\w-]{{30,}}|AKIA[A-Z0-9]{{16}})"), MARK),
    (
        ("bearer", "basic"),
        re.compile(r"\b(Bearer|Basic)\s+(?=[\w.~+/=-]*[\d=])[\w.~+/=-]{8,}", re.IGNORECASE),
        rf"\1 {MARK}",
    ),
    # Passwords in addresses: up to the last @ of the host part, since some hold one.
    (("://",), re.compile(r"(?<=://)([^\s/:@'\"]*):(?!\[secret\]@)[^\s/'\"]+@"), rf"\1:{MARK}@"),
    (
        ("key", "password"),
        re.compile(
            r"((?:api_?key|password)(?:=|['\"]\s*:\s*['\"]))(?!\[secret\])[^\s'\"&,;)]{8,}", re.IGNORECASE
        ),
        rf"\1{MARK}",
    ),
)

"""JSON as models write it: read with its small defects mended.

>>> loads("{'a': True, b: [1, 2,], }")
{'a': True, 'b': [1, 2]}
>>> loads('{"code": "print(1)", "limits": {"seconds": 2')
{'code': 'print(1)', 'limits': {'seconds': 2}}

Mended are single and curly quotes, trailing and missing commas, keys without quotes, words of Python and
JavaScript, comments, raw newlines in strings, a code fence around it, and what was not closed at the end.
Nothing is ever evaluated.
"""

import json
import re
from typing import Any

MAX_DEPTH = 40


def loads(text: str) -> Any:
    """The value. Raises ValueError if there is none, even with its defects mended."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:
        pass
    plain = _FENCE.sub("", text)
    value, end = value_at(plain, 0)
    if plain[end:].strip(" \t\r\n;,`}])"):  # brackets too many are a small defect
        raise ValueError(f"there is more after its end: {plain[end : end + 40]!r}")
    return value


def value_at(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends. Raises ValueError if none does."""
    return _value(text, _skip(text, at), 0)


_FENCE = re.compile(r"\A\s*```\w*\s*|\s*```\s*\Z")
_BLANK = re.compile(r"(?:\s+|//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z))*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_WORD = re.compile(r"[A-Za-z_$][\w$-]*")
_WORDS = {
    "true": True, "True": True, "false": False, "False": False,
    "null": None, "None": None, "undefined": None, "nil": None,
}  # fmt: skip
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if at >= len(text):
        raise ValueError("a value is missing at its end")
    char = text[at]
    if char == "{":
        return _object(text, at + 1, depth)
    if char == "[":
        return _array(text, at + 1, depth)
    if char in _QUOTES:
        return _string(text, at)
    if (number := _NUMBER.match(text, at)) and (number[0].strip("+-.") != ""):
        return _number(number[0]), number.end()
    if (word := _WORD.match(text, at)) and word[0] in _WORDS:
        return _WORDS[word[0]], word.end()
    raise ValueError(f"no value begins with {text[at : at + 20]!r}")


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while True:
        at = _skip(text, at, ",")
        if at >= len(text):
            return found, at
        if text[at] == "}":
            return found, at + 1
        if text[at] == "]":  # closed by the wrong bracket, or not at all: it is its parent's
            return found, at
        key, at = _key(text, at)
        at = _skip(text, at)
        if at >= len(text):  # cut off within a key: no value, so no key
            return found, at
        if text[at] == "=" and text[at : at + 2] == "=>":
            at += 1
        elif text[at] not in ":=":
            raise ValueError(f"a colon is missing before {text[at : at + 20]!r}")
        at = _skip(text, at + 1)
        if at >= len(text):
            return found, at
        found[key], at = _value(text, at, depth + 1)


def _array(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    while True:
        at = _skip(text, at, ",")
        if at >= len(text):
            return found, at
        if text[at] == "]":
            return found, at + 1
        if text[at] == "}":
            return found, at
        value, at = _value(text, at, depth + 1)
        found.append(value)


def _key(text: str, at: int) -> tuple[str, int]:
    if text[at] in _QUOTES:
        return _string(text, at)
    if (word := _WORD.match(text, at)) or (word := _NUMBER.match(text, at)):
        return word[0], word.end()
    raise ValueError(f"no key begins with {text[at : at + 20]!r}")


def _string(text: str, at: int) -> tuple[str, int]:
    """A string, raw newlines and all. A quote that nothing of JSON follows belongs to it, as in 'it's'."""
    end_quote = _QUOTES[text[at]]
    parts: list[str] = []
    at += 1
    while at < len(text):
        char = text[at]
        if char == "\\" and at + 1 < len(text):
            at, said = _escape(text, at + 1)
            parts.append(said)
            continue
        if char == end_quote and (char == '"' or _ends(text, at + 1)):
            return "".join(parts), at + 1
        parts.append(char)
        at += 1
    return "".join(parts), at


def _escape(text: str, at: int) -> tuple[int, str]:
    char = text[at]
    if char == "u" and re.fullmatch(r"[0-9a-fA-F]{4}", text[at + 1 : at + 5]):
        code = int(text[at + 1 : at + 5], 16)
        low = text[at + 5 : at + 11]
        if 0xD800 <= code < 0xDC00 and re.fullmatch(r"\\u[dD][c-fC-F][0-9a-fA-F]{2}", low):
            pair = 0x10000 + ((code - 0xD800) << 10) + int(low[2:], 16) - 0xDC00
            return at + 11, chr(pair)
        return at + 5, chr(code)
    return at + 1, _ESCAPES.get(char, char)


def _ends(text: str, at: int) -> bool:
    at = _skip(text, at)
    return at >= len(text) or text[at] in ",:}]=;"


def _number(text: str) -> int | float:
    plain = text.replace("_", "").lstrip("+")
    try:
        return int(plain)
    except ValueError:
        return float(plain)  # also of more digits than int reads


def _skip(text: str, at: int, beside: str = "") -> int:
    while True:
        blank = _BLANK.match(text, at)
        at = blank.end() if blank else at
        if not beside or at >= len(text) or text[at] not in beside:
            return at
        at += 1

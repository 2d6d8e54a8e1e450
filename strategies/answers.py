r"""Answers: where they stand in a text, and one form for all that mean the same.

>>> canon("$1,200.00"), canon(r"\frac12"), canon("0.5"), canon("(b)"), canon(" Paris. ")
('1200', '1/2', '1/2', 'B', 'paris')
>>> extract("number", "6 x 7 is 42, so the answer is 42. Check: 42 / 7 = 6.")
'42'

Source: section 2 of the suite in arXiv 2502.07191. Deviates: numbers are compared exactly, not within 0.01.
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from ..serving.errors import UnknownName

# ---------------------------------------------------------------- one form for equal answers


def canon(text: str) -> str:
    r"""The canonical form: equal answers have equal forms, and `canon(canon(x)) == canon(x)`.

    Numbers become exact rationals "p" or "p/q", without `$ % ,`, a final full stop or a unit; LaTeX loses
    its frame (`\boxed`, `$`), sizes, `\text` and spaces; a lone letter is a choice and becomes upper case;
    other words lose case and the punctuation around them.
    """
    for _ in range(_MAX_PASSES):
        text, before = _pass(text), text
        if text == before:
            break
    return text


def number(text: str) -> Fraction | None:
    r"""The exact number that the whole of a text is, a unit after it aside; None if it is none.

    >>> number("1 1/2"), number(r"-\frac{3}{4}"), number("12 apples"), number("3x")
    (Fraction(3, 2), Fraction(-3, 4), Fraction(12, 1), None)
    """
    return _number(_latex(text))


_MAX_PASSES = 20  # each pass takes a layer off; nothing sensible has so many
_MAX_FORMULA = 2000  # longer texts are prose
_MAX_DIGITS = 300  # of a number, exponent included: keeps exact arithmetic cheap

_MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " "})
_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*(?:[$€£]\s*)?(?P<sign2>-?)
    (?:(?P<whole>\d+)\s+(?P<top2>\d+)/(?P<under2>\d+)
      |(?P<top>{_UNSIGNED})\s*/\s*(?P<under>{_UNSIGNED})
      |(?P<value>{_UNSIGNED})(?:\s*(?:e|\*\s*10\s*(?:\^|\*\*)\s*)\{{?(?P<power>[+-]?\d{{1,3}})\}}?)?)
    (?:\s*%)?""",
    re.VERBOSE | re.IGNORECASE,
)
_UNIT = re.compile(
    r"(?:\s+[^\W\d_][^\W\d_./²³°-]*){1,3}|\s*(?:°[cf]?|[ckm]?m[²³]?|k?g|mg|ml|l|s|h|min|[€£$])\.?", re.I
)


def _pass(text: str) -> str:
    text = text.translate(_MINUS).strip()
    bare = _latex(text)
    value = _number(bare)
    if value is not None:
        return str(value)
    if "\\" in bare or re.search(r"[{}^_]", bare):
        bare = re.sub(r"([\^_])\{(\w)\}", r"\1\2", bare)
        return re.sub(r"\s+", "", bare).rstrip(".")  # LaTeX: case and inner punctuation matter
    if not re.search(r"[^\W\d_]", bare):
        return re.sub(r"\s+", "", bare).strip(".,;:!\"'`")
    words = " ".join(bare.split()).strip(" .,;:!\"'`*")
    if lone := re.fullmatch(r"\(?([^\W\d_])[).:]?", words):
        return lone[1].upper() if len(lone[1].upper()) == 1 else lone[1]
    return words.casefold()


def _latex(text: str) -> str:
    """A formula without what only changes its looks."""
    text = text.translate(_MINUS).strip()
    if len(text) > _MAX_FORMULA:
        return text
    boxed = _last_boxed(text)
    if boxed is not None and text.startswith("\\boxed") and text.endswith("}"):
        text = boxed
    if "\\" in text:
        text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;:> ]", "", text)
        text = re.sub(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1", text)
        text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
        text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
        text = re.sub(r"\\frac\s*\{\s*([^{}]+?)\s*\}\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
        text = re.sub(r"\\frac\s*(\d)\s*\{\s*([^{}]+?)\s*\}", r"\\frac{\1}{\2}", text)
        text = re.sub(rf"\\frac\s*\{{\s*(-?(?:{_UNSIGNED}))\s*\}}\s*\{{({_UNSIGNED})\}}", r" \1/\2", text)
        text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\%", "%").replace("\\$", "$")
        text = text.replace("^{\\circ}", "°").replace("^\\circ", "°").replace("\\(", "").replace("\\)", "")
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text.strip("$")
    return re.sub(r"^-\s+", "-", text.strip())


def _number(text: str) -> Fraction | None:
    text = text.strip().strip("*").rstrip(".").strip()
    if len(text) > _MAX_DIGITS or (found := _NUMBER.match(text)) is None:
        return None
    rest = text[found.end() :]
    if rest and not _UNIT.fullmatch(rest):
        return None
    part = {name: (group or "").replace(",", "") for name, group in found.groupdict().items()}
    sign = -1 if "-" in (part["sign"], part["sign2"]) else 1
    try:
        if part["whole"]:
            value = int(part["whole"]) + Fraction(int(part["top2"]), int(part["under2"]))
        elif part["top"]:
            value = Fraction(Decimal(part["top"])) / Fraction(Decimal(part["under"]))
        else:
            value = Fraction(Decimal(part["value"])) * Fraction(10) ** int(part["power"] or 0)
    except ZeroDivisionError:
        return None
    return sign * value


# ---------------------------------------------------------------- where the answer stands


def extract(kind: str, text: str, choices: Sequence[str] = ()) -> str | None:
    r"""The answer a text gives, not yet canonical; None where it gives none.

    | kind     | the answer                                                                              |
    |----------|-----------------------------------------------------------------------------------------|
    | `number` | the number in `\boxed{}`, after `####` or after "answer is"; else the last number          |
    | `boxed`  | what the last `\boxed{}` holds; if none is closed, the line after the last open one       |
    | `words`  | what `\boxed{}` holds, else what follows `####` or "answer is": a name, a date, a number  |
    | `choice` | the letter of a choice, by letter or words, after "answer is"; else the last "(B)" or "B."  |
    | `final`  | what follows "the final answer is", else "final answer", else "refined solution"; else the |
    |          | last sentence                                                                           |
    | `text`   | everything                                                                              |

    Raises UnknownName for any other kind.
    """
    if kind not in EXTRACTORS:
        raise UnknownName("kind of answer", kind, EXTRACTORS)
    found = EXTRACTORS[kind](text, tuple(choices))
    return found.strip() or None if found is not None else None


def stated(kind: str, text: str) -> bool:
    r"""Whether a text says which its answer is (`\boxed{…}`, "#### …", "the answer is …"), so that the
    solution can end there. Mere numbers do not state an answer; `text` answers are never stated."""
    if kind == "text":
        return False
    if kind == "boxed":
        return _last_boxed(text) is not None
    said = _after_marker(text)
    return _last_boxed(text) is not None or (said is not None and re.search(r"\w", said) is not None)


_MARKER = re.compile(r"(?:####|\banswer\s+(?:is|are|was|would\s+be|=)|\banswer\s*:)", re.IGNORECASE)
_FINAL = tuple(
    re.compile(words, re.IGNORECASE)
    for words in (r"the final answer is", r"final answer", r"refined solution")
)
_LATEX_FRACTION = rf"-?\\[dt]?frac\s*\{{\s*-?(?:{_UNSIGNED})\s*\}}\s*\{{\s*-?(?:{_UNSIGNED})\s*\}}"
_ANY_NUMBER = re.compile(
    rf"{_LATEX_FRACTION}|(?<![\w.,])[-\u2212]?(?:\d+\s+\d+/\d+|(?:{_UNSIGNED})(?:\s*/\s*(?:{_UNSIGNED}))?)"
    rf"|(?<=[$€£(=*+/x]) ?[-\u2212]?(?:{_UNSIGNED})"
    rf"|(?:{_UNSIGNED})"
)


def _extract_number(text: str, _: tuple[str, ...]) -> str | None:
    for place in (_last_boxed(text), _after_marker(text)):
        if place is not None and (numbers := _numbers(place)):
            return numbers[0] if "=" not in place else (_numbers(place.rpartition("=")[2]) or numbers[-1:])[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[str]:
    return [found.strip() for found in _ANY_NUMBER.findall(text)]


def _extract_boxed(text: str, _: tuple[str, ...]) -> str | None:
    closed = _last_boxed(text)
    if closed is not None or "\\boxed{" not in text:
        return closed
    return text.rpartition("\\boxed{")[2].partition("\n")[0]  # cut short


def _extract_words(text: str, _: tuple[str, ...]) -> str | None:
    boxed = _last_boxed(text)
    return boxed if boxed is not None else _after_marker(text, end=_END_OF_WORDS)


# Not the mark of an abbreviation: "St. Petersburg", "J. S. Bach"; but that of "No. It is even."
_END_OF_WORDS = r"(?<!\b[^\W\d])(?<!\b(?:St|Dr|Mr|Ms|Mt|Ft|Jr|Sr|vs))(?<!\bMrs)\.\s"


def _extract_choice(text: str, choices: tuple[str, ...]) -> str | None:
    last = chr(ord("A") + min(len(choices) or 10, 26) - 1)
    others = f"[B-{max(last, 'B')}]"  # a lone A before a word is an article
    letter = rf"\(([A-{last}])\)|(A)\b(?![’']|\s+[a-z])|({others})\b(?![’'])"
    here = re.compile(rf"[\s:*\"']*(?:(?:option|choice)\s+)?(?:{letter})")
    for place in (_last_boxed(text), _after_marker(text)):
        if place is None:
            continue
        if found := here.match(place) or here.match(place.strip().upper() if len(place) < 5 else ""):
            return next(group for group in found.groups() if group)
        if (named := _choice_named(place, choices)) is not None:
            return named
    if (named := _choice_named(text, choices, whole=True)) is not None:
        return named
    alone = rf"\(([A-{last}])\)|^\W{{0,5}}([A-{last}])\W{{0,5}}$|^\W{{0,5}}([A-{last}])[).:]\s"
    letters = re.findall(alone, text, re.MULTILINE)
    return next(group for group in letters[-1] if group) if letters else None


def _choice_named(text: str, choices: tuple[str, ...], *, whole: bool = False) -> str | None:
    """The letter of the choice whose words a text begins with (or is, if `whole`); longest words first."""
    said = canon(text)
    for i in sorted(range(len(choices)), key=lambda i: -len(choices[i])):
        words = canon(choices[i])
        if words and (said == words or (not whole and re.match(rf"{re.escape(words)}(?!\w)", said))):
            return chr(ord("A") + i)
    return None


def _extract_final(text: str, _: tuple[str, ...]) -> str | None:
    text = text.partition("End of answer.")[0].rstrip()
    boxed = _last_boxed(text)
    for marker in _FINAL:
        if found := list(marker.finditer(text)):
            said = text[found[-1].end() :].strip().removeprefix("is").lstrip(" :*\n")
            return boxed if said.startswith(("\\boxed", "$\\boxed")) else said.partition("\n")[0]
    sentences = re.split(r"(?<=[.!?])\s+|\n+", text.strip())
    return sentences[-1]


def _extract_text(text: str, _: tuple[str, ...]) -> str | None:
    return text


EXTRACTORS: dict[str, Callable[[str, tuple[str, ...]], str | None]] = {
    "number": _extract_number,
    "boxed": _extract_boxed,
    "words": _extract_words,
    "choice": _extract_choice,
    "final": _extract_final,
    "text": _extract_text,
}
"""Kind of answer → its extractor."""


def _after_marker(text: str, end: str = r"(?<=[^\d])\.\s|(?<=\d)\.\s") -> str | None:
    """The rest of the sentence after the last marker that has something after it."""
    for found in reversed(list(_MARKER.finditer(text))):
        rest = text[found.end() :].lstrip(" :*\n")
        if rest:
            return re.split(rf"\n|{end}", rest, maxsplit=1)[0]
    return None


def _last_boxed(text: str) -> str | None:
    """What the last closed `\\boxed{…}` holds, braces balanced."""
    begun: list[int | None] = []  # open braces: where the box's content begins, None for other braces
    best: tuple[int, int] | None = None
    for brace in re.finditer(r"(\\f?boxed\s*)?\{|\}", text):
        if brace[0] != "}":
            begun.append(brace.end() if brace[1] else None)
        elif begun and (start := begun.pop()) is not None and (best is None or start > best[0]):
            best = start, brace.start()
    return text[slice(*best)] if best else None

"""How answers are judged, after SQuAD's normalisation; of several right ones the best counts.

>>> exact_match("The Eiffel Tower.", ["eiffel tower"]), contained("It is Oslo, Norway.", ["Oslo"])
(1.0, 1.0)
>>> round(token_f1("in Oslo Norway", ["Oslo"]), 3)
0.5
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

_REFUSED = re.compile(
    r"\b(?:unknown|not (?:enough|given|stated|mentioned)|cannot|can't|no answer|n/a)\b", re.I
)


def normalised(text: str) -> str:
    """In lower case, without punctuation, articles and further blanks."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """1 if the answer is one of the right ones."""
    return max((float(normalised(answer) == normalised(gold)) for gold in golds), default=0.0)


def contained(answer: str, golds: Iterable[str]) -> float:
    """1 if a right answer stands in the answer, in whole words (the paper's Acc)."""
    words = f" {normalised(answer)} "
    return max((float(f" {normalised(gold)} " in words) for gold in golds if normalised(gold)), default=0.0)


def token_f1(answer: str, golds: Iterable[str]) -> float:
    """Harmonic mean of precision and recall of words."""
    return max((_f1(normalised(answer).split(), normalised(gold).split()) for gold in golds), default=0.0)


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right)) if common else float(not said and not right)


METRICS: dict[str, Callable[[str, Iterable[str]], float]] = {
    "em": exact_match,
    "f1": token_f1,
    "acc": contained,
}


def error_class(answer: str, golds: Sequence[str], documents: Iterable[str]) -> str:
    """Why an answer is wrong, as far as texts tell: `evaluation or refusal` (a right answer in other words,
    or none where one was read), `retrieval` (no document has a right answer), `reasoning` (another answer of
    the documents), `unfaithful` (one that stands in no document); empty if it is right."""
    if exact_match(answer, golds):
        return ""
    texts = [f" {normalised(text)} " for text in documents]

    def told(what: str) -> bool:
        return any(f" {normalised(what)} " in text for text in texts)

    if contained(answer, golds):
        return "evaluation or refusal"
    if not any(told(gold) for gold in golds):
        return "retrieval"
    if not normalised(answer) or _REFUSED.search(answer):
        return "evaluation or refusal"
    return "reasoning" if told(answer) else "unfaithful"

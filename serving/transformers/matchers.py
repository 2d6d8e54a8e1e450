"""Matchers: a text that is being written, and what may follow. Texts are bytes, since a token may end in
the middle of a character; regular expressions and JSON schemas are matched by llguidance."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from ..constraints import Check, Critic
from ..errors import MissingExtra, UsageError
from .timed import Timed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids: TypeAlias = NDArray[np.intp]
    Mask: TypeAlias = NDArray[np.bool_]

N_BYTES = 256


class Vocabulary:
    """What each token writes, by its id; `b""` for tokens that are no text, such as the end of a turn."""

    def __init__(self, tokens: Sequence[bytes] = ()) -> None:
        self.tokens = tuple(tokens)

    @cached_property
    def llguidance(self) -> Any:
        """As llguidance's tokeniser: the tokens, then the 256 bytes by which texts are fed, then an end."""
        library = guidance()
        wrapper = _Tokens([*self.tokens, *(bytes([b]) for b in range(N_BYTES)), b"\xff[end]"])
        return library.LLTokenizer(library.TokenizerWrapper(wrapper))


class Matcher:
    """A text that is being written."""

    def allows(self, token: int) -> bool:
        """Whether the text with this token may still be completed."""
        raise NotImplementedError

    def take(self, token: int) -> None:
        """Write a token that is allowed."""
        raise NotImplementedError

    def feed(self, text: bytes) -> bool:
        """Write a text; whether it may still be completed. If not, nothing more may be asked."""
        raise NotImplementedError

    def complete(self) -> bool:
        """Whether the text is complete as it is."""
        raise NotImplementedError

    def copy(self) -> "Matcher":
        """The same text, to be continued in another way."""
        raise NotImplementedError

    def mask(self, tokens: "Ids") -> "Mask":
        """`allows` of each of these tokens: what masking asks at every step."""
        import numpy as np

        return np.fromiter(map(self.allows, tokens.tolist()), bool, tokens.size)

    def log_prefix(self) -> float:
        """The critics' guess of the text's log-weight."""
        return 0.0

    def log_complete(self) -> float:
        """The critics' log-weight of the text as it is."""
        return 0.0


def by_grammar(matcher: Any, vocabulary: Vocabulary) -> Matcher:
    """llguidance's matcher, over the vocabulary's `llguidance` tokeniser."""
    return _Grammar(matcher, len(vocabulary.tokens))


def one_of(vocabulary: Vocabulary, options: Sequence[str]) -> Matcher:
    """One of several texts."""
    return _OneOf(vocabulary.tokens, tuple(option.encode() for option in options))


def by_check(vocabulary: Vocabulary, check: Check, timed: Timed) -> Matcher:
    """A function of the user's. Within a character it is asked about the text before it."""
    return _Asked(vocabulary.tokens, check, timed)


def by_critic(vocabulary: Vocabulary, critic: Critic, timed: Timed) -> Matcher:
    """A critic: allows every text, and weighs it."""
    return _Judged(vocabulary.tokens, critic, timed)


def both(parts: Sequence[Matcher]) -> Matcher:
    """All parts at once; the cheap ones are asked first."""
    return _Both(parts)


def guidance() -> Any:
    """llguidance. Raises MissingExtra without it."""
    if not find_spec("llguidance"):
        raise MissingExtra("llguidance", "transformers")
    return import_module("llguidance")


# ---------------------------------------------------------------- each kind


class _Grammar(Matcher):
    def __init__(self, matcher: Any, n_tokens: int) -> None:
        self._matcher = matcher
        self._n_tokens = n_tokens

    def allows(self, token: int) -> bool:
        return bool(self._matcher.validate_tokens([token]) == 1)

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)

    def feed(self, text: bytes) -> bool:
        ids = [self._n_tokens + byte for byte in text]
        return bool(self._matcher.try_consume_tokens(ids) == len(ids))

    def complete(self) -> bool:
        return bool(self._matcher.is_accepting())

    def copy(self) -> "_Grammar":
        return _Grammar(self._matcher.deep_copy(), self._n_tokens)

    def mask(self, tokens: "Ids") -> "Mask":
        import numpy as np

        told = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)
        if np.count_nonzero(told) == 1:  # where one text is forced, llguidance names one way to write it
            return super().mask(tokens)
        return told[tokens] > 0


class _Bytes(Matcher):
    """A matcher that keeps the text."""

    def __init__(self, tokens: Sequence[bytes], text: bytes = b"") -> None:
        self._tokens = tokens
        self._text = text

    def allows(self, token: int) -> bool:
        more = self._tokens[token]
        return bool(more) and self.may_become(self._text + more)

    def take(self, token: int) -> None:
        self._text += self._tokens[token]

    def feed(self, text: bytes) -> bool:
        self._text += text
        return self.may_become(self._text)

    def may_become(self, text: bytes) -> bool:
        """Whether this text may still be completed."""
        raise NotImplementedError


class _OneOf(_Bytes):
    def __init__(self, tokens: Sequence[bytes], options: tuple[bytes, ...], text: bytes = b"") -> None:
        super().__init__(tokens, text)
        self._options = options

    def may_become(self, text: bytes) -> bool:
        return any(option.startswith(text) for option in self._options)

    def complete(self) -> bool:
        return self._text in self._options

    def copy(self) -> "_OneOf":
        return _OneOf(self._tokens, self._options, self._text)


class _Asked(_Bytes):
    def __init__(self, tokens: Sequence[bytes], check: Check, timed: Timed, text: bytes = b"") -> None:
        super().__init__(tokens, text)
        self._check = check
        self._timed = timed

    def may_become(self, text: bytes) -> bool:
        whole = _whole(text)
        return whole is not None and bool(self._timed.call(self._check.prefix, whole[0]))

    def complete(self) -> bool:
        whole = _whole(self._text)
        if whole is None or whole[1]:
            return False
        return bool(self._timed.call(self._check.complete, whole[0]))

    def copy(self) -> "_Asked":
        return _Asked(self._tokens, self._check, self._timed, self._text)


class _Judged(_Bytes):
    def __init__(self, tokens: Sequence[bytes], critic: Critic, timed: Timed, text: bytes = b"") -> None:
        super().__init__(tokens, text)
        self._critic = critic
        self._timed = timed

    def may_become(self, text: bytes) -> bool:
        return _whole(text) is not None

    def complete(self) -> bool:
        whole = _whole(self._text)
        return whole is not None and not whole[1]

    def log_prefix(self) -> float:
        return self._log_weight(self._critic.prefix)

    def log_complete(self) -> float:
        return self._log_weight(self._critic.complete) if self.complete() else -math.inf

    def _log_weight(self, of: Callable[[str], float]) -> float:
        whole = _whole(self._text)
        told = -math.inf if whole is None else float(self._timed.call(of, whole[0]))
        if math.isnan(told) or told == math.inf:
            raise UsageError(f"A critic must give a log-weight below infinity, got {told}.")
        return told

    def copy(self) -> "_Judged":
        return _Judged(self._tokens, self._critic, self._timed, self._text)


class _Both(Matcher):
    def __init__(self, parts: Sequence[Matcher]) -> None:
        self._parts = sorted(parts, key=lambda part: isinstance(part, _Asked | _Judged))

    def allows(self, token: int) -> bool:
        return all(part.allows(token) for part in self._parts)

    def take(self, token: int) -> None:
        for part in self._parts:
            part.take(token)

    def feed(self, text: bytes) -> bool:
        return all(part.feed(text) for part in self._parts)

    def complete(self) -> bool:
        return all(part.complete() for part in self._parts)

    def copy(self) -> "_Both":
        return _Both([part.copy() for part in self._parts])

    def log_prefix(self) -> float:
        return sum(part.log_prefix() for part in self._parts)

    def log_complete(self) -> float:
        return sum(part.log_complete() for part in self._parts)


# ---------------------------------------------------------------- helpers


def _whole(text: bytes) -> tuple[str, bool] | None:
    """The text up to its last whole character, and whether bytes of another follow; None if no text
    in UTF-8 begins so."""
    try:
        return text.decode(), False
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return text[: error.start].decode(), True
        return None


class _Tokens:
    """A vocabulary as llguidance wants to see it."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        first = self.eos_token_id - N_BYTES
        return [first + byte for byte in text]

"""From prompts to token ids, by the server's own tokeniser and chat template.

Written as conversations: generators that yield a route and a body and are sent the reply. The engine
holds them with an event loop or, where an answer is needed at once, without.
"""

from collections import OrderedDict
from collections.abc import Generator, Hashable
from contextlib import suppress
from typing import Any, Generic, TypeAlias, TypeVar

from ..flow import Prompt
from ..tool_calls import described, offer, plain

T = TypeVar("T")
Ids: TypeAlias = tuple[int, ...]
Conversation: TypeAlias = Generator[tuple[str, dict[str, Any]], Any, T]


class Tokens:
    """Prompts as ids. Chat heads and texts are remembered, the `kept` last ones of each."""

    def __init__(self, kept: int = 4096) -> None:
        self._heads: _Lru[Ids] = _Lru(kept)
        self._texts: _Lru[Ids] = _Lru(kept)

    def known(self, prompt: Prompt) -> Ids | None:
        """The ids if they can be told without asking."""
        if not prompt.messages and not prompt.prefix_ids:
            return self._texts.get((prompt.prefix, True))
        head = self._heads.get(_head_key(prompt))
        if head is None:
            return None
        if prompt.prefix_ids:
            return head + prompt.prefix_ids
        if not prompt.prefix:
            return head
        rest = self._texts.get((prompt.prefix, False))
        return None if rest is None else head + rest

    def ids(self, prompt: Prompt) -> Conversation[Ids]:
        """The ids of a prompt."""
        if not prompt.messages and not prompt.prefix_ids:
            return (yield from self.text(prompt.prefix, beginning=True))
        head = yield from self._head(prompt)
        return head + (prompt.prefix_ids or (yield from self.text(prompt.prefix)))

    def whole(self, prompt: Prompt) -> Conversation[Ids]:
        """As `ids`, but a last assistant message ends the text: no new turn is begun after it."""
        if not prompt.messages or prompt.messages[-1].role != "assistant" or prompt.prefix:
            return (yield from self.ids(prompt))
        key = (*_head_key(prompt), "whole")
        ids = self._heads.get(key)
        if ids is None:
            body = {"messages": [*map(plain, prompt.messages)], "add_generation_prompt": False}
            ids = self._heads.put(key, tuple((yield "/v1/tokenize", body)["tokens"]))
        return ids

    def continuation(self, prompt: Prompt, text: str) -> Conversation[Ids]:
        """Ids of `text` after the prompt: tokenised together and cut, where the cut falls between tokens."""
        if prompt.prefix and not prompt.prefix_ids:
            before = yield from self.ids(prompt)
            both = yield from self.ids(Prompt(prompt.messages, prompt.prefix + text, tools=prompt.tools))
            if both[: len(before)] == before:
                return both[len(before) :]
        return (yield from self.text(text))

    def text(self, text: str, *, beginning: bool = False) -> Conversation[Ids]:
        """Ids of a text. At the beginning of a prompt special tokens are read as such; within an answer
        they are text, so that no model or user can end its turn by writing their names."""
        if not text and not beginning:
            return ()
        found = self._texts.get((text, beginning))
        if found is not None:
            return found
        body = {"prompt": text, "add_special_tokens": beginning}
        ids = tuple((yield "/v1/tokenize", body)["tokens"])
        if not beginning:
            ids = yield from self._without_special(text, ids)
        return self._texts.put((text, beginning), ids)

    def _head(self, prompt: Prompt) -> Conversation[Ids]:
        """What precedes the prefix. Without messages only the token that begins a text, if there is one."""
        if not prompt.messages:
            return (yield from self.text("", beginning=True))
        key = _head_key(prompt)
        ids = self._heads.get(key)
        if ids is None:
            messages = [plain(message) for message in prompt.messages]
            told: list[int] = (yield "/v1/tokenize", {"messages": messages})["tokens"]
            if prompt.tools:
                tools = [described(tool) for tool in prompt.tools]
                shown = (yield "/v1/tokenize", {"messages": messages, "tools": tools})["tokens"]
                if shown == told:  # the template has no place for them
                    shown = (yield "/v1/tokenize", {"messages": offer(messages, tools)})["tokens"]
                told = shown
            ids = self._heads.put(key, tuple(told))
        return ids

    def _without_special(self, text: str, ids: Ids) -> Conversation[Ids]:
        """`ids`, or where some are special the ids of the text cut within the names of those."""
        plain = (yield "/v1/detokenize", {"tokens": list(ids), "skip_special_tokens": True})["text"]
        if plain == text:
            return ids
        each = [[i] for i in sorted(set(ids))]
        shown = (yield "/v1/detokenize", {"tokens": each, "skip_special_tokens": True})["text"]
        full = (yield "/v1/detokenize", {"tokens": each, "skip_special_tokens": False})["text"]
        names = {name for name, plain in zip(full, shown, strict=True) if name and not plain}
        pieces = _cut(text, names)
        if len(pieces) == 1:
            return ids
        body = {"prompt": pieces, "add_special_tokens": False}
        return tuple(i for piece in (yield "/v1/tokenize", body)["tokens"] for i in piece)


class _Lru(Generic[T]):
    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        value = self._values.get(key)
        if value is not None:
            with suppress(KeyError):  # dropped meanwhile by another thread
                self._values.move_to_end(key)
        return value

    def put(self, key: Hashable, value: T) -> T:
        self._values[key] = value
        while len(self._values) > self._kept:
            self._values.popitem(last=False)
        return value


def upper_estimate(prompt: Prompt) -> int:
    """No fewer tokens than the prompt has, if a token is a byte at least and a turn costs 16 more."""
    prefix = len(prompt.prefix_ids) or len(prompt.prefix.encode())
    tools = sum(len(f"{tool}") for tool in prompt.tools)
    return prefix + tools + sum(len(m.content.encode()) + 16 for m in prompt.messages) + 64


def _head_key(prompt: Prompt) -> tuple[Any, ...]:
    return (prompt.messages, str(prompt.tools)) if prompt.tools else (prompt.messages,)


def _cut(text: str, names: set[str]) -> list[str]:
    """The text in pieces, cut after the first character of every name."""
    cuts = sorted({at + 1 for name in names for at in _places(text, name)})
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]


def _places(text: str, name: str) -> list[int]:
    found, at = [], text.find(name)
    while at >= 0:
        found.append(at)
        at = text.find(name, at + 1)
    return found

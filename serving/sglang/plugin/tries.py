"""The tries of the tenants, apart from each other, and the requests that read and feed them.

A request reads and feeds its tenant's trie only; one without a tenant has a trie of its own, gone at its end.
Its prompt and the texts sent with it are its own sources: no other request sees them, and they are taken out
when it ends. What it writes stays with the tenant. A tenant's corpora, `tenant:name`, stay until they are
removed.

Bound: `max_nodes` nodes in one trie beyond those held by sources, and in all of them together; above it the
tenants used longest ago are forgotten, but for those with a request in flight. A node takes about 300 bytes.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from .trie import BRANCH, Draft, Stream, Trie, View

PROMPT, TEXTS, OUTPUTS, CORPUS = "prompt", "texts", "outputs", "corpus"
SOURCES = (PROMPT, TEXTS, OUTPUTS, CORPUS)
"""Where a draft can come from."""

MAX_SOURCE = 4096
"""Tokens of a prompt, or of the texts of one request, that are looked up: the last ones."""
MAX_TENANTS = 10_000
"""Tenants that are remembered."""


def wishes(custom_params: Any) -> tuple[str | None, list[str]]:
    """The tenant and the texts that a request names; what is not of the right kind is as if not there.

    A client's mistake must not end the server, and SGLang has no way to refuse a request at this point.
    """
    named = custom_params if isinstance(custom_params, Mapping) else {}
    tenant, texts = named.get("abduce_tenant"), named.get("abduce_drafts")
    known = [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else []
    return tenant if isinstance(tenant, str) and tenant else None, known


@dataclass(frozen=True, slots=True)
class Guess:
    """A draft tree (see `trie.Draft`) with the name of each node's source."""

    tokens: list[int]
    parents: list[int]
    sources: list[str]


@dataclass(slots=True)
class _Corpus:
    key: int
    parts: list[list[int]]


class _Tenant:
    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self.corpora: dict[str, _Corpus] = {}
        self.n_open = 0


@dataclass(slots=True)
class _Reader:
    tenant: _Tenant
    own: dict[int, tuple[str, list[int]]]
    stream: Stream
    view: View


class Tries:
    """All tries of a server. `eos`: tokens at which a text ends. Not for several threads at once."""

    def __init__(self, eos: Collection[int] = (), *, max_nodes: int = 1_000_000) -> None:
        self._eos = frozenset(eos)
        self._max_nodes = max_nodes
        self._keys = count()
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._readers: dict[str, _Reader] = {}

    def __contains__(self, request: str) -> bool:
        return request in self._readers

    @property
    def requests(self) -> frozenset[str]:
        """The requests in flight."""
        return frozenset(self._readers)

    def open(
        self, request: str, tenant: str | None, prompt: Sequence[int], texts: Sequence[Sequence[int]]
    ) -> None:
        """Begin a request: count its prompt and the texts sent with it."""
        home = (
            self._tenant(tenant)
            if tenant is not None
            else _Tenant(Trie(self._eos, max_nodes=self._max_nodes))
        )
        home.n_open += 1
        eos = next(iter(self._eos), None)
        joined: list[int] = []
        for text in texts:
            if joined and eos is not None:
                joined.append(eos)
            joined.extend(text)
        own = {
            next(self._keys): (name, list(tokens[-MAX_SOURCE:]))
            for name, tokens in ((PROMPT, prompt), (TEXTS, joined))
            if tokens
        }
        for key, (_, tokens) in own.items():
            home.trie.add(tokens, key)
        corpora = tuple(corpus.key for corpus in home.corpora.values())
        self._readers[request] = _Reader(home, own, Stream(home.trie), View(tuple(own), corpora))
        self._evict()

    def extend(self, request: str, tokens: Sequence[int]) -> None:
        """Count tokens that a request has written."""
        self._readers[request].stream.extend(tokens)

    def close(self, request: str) -> None:
        """End a request: its output stays with the tenant, its own sources go."""
        reader = self._readers.pop(request)
        reader.stream.end()
        for key, (_, tokens) in reader.own.items():
            reader.tenant.trie.remove(tokens, key)
        reader.tenant.n_open -= 1

    def draft(self, request: str, text: Sequence[int], *, n: int) -> Guess:
        """Guess what follows `text` (its last tokens are enough): at most n - 1 nodes."""
        reader = self._readers[request]
        names = {key: name for key, (name, _) in reader.own.items()} | dict.fromkeys(
            reader.view.corpora, CORPUS
        )
        draft: Draft = reader.tenant.trie.draft(text, reader.view, n=n)
        sources = [OUTPUTS if key is None else names[key] for key in draft.sources]
        return Guess(draft.tokens, draft.parents, sources)

    def check(self, corpus: str, parts: Sequence[Sequence[int]]) -> None:
        """Raise ValueError for a corpus whose name has no tenant, or with which its tenant's could outgrow
        the bound."""
        tenant, _ = _split(corpus)
        others = sum(
            n for known, n in self.corpora().items() if known.startswith(f"{tenant}:") and known != corpus
        )
        n_tokens, most = others + sum(map(len, parts)), self._max_nodes // BRANCH
        if n_tokens > most:
            raise ValueError(
                f"A tenant's corpora hold at most {most} tokens; {corpus!r} would make it {n_tokens}. "
                "Send less, or raise --speculative-ngram-capacity."
            )

    def load(self, corpus: str, parts: Sequence[Sequence[int]]) -> None:
        """Put a corpus `tenant:name`, in place of one of that name; raises as `check` does.

        Requests in flight don't see it.
        """
        self.check(corpus, parts)
        tenant, name = _split(corpus)
        if name in self._tenant(tenant).corpora:
            self.unload(corpus)
        home = self._tenant(tenant)
        added = home.corpora[name] = _Corpus(next(self._keys), [list(part) for part in parts])
        for part in added.parts:
            home.trie.add(part, added.key)
        self._evict()

    def unload(self, corpus: str) -> None:
        """Take a corpus out again; raises ValueError if there is none of that name."""
        tenant, name = _split(corpus)
        found = self._tenants[tenant].corpora.pop(name, None) if tenant in self._tenants else None
        if found is None:
            raise ValueError(f"There is no corpus {corpus!r}.")
        home = self._tenants[tenant]
        for part in found.parts:
            home.trie.remove(part, found.key)

    def corpora(self) -> Mapping[str, int]:
        """`tenant:name` → tokens."""
        return {
            f"{tenant}:{name}": sum(map(len, corpus.parts))
            for tenant, home in self._tenants.items()
            for name, corpus in home.corpora.items()
        }

    def reset(self) -> None:
        """Forget all, but for the requests in flight and what they write from now on."""
        self._tenants.clear()

    @property
    def n_nodes(self) -> int:
        """Nodes of all tenants."""
        return sum(home.trie.n_nodes for home in self._tenants.values())

    @property
    def n_tenants(self) -> int:
        """Tenants that are known."""
        return len(self._tenants)

    def _tenant(self, name: str) -> _Tenant:
        home = self._tenants.get(name)
        if home is None:
            home = self._tenants[name] = _Tenant(Trie(self._eos, max_nodes=self._max_nodes))
        self._tenants.move_to_end(name)
        return home

    def _evict(self) -> None:
        nodes = self.n_nodes
        for name, home in list(self._tenants.items())[:-1]:
            if nodes <= self._max_nodes and len(self._tenants) <= MAX_TENANTS:
                return
            if not home.n_open:
                nodes -= home.trie.n_nodes
                del self._tenants[name]


def _split(corpus: str) -> tuple[str, str]:
    tenant, colon, name = corpus.partition(":")
    if not (tenant and colon and name):
        raise ValueError(f"A corpus is named tenant:name, got {corpus!r}. Write, for example, acme:handbook.")
    return tenant, name

"""A trie of earlier text, from which the next tokens are guessed.

A forest: the tree under root t holds what followed t, `branch` tokens deep, with counts. A node counts the
occurrences in outputs (they stay) and, source by source, those in texts that go again: a request's prompt,
the texts sent with it, a corpus. Guessing walks the last tokens down the forest and takes the most frequent
continuations below, those of the request's own sources first:

    f_in(node) = counts of the request's own sources      f_out(node) = outputs + corpora
    f(node) = (1 - λ) f_in + λ f_out,  λ = 1e-4

If more than fit are found: first the n/2 best by f_out, then the best by f until full.

Source: Lookahead (arXiv 2312.12728). Deviations: the selection is the paper's, not its code's, which drops
prompt-only nodes as soon as n/2 output nodes exist; a text is split at every EOS, not cut at the first, since
chat prompts contain them; pruning spares nodes that a request or corpus still holds; the node count is
bounded.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, nsmallest

LAMBDA = 1e-4
BRANCH = 12
"""Tokens below a root; the paper's `branch_length`."""
MAX_QUERY = 2
"""Last tokens that are looked up; the paper's `max_query_length`."""
PRUNE_EVERY, MAX_TREE, MAX_TREE_OUTPUTS = 1024, 65536, 512
"""Trees updated between two prunings; nodes, and nodes of outputs, above which a tree is pruned."""


class Node:
    """A token on the way; its count in outputs, and source by source."""

    __slots__ = ("children", "outputs", "ranked", "sources")

    def __init__(self) -> None:
        self.children: dict[int, Node] = {}
        self.outputs = 0
        self.sources: dict[int, int] | None = None
        self.ranked: tuple[_Children, _Children] | None = None  # until a child changes

    def rank(self) -> "tuple[_Children, _Children]":
        """The children that sources hold, and the others by falling outputs."""
        if not self.children:
            return _NO_CHILDREN
        if self.ranked is None:
            held = [each for each in self.children.items() if each[1].sources is not None]
            free = [each for each in self.children.items() if each[1].sources is None]
            free.sort(key=_outputs, reverse=True)
            self.ranked = held, free
        return self.ranked


_Children = list[tuple[int, Node]]
_NO_CHILDREN: tuple[_Children, _Children] = ([], [])


def _outputs(child: tuple[int, Node]) -> int:
    return child[1].outputs


class Root(Node):
    """The root of a tree, with the tree's size."""

    __slots__ = ("n_nodes", "n_outputs")

    def __init__(self) -> None:
        super().__init__()
        self.n_nodes = self.n_outputs = 0


@dataclass(frozen=True, slots=True)
class View:
    """Which sources a request may see, besides the outputs: its own, and the corpora."""

    own: tuple[int, ...] = ()
    corpora: tuple[int, ...] = ()

    def f_in(self, node: Node) -> int:
        """Occurrences in the request's own sources."""
        held = node.sources
        return sum(held.get(key, 0) for key in self.own) if held else 0

    def f_out(self, node: Node) -> int:
        """Occurrences in outputs and corpora."""
        held = node.sources
        return node.outputs + (sum(held.get(key, 0) for key in self.corpora) if held else 0)

    def f(self, node: Node) -> float:
        """The weight by which drafts are chosen."""
        return (1 - LAMBDA) * self.f_in(node) + LAMBDA * self.f_out(node)


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of guesses, parents before children; `parents[i]` is -1 below the last accepted token.

    `sources[i]` is the key of the own source or corpus in which node i occurs most, None if that is the
    outputs.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    sources: list[int | None] = field(default_factory=list)


class Trie:
    """A forest of counts. `eos`: tokens that no branch holds. `max_nodes` bounds what is not held by a
    source."""

    def __init__(self, eos: Collection[int] = (), *, max_nodes: int = 1_000_000) -> None:
        self.eos = frozenset(eos)
        self.max_nodes = max_nodes
        self.roots: dict[int, Root] = {}
        self.n_nodes = 0
        self._updated: set[int] = set()

    def add(self, tokens: Sequence[int], source: int | None = None) -> None:
        """Count every branch of a text, for a source or (None) as an output."""
        for part in self.parts(tokens):
            for start in range(len(part) - 1):
                self.add_branch(part[start : start + 1 + BRANCH], source)

    def parts(self, tokens: Sequence[int]) -> Iterator[list[int]]:
        """The text between its EOS tokens."""
        part: list[int] = []
        for token in tokens:
            if token in self.eos:
                yield part
                part = []
            else:
                part.append(token)
        yield part

    def add_branch(self, branch: Sequence[int], source: int | None = None) -> None:
        """Count one branch: its root and up to `BRANCH` tokens below."""
        root = self.roots.get(branch[0])
        if root is None:
            root = self.roots[branch[0]] = Root()
        node: Node = root
        for token in branch[1:]:
            child = node.children.get(token)
            node.ranked = None
            if child is None:
                child = node.children[token] = Node()
                root.n_nodes += 1
                self.n_nodes += 1
            node = child
            if source is None:
                root.n_outputs += not node.outputs
                node.outputs += 1
            elif node.sources is None:
                node.sources = {source: 1}
            else:
                node.sources[source] = node.sources.get(source, 0) + 1
        if source is None:
            self._updated.add(branch[0])
            if len(self._updated) >= PRUNE_EVERY or self.n_nodes > self.max_nodes:
                self.prune()

    def remove(self, tokens: Sequence[int], source: int) -> None:
        """Take back what `add(tokens, source)` counted, and nothing else."""
        for part in self.parts(tokens):
            for start in range(len(part) - 1):
                self._remove_branch(part[start : start + 1 + BRANCH], source)

    def _remove_branch(self, branch: Sequence[int], source: int) -> None:
        root = self.roots[branch[0]]
        node: Node = root
        for token in branch[1:]:
            parent, node = node, node.children[token]
            parent.ranked = None
            assert node.sources is not None
            node.sources[source] -= 1
            if not node.sources[source]:
                del node.sources[source]
            if not node.sources:
                node.sources = None
                if not node.outputs:
                    # Counts fall along a branch, so nothing below is counted either but for this one
                    # branch, which is the whole rest of it.
                    self._drop(root, parent, token)
                    break
        if not root.children:
            del self.roots[branch[0]]

    def _drop(self, root: Root, parent: Node, token: int) -> None:
        stack = [parent.children.pop(token)]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            root.n_nodes -= 1
            root.n_outputs -= node.outputs > 0
            self.n_nodes -= 1

    def prune(self) -> None:
        """Halve the output counts of the large trees and drop the nodes whose count is 1 or 0.

        Large: above `MAX_TREE` nodes or `MAX_TREE_OUTPUTS` nodes of outputs; all trees, again and again,
        while the whole is above `max_nodes`. Nodes that a source holds stay.
        """
        for token in self._updated & self.roots.keys():
            root = self.roots[token]
            if root.n_nodes > MAX_TREE or root.n_outputs > MAX_TREE_OUTPUTS:
                self._prune_tree(token)
        self._updated.clear()
        while self.n_nodes > self.max_nodes and any(root.n_outputs for root in self.roots.values()):
            for token in list(self.roots):
                self._prune_tree(token)

    def _prune_tree(self, token: int) -> None:
        root = self.roots[token]
        stack: list[Node] = [root]
        while stack:
            node = stack.pop()
            node.ranked = None
            for key, child in list(node.children.items()):
                if child.outputs <= 1 and child.sources is None:
                    self._drop(root, node, key)
                    continue
                if child.outputs == 1:
                    root.n_outputs -= 1
                child.outputs //= 2
                stack.append(child)
        if not root.children:
            del self.roots[token]

    def draft(self, text: Sequence[int], view: View, *, n: int) -> Draft:
        """Guess what follows `text`: at most n - 1 nodes below its last token.

        The longest known suffix of up to `MAX_QUERY` tokens is looked up first; one that knows fewer than
        `BRANCH` nodes gives way to the next shorter, if that is known.
        """
        top, best = None, list[_Found]()
        for start in range(max(0, len(text) - MAX_QUERY), len(text)):
            node = self._find(text[start:])
            found = _best_first(node, view, n - 1 + n // 2 + BRANCH) if node else []
            if found:
                top, best = node, found
            if len(found) >= BRANCH:
                break
        if top is None or n < 2:
            return Draft()
        return _tree(top, _select(top, best, view, n), view)

    def _find(self, suffix: Sequence[int]) -> Node | None:
        node: Node | None = self.roots.get(suffix[0])
        for token in suffix[1:]:
            node = node.children.get(token) if node else None
        return node


class Stream:
    """An output as it grows: branches are counted when they are full, the tail when it ends."""

    def __init__(self, trie: Trie) -> None:
        self._trie = trie
        self._tail: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens of the output."""
        for token in tokens:
            if token in self._trie.eos:
                self.end()
                continue
            self._tail.append(token)
            if len(self._tail) > BRANCH:
                self._trie.add_branch(self._tail)
                del self._tail[0]

    def end(self) -> None:
        """Count what is left."""
        for start in range(len(self._tail) - 1):
            self._trie.add_branch(self._tail[start:])
        self._tail.clear()


_Found = tuple[float, int, int, Node, Node]
"""Minus a node's weight, its place among equals, its token, itself, its parent."""


def _best_first(top: Node, view: View, limit: int, *, outputs_only: bool = False) -> list[_Found]:
    """Nodes below `top` by falling f, or f_out, that is above 0: at most `limit`, of equals the first found.

    Weights fall along a branch, so a parent comes before its children and at most `limit` nodes are opened.
    """
    weigh = view.f_out if outputs_only else view.f
    scale = 1.0 if outputs_only else LAMBDA
    heap: list[_Found] = []
    best: list[_Found] = []
    order, least = 0, 0.0
    node = top
    while True:
        held, free = node.rank()
        for token, child in held:
            w = weigh(child)
            if w > least:
                order += 1
                heappush(heap, (-w, order, token, child, node))
        for token, child in free:
            w = scale * child.outputs
            if w <= least:
                break
            order += 1
            heappush(heap, (-w, order, token, child, node))
        if not heap or len(best) == limit:
            return best
        if len(heap) > 2 * limit:
            # The rest cannot come up any more, nor can what is no heavier than the last of these.
            heap = nsmallest(limit - len(best), heap)
            least = -heap[-1][0]
        best.append(heappop(heap))
        node = best[-1][3]


def _select(top: Node, best: list[_Found], view: View, n: int) -> list[_Found]:
    """The nodes to draft, n - 1 at most; `best`: more than that many by f, if there are."""
    if len(best) < n:
        return best
    if not any(view.f_in(found[3]) for found in best):
        return best[: n - 1]  # f and f_out put them in one order
    outputs = _best_first(top, view, n // 2, outputs_only=True)
    taken = {id(found[3]) for found in outputs}
    rest = [found for found in best if id(found[3]) not in taken]
    return outputs + rest[: n - 1 - len(outputs)]


def _tree(top: Node, chosen: list[_Found], view: View) -> Draft:
    children: dict[int, list[_Found]] = {}
    for found in chosen:
        children.setdefault(id(found[4]), []).append(found)
    for siblings in children.values():
        siblings.sort(key=lambda found: view.f(found[3]), reverse=True)
        siblings.reverse()  # the best, of equals the first found, is popped first
    draft = Draft()
    stack = [(found, -1) for found in children.get(id(top), [])]
    while stack:
        (_, _, token, node, _), parent = stack.pop()
        at = len(draft.tokens)
        draft.tokens.append(token)
        draft.parents.append(parent)
        draft.sources.append(_main_source(node, view))
        stack.extend((below, at) for below in children.get(id(node), []))
    return draft


def _main_source(node: Node, view: View) -> int | None:
    held = node.sources or {}
    for keys, least in ((view.own, 0), (view.corpora, node.outputs)):
        key = max(keys, key=lambda key: held.get(key, 0), default=None)
        if key is not None and held.get(key, 0) > least:
            return key
    return None

"""Engram's addresses: from token ids alone to rows of a table, in exact 64-bit arithmetic.

    x' = P(x)                                  the token's compressed id
    mix_n = XOR_{s<n} x'_{t-s} · a_s           n = 2..N, a_s odd, drawn per layer
    row_{n,j} = mix_n mod p_{n,j} + offset     a prime p for each order n and head j

Products fit a signed 64-bit integer and stay positive. Nothing looks at later tokens. Source: "Conditional
Memory via Scalable Lookup", arXiv 2601.07372, and its demonstration code.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .generator import integers

_SPACES = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")
"""Unicode's; Python counts four separators among them."""


@dataclass(frozen=True)
class Layout:
    """Where the columns of one layer's table lie, by order, then by head, and what is hashed with."""

    max_order: int  # N
    n_heads: int  # K
    multipliers: tuple[int, ...]
    primes: tuple[int, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first row of each column."""
        return tuple(sum(self.primes[:i]) for i in range(len(self.primes)))

    @property
    def n_rows(self) -> int:
        """Rows of the layer's table."""
        return sum(self.primes)


def normalised(text: str) -> str:
    """What two tokens must share to get one id; of nothing but spaces one space stays."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    bare = (c for c in folded if not unicodedata.category(c).startswith("M"))
    folded = "".join(c.lower() for c in bare)  # each by itself: a sigma at the end is one like any other
    folded = re.sub(r"[ \t\r\n]+", " ", folded)
    return folded if folded == " " else folded.strip(_SPACES)


def token_map(texts: Sequence[str], raw: Sequence[str]) -> tuple[torch.Tensor, int]:
    """P: the compressed id of each token, int64 [vocabulary], and how many there are.

    texts: each token decoded alone; raw: its name in the vocabulary, which stands for it where the text is
    part of a character. New ids in the order of first appearance.
    """
    known: dict[str, int] = {}
    ids = []
    for text, name in zip(texts, raw, strict=True):
        key = name if "\ufffd" in text else normalised(text) or text
        ids.append(known.setdefault(key, len(known)))
    return torch.tensor(ids, dtype=torch.int64), len(known)


def map_of(tokenizer: Any, size: int) -> tuple[torch.Tensor, int]:
    """`token_map` of a tokeniser of transformers; an id that names no token stands for itself."""
    names = [name or f"<unnamed {i}>" for i, name in enumerate(_names(tokenizer, size))]
    texts = [
        tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if i < len(tokenizer)
        else names[i]
        for i in range(size)
    ]
    return token_map(texts, names)


def multipliers_of(layer: int, n_compressed: int, max_order: int, seed: int = 0) -> tuple[int, ...]:
    """a_0 .. a_{N-1} of a layer: odd, and so small that a product with an id fits 63 bits."""
    half = (2**63 - 1) // n_compressed // 2
    return tuple(2 * x + 1 for x in integers(seed + 10007 * layer, half, max_order))


def layouts(
    layers: Sequence[int], n_compressed: int, *, max_order: int, n_heads: int, base: int, seed: int = 0
) -> tuple[Layout, ...]:
    """The layouts of several layers: each column has a prime of its own, the next at or above `base`."""
    used: set[int] = set()
    made = []
    for layer in layers:
        primes = []
        for _ in range(2, max_order + 1):
            candidate = base - 1
            for _ in range(n_heads):
                candidate = _next_prime(candidate, used)
                used.add(candidate)
                primes.append(candidate)
        made.append(
            Layout(max_order, n_heads, multipliers_of(layer, n_compressed, max_order, seed), tuple(primes))
        )
    return tuple(made)


def layouts_of(shape: Any) -> tuple[Layout, ...]:
    """The layouts of a folder's model; shape: `engram_folder.Shape`."""
    sizes = {"max_order": shape.max_order, "n_heads": shape.n_heads, "base": shape.base, "seed": shape.seed}
    return layouts(shape.layers, shape.n_compressed, **sizes)


def predecessors(
    ids: torch.Tensor, lengths: Sequence[int], max_order: int, pad: int, history: torch.Tensor | None = None
) -> torch.Tensor:
    """int64 [tokens, N]: column s is the s-th token before, of sequences laid end to end.

    ids: compressed, int64 [tokens]; history int64 [sequences, N - 1]: the tokens before each sequence, the
    latest last; without it `pad`.
    """
    before = torch.full((len(lengths), max_order - 1), pad, dtype=torch.int64, device=ids.device)
    before = before if history is None else history
    rows = []
    for sequence, past in zip(ids.split([*lengths]), before, strict=True):
        if not len(sequence):
            continue
        whole = torch.cat([past, sequence])
        rows.append(whole.unfold(0, max_order, 1).flip(1))
    return torch.cat(rows)


def hash_rows(ids: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Rows of the layer's table, int64 [tokens, (N - 1) · K]; ids as `predecessors` gives them."""
    columns = []
    mix = ids[:, 0] * layout.multipliers[0]
    for order in range(2, layout.max_order + 1):
        mix = mix ^ (ids[:, order - 1] * layout.multipliers[order - 1])
        for head in range(layout.n_heads):
            column = (order - 2) * layout.n_heads + head
            columns.append(mix % layout.primes[column] + layout.offsets[column])
    return torch.stack(columns, 1)


def _names(tokenizer: Any, size: int) -> list[str | None]:
    known = min(size, len(tokenizer))
    return [*tokenizer.convert_ids_to_tokens(range(known)), *[None] * (size - known)]


def _next_prime(above: int, used: set[int]) -> int:
    candidate = above + 1
    while candidate in used or not _is_prime(candidate):
        candidate += 1
    return candidate


def _is_prime(n: int) -> bool:
    if n < 2 or any(n % p == 0 for p in (2, 3, 5, 7, 11, 13, 17) if n != p):
        return False
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17):  # decides every n below 3.4e14
        x = pow(base, odd, n)
        if n == base or x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True

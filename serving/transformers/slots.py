"""Slots of keys and values for a Hugging Face model, and its forward over rows of unequal length.

    keys, values of each layer   [slots, kv_heads, length, head_dim]
    one round                    rows with many new tokens, then rows with one: two forwards at most a kind

Rows are padded on the right. A padded position writes beyond its row's end, where nothing attends and the
next token overwrites it. The mask is additive, 0 or the dtype's least number, `[rows, 1, new, length]`, and
is given to the model ready-made, so that any attention function sees the same one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .batching import Row

if TYPE_CHECKING:
    from .awrs import Vector

_PADDED = 1.25  # at most so many positions are computed for each token fed
_AT_ONCE = 2048  # positions of one forward


class Slots:
    """`batching.Memory` over a causal language model of transformers. `apart`: one row a forward, so that
    a reply depends on its row alone. `threads`: of a CPU."""

    def __init__(self, model: Any, n_slots: int, *, apart: bool = False, threads: int = 1) -> None:
        self._torch = import_module("torch")
        self._model = model
        self._n_slots = n_slots
        self._apart = apart
        self._threads = threads
        self._kept: dict[int, list[Any]] = {}  # of each layer [keys, values]

    def forward(self, rows: Sequence[Row]) -> "list[Vector]":
        """log p of the next token, or of the row's scored ones."""
        replies: list[Vector | None] = [None] * len(rows)
        with inference(self._threads):
            for group in _groups(rows, apart=self._apart):
                for place, reply in zip(group, self._batch([rows[i] for i in group]), strict=True):
                    replies[place] = reply
        return [reply for reply in replies if reply is not None]

    def copy(self, source: int, target: int, length: int) -> None:
        """Positions 0 to `length`, of each layer."""
        with self._torch.inference_mode():
            for tensor in (tensor for kept in self._kept.values() for tensor in kept):
                tensor[target, :, :length] = tensor[source, :, :length]

    def ordinary(self, slot: int) -> dict[int, list[Any]]:
        """Keys and values of a slot, of each layer `[1, kv_heads, length, head_dim]`, in tensors that
        autograd may keep: those made in inference mode are replaced by copies, which the slots go on with."""
        for layer, kept in self._kept.items():  # one after the other: a copy of all would double the memory
            self._kept[layer] = [tensor.clone() for tensor in kept]
        return {layer: [tensor[slot : slot + 1] for tensor in kept] for layer, kept in self._kept.items()}

    # ------------------------------------------------------------ one forward

    def _batch(self, rows: Sequence[Row]) -> "list[Vector]":
        torch = self._torch
        device = self._model.device
        width = max(len(row.tokens) for row in rows)
        padded = [[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows]
        ids = torch.tensor(padded, device=device)
        starts = torch.tensor([row.start for row in rows], device=device)
        positions = starts[:, None] + torch.arange(width, device=device)
        wanted = [range(len(row.tokens) - max(1, len(row.scored)), len(row.tokens)) for row in rows]
        kept = {place: i for i, place in enumerate(sorted({place for places in wanted for place in places}))}
        view = _View(self, [row.slot for row in rows], positions)
        logits = self._model(
            input_ids=ids,
            attention_mask=causal(torch, positions, view.length, self._model.dtype),
            position_ids=positions,
            past_key_values=view,
            use_cache=True,
            logits_to_keep=torch.tensor(list(kept), device=device),
        ).logits
        replies = []
        for i, (row, places) in enumerate(zip(rows, wanted, strict=True)):
            found = logits[i, [kept[place] for place in places]]
            found = found.cpu() if device.type == "mps" else found  # it has no float64
            log_p = torch.log_softmax(found.double(), dim=-1)
            if row.scored:
                told = torch.tensor(row.scored, device=log_p.device)
                log_p = log_p.gather(1, told[:, None])[:, 0]
            else:
                log_p = log_p[0]
            replies.append(log_p.cpu().numpy())
        return replies

    def write(self, layer: int, view: "_View", parts: Sequence[Any]) -> list[Any]:
        """Keep keys and values `[rows, kv_heads, new, head_dim]`; returns the rows' up to `length`."""
        kept = self._kept.get(layer) or [
            part.new_zeros(self._n_slots, part.shape[1], 0, part.shape[3]) for part in parts
        ]
        if kept[0].shape[2] < view.length:
            kept = [self._longer(tensor, view.length) for tensor in kept]
        self._kept[layer] = kept
        rows = view.slots[:, None].expand_as(view.positions)
        for tensor, part in zip(kept, parts, strict=True):
            tensor[rows, :, view.positions] = part.transpose(1, 2)
        if view.run is not None:
            return [tensor[view.run, :, : view.length] for tensor in kept]
        return [tensor[view.slots, :, : view.length] for tensor in kept]

    def _longer(self, tensor: Any, length: int) -> Any:
        """Room doubles, so that growing costs little in all."""
        longer = tensor.new_zeros(*tensor.shape[:2], max(256, 2 * tensor.shape[2], length), tensor.shape[3])
        longer[:, :, : tensor.shape[2]] = tensor
        return longer


class _View:
    """What the model takes for its cache during one forward: the slots of the batch's rows."""

    is_compileable = False

    def __init__(self, kept: Slots, slots: Sequence[int], positions: Any) -> None:
        self._kept = kept
        self.slots = import_module("torch").tensor(slots, device=positions.device)
        self.positions = positions
        self.length = int(positions.max()) + 1
        run = slice(slots[0], slots[0] + len(slots))
        # Neighbouring slots are read in place, others gathered. Told once: asking a GPU at each layer waits.
        self.run = run if list(slots) == list(range(run.start, run.stop)) else None

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Keep a layer's new keys and values; returns all of the rows' so far."""
        keys, values = self._kept.write(layer_idx, self, (keys, values))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given, so nothing depends on it."""
        return 0


@contextmanager
def inference(threads: int) -> Iterator[None]:
    """No gradients, and so many threads of the CPU."""
    with threads_of(threads), import_module("torch").inference_mode():
        yield


@contextmanager
def threads_of(n: int) -> Iterator[None]:
    """So many threads of the CPU; the caller's own setting is put back."""
    torch = import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def last_state(model: Any, prompt: Sequence[int], *, threads: int = 1) -> tuple[float, ...]:
    """Last-layer hidden state of the last token of a text, after the final norm."""
    torch = import_module("torch")
    with inference(threads):
        positions = torch.arange(len(prompt), device=model.device)[None]
        states = model.base_model(
            input_ids=torch.tensor([list(prompt)], device=model.device),
            attention_mask=causal(torch, positions, len(prompt), model.dtype),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return tuple(states[0, -1].float().tolist())


def causal(torch: Any, positions: Any, length: int, dtype: Any) -> Any:
    """Additive mask `[rows, 1, new, length]`: a position attends to itself and to those before it."""
    later = torch.arange(length, device=positions.device) > positions[:, None, :, None]
    mask = torch.zeros(later.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(later, torch.finfo(dtype).min)


def _groups(rows: Sequence[Row], *, apart: bool) -> list[list[int]]:
    """Rows of like length together, in the order of their slots."""
    if apart:
        return [[i] for i in range(len(rows))]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    groups: list[list[int]] = []
    n_fed = 0
    for i in order:
        width = len(rows[i].tokens)
        size = (len(groups[-1]) + 1) * width if groups else 0
        if groups and size <= _PADDED * (n_fed + width) and (size <= _AT_ONCE or width == 1):
            groups[-1].append(i)
            n_fed += width
        else:
            groups.append([i])
            n_fed = width
    return [sorted(group, key=lambda i: rows[i].slot) for group in groups]

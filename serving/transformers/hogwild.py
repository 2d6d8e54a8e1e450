"""Hogwild on a Hugging Face model: its rows are workers, which attend to each other's blocks of one cache.

    block   0        1                2           3, 4, …
            common   before others'   before own  each worker's unfinished step

A token is fed at its position in its own block, so that the model itself rotates its key as it is stored; the
query is turned back, and `serving/kernels/hogwild` turns it for each block. Keys and values of all rows are
written before any row attends. A finished step's keys are turned once, to behind the common ones, and stay in
their slots: only the table of the blocks changes. The rules of steps are in `hogwild_steps.py`.

The blocks of headers are encoded without what stands before them in a view, and a finished step's values stay
as they were: the method's own approximations.
Source: "Hogwild! Inference: Parallel LLM Generation via Concurrent Attention", arXiv 2504.06261.
"""

import copy
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from .. import engram_folder
from ..errors import UsageError
from ..kernels import hogwild
from ..workers import Layout, Workers
from .decoding import Turn
from .hogwild_steps import Group, Written
from .model import Tokeniser, library
from .slots import inference

if TYPE_CHECKING:
    from .awrs import Vector

View: TypeAlias = tuple[int, ...]

COMMON, OTHERS, OWN, FIRST = range(4)
_NAME = "abduce_hogwild"


def views(layout: Layout, n_workers: int) -> list[View]:
    """The blocks that each worker sees, in its order, its own last."""
    mine = range(FIRST, FIRST + n_workers)
    rest = [[other for other in mine if other != own] for own in mine]
    if layout == "interleaved":
        return [(COMMON, own) for own in mine]
    if layout == "contiguous":
        return [(COMMON, *others, OWN, own) for own, others in zip(mine, rest, strict=True)]
    return [(COMMON, OTHERS, *others, OWN, own) for own, others in zip(mine, rest, strict=True)]


class Sharing:
    """A model with this attention. Its weights are the given model's, which itself stays as it is.

    Raises UsageError where keys and queries are not turned by one frequency a pair, whatever the position.
    """

    def __init__(self, model: Any, *, threads: int = 1) -> None:
        if model.config.model_type == engram_folder.MODEL_TYPE:
            raise _unfit(model.config, "its tables are addressed by the tokens before")
        library().AttentionInterface.register(_NAME, _attention)
        tensors = chain(model.parameters(), model.buffers())
        self.model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
        self.model.set_attn_implementation(_NAME)
        self.threads = threads
        self.frequency = self._frequency()

    def _frequency(self) -> torch.Tensor:
        """Radians a position, float32 [head_dim / 2], after it was seen that nothing else tells positions."""
        rotary = getattr(self.model.base_model, "rotary_emb", None)
        frequency = getattr(rotary, "inv_freq", None)
        config = self.model.config.get_text_config()
        if not isinstance(frequency, torch.Tensor):
            raise _unfit(config, "it has no rotary embedding that all layers share")
        frequency = frequency.detach().float().clone()  # growing, a dynamic variant writes into its own
        far = getattr(config, "max_position_embeddings", 4096) + 1  # where dynamic variants change
        with inference(self.threads):
            first, *later = (self._single(at) for at in (0, 3, far))
        for at, seen in zip((3, far), later, strict=True):
            for layer, pairs in enumerate(zip(first, seen, strict=True)):
                for before, after in zip(*pairs, strict=True):
                    if before.shape[-1] != 2 * len(frequency):
                        raise _unfit(config, "its positions turn a part of each head only")
                    turned = hogwild.rotate(before, at * frequency)
                    if (turned - after).abs().max() > _CLOSE * before.abs().max():
                        raise _unfit(config, f"layer {layer} does not turn position {at} by its frequencies")
        return frequency

    def _single(self, position: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each layer, query and key of a token that stands alone at a position. It attends to itself
        only, so that nothing but the turning can depend on where it stands."""
        seen = _Seen()
        at = torch.tensor([[position]], device=self.model.device)
        try:
            self.model(input_ids=at * 0 + 1, position_ids=at, use_cache=False, blocks=seen)
        except TypeError as error:
            raise _unfit(self.model.config, f"its forward takes no attention of ours ({error})") from None
        if len(seen.layers) != self.model.config.get_text_config().num_hidden_layers:
            raise _unfit(self.model.config, "some of its layers do not attend by the attention given")
        return seen.layers


_CLOSE = 0.03  # of the largest number: bfloat16 rounds cosine, sine and product


def _unfit(config: Any, why: str) -> UsageError:
    return UsageError(
        f"Workers cannot share the cache of this {getattr(config, 'model_type', 'unknown')} model: {why}. "
        "Give a model with plain rotary positions, such as Llama, Qwen or SmolLM."
    )


class SharedBlocks:
    """`hogwild_steps.Blocks`: blocks of slots in one pool, seen in `order[w]` by worker w."""

    def __init__(self, sharing: Sharing, order: Sequence[View]) -> None:
        self.sharing = sharing
        self.order = list(order)
        self.blocks: list[list[int]] = [[] for _ in range(1 + max(block for view in order for block in view))]
        self.pools: dict[
            int, list[torch.Tensor]
        ] = {}  # of each layer keys, values [slots, kv_heads, head_dim]

    @property
    def n_slots(self) -> int:
        """Slots in use."""
        return sum(map(len, self.blocks))

    def fill(self, block: int, ids: Sequence[int]) -> None:
        """Put a text into an empty block, as a text of its own."""
        if ids:
            self.extend([((block,), ids)])

    def feed(self, rows: Sequence[Sequence[int]]) -> "list[Vector]":
        """Each worker's new tokens."""
        return self.extend(list(zip(self.order, rows, strict=True)))

    def extend(self, rows: Sequence[tuple[View, Sequence[int]]]) -> "list[Vector]":
        """Append tokens to the last block of each view; log p after them, float64 `[vocabulary]`. Rows are
        padded on the left: such a token is in no block, and what is computed for it is not used."""
        sharing = self.sharing
        device = sharing.model.device
        width = max(len(ids) for _, ids in rows)
        padded = [[0] * (width - len(ids)) + list(ids) for _, ids in rows]
        new = []
        for i, (view, ids) in enumerate(rows):
            for s in range(width - len(ids), width):
                new.append((i, s, self.n_slots))
                self.blocks[view[-1]].append(self.n_slots)
        lengths = [len(block) for block in self.blocks]
        longest = max(lengths)
        slots = torch.tensor([block + [-1] * (longest - len(block)) for block in self.blocks])
        own = torch.tensor([lengths[view[-1]] for view, _ in rows])
        positions = (own[:, None] - width + torch.arange(width)).clamp_min(0)
        loc = hogwild.locations([view for view, _ in rows], lengths, width)
        row, place, slot = torch.tensor(new, device=device).T
        # A padding token would see from before its own block on: with -1 everywhere it sees nothing.
        for i, (_, ids) in enumerate(rows):
            loc[:, i, : width - len(ids)] = -1
        at = _Round(
            self.pools,
            sharing.frequency,
            positions.to(device),
            loc.to(device),
            slots.to(device, torch.int32),
            row,
            place,
            slot,
            self.n_slots,
        )
        with inference(sharing.threads):
            logits = sharing.model(
                input_ids=torch.tensor(padded, device=device),
                position_ids=at.positions,
                use_cache=False,
                logits_to_keep=1,
                blocks=at,
            ).logits
            log_p = torch.log_softmax(logits[:, -1].cpu().double(), -1)
        return list(log_p.numpy())

    def merge(self, worker: int) -> None:
        """A worker's block behind the common ones: its keys turned to there, its values as they are."""
        own, common = self.blocks[self.order[worker][-1]], self.blocks[COMMON]
        if own:
            slots = torch.tensor(own, device=self.sharing.model.device)
            with torch.inference_mode():
                for keys, _ in self.pools.values():
                    keys[slots] = hogwild.moved(keys[slots], len(common), self.sharing.frequency)
        common += own
        own.clear()


class _Round(NamedTuple):
    """One forward: `row`, `place` and `slot` of each new token that is no padding."""

    pools: dict[int, list[torch.Tensor]]
    frequency: torch.Tensor
    positions: torch.Tensor
    loc: torch.Tensor
    slots: torch.Tensor
    row: torch.Tensor
    place: torch.Tensor
    slot: torch.Tensor
    n_slots: int

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """All `[rows, heads, new, head_dim]`, as the model gives them; `[rows, new, heads, head_dim]`."""
        parts = (key, value)
        pools = self.pools.setdefault(
            layer, [part.new_zeros(0, part.shape[1], part.shape[3]) for part in parts]
        )
        for i, part in enumerate(parts):
            if (held := len(pools[i])) < self.n_slots:
                more = pools[i].new_zeros(max(256, held, self.n_slots - held), *pools[i].shape[1:])
                pools[i] = torch.cat([pools[i], more])
            pools[i][self.slot] = part[self.row, :, self.place]
        angle = self.positions[..., None, None] * self.frequency
        unturned = hogwild.rotate(query.transpose(1, 2), -angle)
        keys, values = pools
        return hogwild.attend(unturned, keys, values, self.slots, self.loc, self.frequency, scale)


class _Seen:
    """Takes down what each layer asks for; every token sees itself alone."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `_Round.attend`."""
        self.layers.append((query.float(), key.float()))
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2)


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None,
    *, scaling: float, blocks: _Round | _Seen, **beside: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """An attention function of transformers."""
    for name in ("softcap", "s_aux"):
        if beside.get(name) is not None:
            raise UsageError(f"Workers cannot share the cache of a model whose attention has {name}.")
    return blocks.attend(module.layer_idx, query, key, value, scaling), None


# ---------------------------------------------------------------- a group of workers


def written(
    sharing: Sharing,
    known: Tokeniser,
    workers: Workers,
    turn: Turn,
    seed: int,
    *,
    context: int,
    stopped: Callable[[], bool],
) -> Written:
    """One transcript, after the turn's prompt."""

    def encode(text: str) -> tuple[int, ...]:
        return known.encode(text, beginning=False)

    common = turn.prompt + encode(workers.past)
    first = () if workers.names[0] else common[-1:]  # without a mark, what its own first token follows
    common = common[: len(common) - len(first)]
    blocks = SharedBlocks(sharing, views(workers.layout, len(workers.names)))
    given = {COMMON: common}
    if workers.layout != "interleaved":
        given |= {OTHERS: encode(workers.others), OWN: encode(workers.own)}
    for block, ids in given.items():
        blocks.fill(block, ids)
    group = Group(workers, turn, encode, banned(known) if workers.names[0] else known.ends, first, stopped)
    done = group.write(blocks, seed, room=context - blocks.n_slots)
    return done._replace(n_given=done.n_given + sum(map(len, given.values())))


@lru_cache(maxsize=8)
def banned(known: Tokeniser) -> tuple[int, ...]:
    """No worker ends the turn of all, begins one, ends the thinking, or writes a header's "#"."""
    begins = {known.hf.bos_token_id} - {None}
    thought = known.encode(_END_OF_THINKING, beginning=True)
    hashes = {i for i, text in enumerate(known.vocabulary.tokens) if _HASHES.fullmatch(text)}
    return tuple(sorted({*known.ends, *begins, *hashes, *(thought if len(thought) == 1 else ())}))


_END_OF_THINKING = "</think>"
_HASHES = re.compile(rb"\s*#+\s*")

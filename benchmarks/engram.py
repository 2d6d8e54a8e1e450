"""What does a table of n-grams (Engram) bring at equal parameters, are its addresses as good as chance, and
what does it wait for from the host?

    python benchmarks/engram.py [train] [hash] [host] [--seeds 3] [--steps 300] [--tokenizer FOLDER]
                                [--device cuda]

The text is Python's own reference (`pydoc_data.topics`, 465,000 characters); every eighth topic is held out.
A tokeniser of 1,024 tokens is trained on the rest. The model is a transformer of two layers, 32 wide; the
sparse budget, 96,000 parameters, goes to one Engram layer (before the second block), to wider feed-forward
parts, or to both.

    train   held-out loss by the share of the budget in the table, over seeds; then without the gate, without
            the tokens' compression, with bigrams only, with 4-grams, without the convolution; gates by token
    hash    distinct n-grams and rows with and without compression, collisions, pairs that share all rows
    host    a table in host memory: rows kept on the device and hits, bit equality, waits, tokens a second

Needs torch and tokenizers.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import torch
from arguments import checked, command
from gpu.engram import forms, zipf
from printing import met
from torch import nn
from torch.nn import functional as F
from training import step

from abduce.serving.kernels.engram import hash_rows, layouts, predecessors, reference, token_map
from abduce.serving.kernels.engram.host_table import HostTable
from abduce.serving.kernels.engram.module import INIT, Addresses, Engram

SIZE, CONTEXT, BATCH, WIDTH, D_HEAD = 1024, 64, 8, 32, 8
BUDGET = 96_000
PAD = 0


# ---------------------------------------------------------------- text


@dataclass(frozen=True)
class Text:
    """Token ids, the tokens' names and what each writes."""

    train: torch.Tensor
    held_out: torch.Tensor
    names: list[str]
    texts: list[str]


def parts() -> tuple[list[str], list[str]]:
    """The topics to learn from, and those held out."""
    names = sorted(topics)
    return [name for i, name in enumerate(names) if i % 8], names[::8]


def tokeniser(kept: list[str]) -> Any:
    """Of the text itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator((topics[name] for name in kept), trainer)
    return made


def text() -> Text:
    """Python's reference in tokens of its own."""
    kept, held = parts()
    known = tokeniser(kept)
    ids = [[i for name in part for i in [PAD, *known.encode(topics[name]).ids]] for part in (kept, held)]
    vocabulary = [known.id_to_token(i) for i in range(SIZE)]
    written = [known.decode([i]) for i in range(SIZE)]
    return Text(torch.tensor(ids[0]), torch.tensor(ids[1]), vocabulary, written)


# ---------------------------------------------------------------- the model


class Block(nn.Module):
    """Causal attention and a feed-forward part of `hidden`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, tokens, WIDTH]."""
        q, k, v = (z.unflatten(-1, (4, -1)).transpose(1, 2) for z in self.qkv(self.norms[0](x)).chunk(3, -1))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Ungated(Engram):
    """With a gate that is always open."""

    def forward(self, h: torch.Tensor, rows: torch.Tensor, e: torch.Tensor | None = None) -> torch.Tensor:
        """As Engram's, with α = 1."""
        kv = self.project(reference.lookup(self.table, rows.flatten(0, 1)))
        u = kv[:, -self.d :].view(*h.shape[:2], 1, self.d)
        return h + self._convolved(u, True)[:, :, 0]


@dataclass(frozen=True)
class Plan:
    """`share` of the budget in the table, whose rows begin at `first_rows`; the rest widens the feed-forward
    parts."""

    share: float
    max_order: int = 3
    compress: bool = True
    gated: bool = True
    convolve: bool = True
    first_rows: float = INIT


class Model(nn.Module):
    """A language model whose parameters are as many whatever the plan, but for rounding."""

    def __init__(self, plan: Plan, corpus: Text) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(SIZE, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        nn.init.normal_(self.embed.weight, std=0.05)
        nn.init.normal_(self.place.weight, std=0.05)
        self.norm = nn.LayerNorm(WIDTH)
        left, self.engram = BUDGET, None
        if plan.share:
            columns = 2 * (plan.max_order - 1)
            rows = int(plan.share * BUDGET / D_HEAD) - columns * 2 * WIDTH  # the projection counts as well
            ids, n = token_map(corpus.texts, corpus.names) if plan.compress else (torch.arange(SIZE), SIZE)
            [layout] = layouts([1], n, max_order=plan.max_order, n_heads=2, base=rows // columns)
            self.addresses = Addresses(ids, (layout,), pad=PAD)
            kind = Engram if plan.gated else Ungated
            self.engram = kind(layout, WIDTH, D_HEAD, convolve=plan.convolve)
            self.engram.table.data *= plan.first_rows / INIT
            left -= sum(p.numel() for p in self.engram.parameters())
        self.blocks = nn.ModuleList(Block(4 * WIDTH + max(0, left) // (4 * WIDTH + 2)) for _ in range(2))

    def forward(self, ids: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [batch, tokens, SIZE]."""
        x = self.embed(ids) + self.place.weight[: ids.shape[1]]
        x = self.blocks[0](x)
        if self.engram is not None:
            x = self.engram(x, self.addresses(ids)[0] if rows is None else rows)
        return self.norm(self.blocks[1](x)) @ self.embed.weight.T


def batches(ids: torch.Tensor, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Random windows, int64 [BATCH, CONTEXT + 1]."""
    dice = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - CONTEXT, (BATCH,), generator=dice)
        yield torch.stack([ids[i : i + CONTEXT + 1] for i in starts.tolist()])


def trained(plan: Plan, corpus: Text, steps: int, seed: int, peak: float = 3e-3) -> tuple[Model, float]:
    """The model and its held-out loss, in nats a token; `peak`: the learning rate's."""
    torch.manual_seed(seed)
    model = Model(plan, corpus)
    table = [model.engram.table] if model.engram is not None else []
    rest = [p for p in model.parameters() if all(p is not t for t in table)]
    groups = [{"params": rest, "lr": peak, "weight_decay": 0.01}]
    if table:  # the source: five times the rate, and no decay
        groups.append({"params": table, "lr": 5 * peak, "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(groups)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, (s + 1) / 20) * (1 - s / steps))
    for window in batches(corpus.train, steps, seed):
        loss = F.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        step(model, loss, optimiser, rate)
    model.eval()
    with torch.no_grad():
        windows = corpus.held_out[: len(corpus.held_out) // (CONTEXT + 1) * (CONTEXT + 1)]
        rows = windows.view(-1, CONTEXT + 1).split(64)
        losses = [
            F.cross_entropy(model(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten(), reduction="sum") for w in rows
        ]
    return model, float(sum(losses)) / (CONTEXT * sum(map(len, rows)))


# ---------------------------------------------------------------- training


def train(corpus: Text, steps: int, seeds: int) -> None:
    """The table of losses, and gates by token."""
    n_compressed = token_map(corpus.texts, corpus.names)[1]
    print(
        f"{len(corpus.train):,} tokens to learn from, {len(corpus.held_out):,} held out, {steps} steps of "
        f"{BATCH * CONTEXT} tokens; {SIZE} tokens, {n_compressed} after compression\n"
    )
    plans = {
        f"{share:.0%} of the budget in the table": Plan(share) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    }
    best = 0.8
    plans |= {
        "  no gate": Plan(best, gated=False),
        "  no compression": Plan(best, compress=False),
        "  bigrams only": Plan(best, max_order=2),
        "  up to 4-grams": Plan(best, max_order=4),
        "  no convolution": Plan(best, convolve=False),
    }
    base: dict[str, list[float]] = {}
    print(f"{'':34} parameters   held-out loss, mean and each seed        to 0 %    to 80 %")
    for name, plan in plans.items():
        losses = []
        for seed in range(seeds):
            model, loss = trained(plan, corpus, steps, seed)
            losses.append(loss)
            if plan == Plan(best) and seed == 0:
                kept = model
        base[name] = losses
        n = sum(p.numel() for p in model.parameters())
        told = f"{name:34} {n:10,}   {statistics.mean(losses):.3f}  {' '.join(f'{x:.3f}' for x in losses):24}"
        for other in ("0% of the budget in the table", f"{best:.0%} of the budget in the table"):
            if other in base:
                gains = [a - b for a, b in zip(losses, base[other], strict=True)]
                told += f"   {statistics.mean(gains):+.3f}"
        print(told, flush=True)
    shares = list(base)[:6]
    without, mean = base[shares[0]], {name: statistics.mean(base[name]) for name in shares}
    with_it = all(x < y for x, y in zip(base[shares[4]], without, strict=True))
    judged(f"with {shares[4]}, below without it at each seed", with_it)
    best_at = min(shares, key=mean.__getitem__)
    rising = [mean[name] for name in shares[: shares.index(best_at) + 1]]
    judged(f"falls up to {best_at}, and not after", rising == sorted(rising, reverse=True))
    show_gates(kept, corpus)


def judged(bar: str, held: bool) -> None:
    """One line for a bar."""
    print(f"  {bar}: {met(held)}")


def gates(model: Model, corpus: Text) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates at the last token of frequent names of several tokens, and at other tokens."""
    ids = corpus.train[: 400 * CONTEXT].view(-1, CONTEXT)
    with torch.no_grad():
        x = model.blocks[0](model.embed(ids) + model.place.weight)
        alpha = model.engram.alpha(x, model.addresses(ids)[0])[..., 0]
    words = [name.startswith("Ġ") or not name[:1].isalpha() for name in corpus.names]
    starts = torch.tensor(words)[ids]
    ends = F.pad(starts[:, 1:], (0, 1), value=False) & ~starts  # the next token begins a word
    counted: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for b, t in ends.nonzero().tolist():
        first = t
        while first > 0 and not starts[b, first]:
            first -= 1
        if t - first >= 2:
            counted.setdefault(tuple(ids[b, first : t + 1].tolist()), []).append((b, t))
    places = [at for found in counted.values() if len(found) >= 5 for at in found]
    names = torch.zeros_like(starts)
    for b, t in places:
        names[b, t] = True
    return alpha[names], alpha[~names]


def show_gates(model: Model, corpus: Text) -> None:
    """Both kinds of gates, and their difference."""
    one, other = gates(model, corpus)
    spread = (one.var() / len(one) + other.var() / len(other)) ** 0.5
    print(
        f"\ngates: {one.mean():.3f} at the last of {len(one)} frequent words of three tokens or more, "
        f"{other.mean():.3f} elsewhere; difference {one.mean() - other.mean():+.3f} ± {1.96 * spread:.3f}"
    )
    judged("higher there", bool(one.mean() - other.mean() > 1.96 * spread))


# ---------------------------------------------------------------- addresses


def hashes(corpus: Text, folder: str | None) -> None:
    """Compression and collisions."""
    sets: dict[str, tuple[torch.Tensor, list[str], list[str]]] = {
        f"tokeniser of {SIZE}": (corpus.train, corpus.texts, corpus.names)
    }
    if folder:
        from transformers import AutoTokenizer

        known = AutoTokenizer.from_pretrained(folder)
        names = known.convert_ids_to_tokens(range(len(known)))
        ids = torch.tensor(known("\n".join(topics.values()))["input_ids"])
        sets[f"tokeniser of {len(known):,}"] = (
            ids,
            known.batch_decode([[i] for i in range(len(known))]),
            names,
        )
    for name, (ids, texts, names) in sets.items():
        compressed, n = token_map(texts, names)
        fewer = [f"ids {1 - n / len(names):.1%}"]
        for order in (2, 3):
            plain = len(ids.unfold(0, order, 1).unique(dim=0))
            fewer.append(
                f"{order}-grams {1 - len(compressed[ids].unfold(0, order, 1).unique(dim=0)) / plain:.1%}"
            )
        print(f"{name}: fewer by compression: {', '.join(fewer)}")
    compressed, n = token_map(corpus.texts, corpus.names)
    grams = compressed[corpus.train].unfold(0, 3, 1).unique(dim=0).flip(1)  # Zipf's text, each trigram once
    [layout] = layouts([1], n, max_order=3, n_heads=8, base=20_000)
    rows = hash_rows(grams, layout)[:, 8:]
    print(f"{len(grams):,} distinct trigrams in 8 heads: rows used, beside those of chance")
    for head in range(8):
        size = layout.primes[8 + head]
        expected = size * (1 - (1 - 1 / size) ** len(grams))
        print(f"  prime {size}: {len(rows[:, head].unique()):6d}  {expected:9.1f}")
    print(f"  trigrams that share all 8 rows with another: {len(grams) - len(rows.unique(dim=0))}")
    [layout] = layouts([1], 99_092, max_order=3, n_heads=8, base=646_400)
    dice, together, n_pairs = torch.Generator().manual_seed(0), 0, 10_000_000
    for _ in range(n_pairs // 500_000):
        one, other = torch.randint(0, 99_092, (2, 500_000, 3), generator=dice)
        one, other = hash_rows(one, layout)[:, 8:], hash_rows(other, layout)[:, 8:]
        together += int((one == other).all(1).sum())
    print(f"{n_pairs:,} random pairs of trigrams, 8 heads of about 646,400: {together} share all rows")


# ---------------------------------------------------------------- a table in host memory


def host(corpus: Text, device: torch.device) -> None:
    """Hits by the share of rows that are kept, on this text and on Zipf's law, and waits."""
    compressed, n = token_map(corpus.texts, corpus.names)
    [layout] = layouts([1], n, max_order=3, n_heads=8, base=20_011)
    near = predecessors(compressed[corpus.train], [len(corpus.train)], 3, PAD)
    traces = {"this text's n-grams": hash_rows(near, layout).split(256)}
    size = layout.n_rows
    for power in (1.0, 1.2):
        traces[f"Zipf, exponent {power}"] = zipf(size, 200 * 256, power).split(256)
    table = torch.randn(size, 80, generator=torch.Generator().manual_seed(0)).bfloat16()
    print(f"{size:,} rows of 160 bytes; steps of 256 tokens, 16 rows each; the first tenth warms up")
    for name, trace in traces.items():
        for share in (0.01, 0.05, 0.2):
            held = HostTable(table, n_kept=int(share * size))
            for rows in trace[: len(trace) // 10]:
                held(rows)
            held.counts = type(held.counts)()
            equal = all(
                torch.equal(held(rows), reference.lookup(table, rows)) for rows in trace[len(trace) // 10 :]
            )
            print(
                f"  {name:22} {share:4.0%} kept: {held.counts.hit_rate:6.1%} of distinct rows were there; "
                f"bits equal: {equal}"
            )
            held.close()
    waits(table, traces["this text's n-grams"], device)


def waits(table: torch.Tensor, trace: Sequence[torch.Tensor], device: torch.device) -> None:
    """Waits of a step whose layers before the Engram layer take their time. On the CPU the "device" is the
    same memory: what is measured there is that the fetch runs beside the layers."""
    d = 4096 if device.type == "cuda" else 256
    x, w, back = (torch.randn(*shape, device=device) for shape in ((256, d), (4, d, 4 * d), (4, 4 * d, d)))
    print(f"{'table':26} tokens/s   wait, share of a step")
    for name, form in forms(table.to(device)).items():
        begun, n = 0.0, 0
        for i, rows in enumerate(trace[:50]):
            if i == 10:  # what was before warms up
                settle(device)
                begun, n = time.perf_counter(), 0
                if form.table is not None:
                    form.table.counts.wait_s = 0.0
            ticket = form.begin(rows)
            for a, b in zip(w, back, strict=True):
                x = torch.tanh(x @ a) @ b / d
            form.end(ticket)
            n += len(rows)
        settle(device)
        took = time.perf_counter() - begun
        told = f"{form.table.counts.wait_s / took:.1%}" if form.table is not None else ""
        print(f"{name:26} {n / took:8,.0f}   {told}")


def settle(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """What is asked for; all of it by default."""
    parser = command(__doc__)
    known = ("train", "hash", "host")
    parser.add_argument("parts", nargs="*", default=known)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokenizer", help="a Hugging Face folder whose compression is told as well")
    parser.add_argument("--device", default="cpu", help="where `host` brings the rows")
    options = parser.parse_args()
    parts = checked(parser, options.parts, known)
    torch.set_num_threads(1)
    corpus = text()
    if "train" in parts:
        train(corpus, options.steps, options.seeds)
    if "hash" in parts:
        hashes(corpus, options.tokenizer)
    if "host" in parts:
        host(corpus, torch.device(options.device))


if __name__ == "__main__":
    main()

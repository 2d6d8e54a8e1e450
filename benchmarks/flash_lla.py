"""Does local linear attention beat softmax and linear attention on streams and tracking, and how fast is it?

    python benchmarks/flash_lla.py regression [--streams 16]
    python benchmarks/flash_lla.py tracking [--steps 400] [--seeds 3]
    python benchmarks/flash_lla.py solver

`regression`: nothing is trained. A stream has 1,024 pairs (x, y), each y predicted from the pairs before it.
x lies on a sphere of radius √d, near one of four random centres; y = W x + 0.1 noise with one W a centre; 8
segments of 128 pairs visit the four centres, then visit them again; "mixed" puts the pairs in random order.
Bandwidth, ridge and forgetting of each method are the best of a grid on 6 other streams. Printed: squared
error over the variance of y, in the first segment, in the next three, in the four returns, in the first and
last quarter of segments 2 to 8, and its ratio to LLA's over segments 2 to 8 with a 95 % bootstrap interval
over streams.

`tracking`: permutations of three things, the product so far is asked for at each token; two layers with a
feed-forward part. Models are trained from the same seeds on the same data; accuracy is on 512 new sequences.
Recall has a script of its own, `flash_lla_recall.py`.

`solver`: relative error of the output by iterations of conjugate gradients in float64, and iterations until
each row's residual is 1e-6 of the first. Needs torch.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from arguments import command
from intervals import Interval, resampled
from printing import table_head, table_row
from torch import nn
from torch.nn import functional as F
from training import step

from abduce.serving.kernels.flash_lla import reference
from abduce.serving.kernels.flash_lla.module import LocalLinearAttention

Tensor = torch.Tensor
Predict = Callable[..., Tensor]


def generator(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- test-time regression

N_REGIONS, SEGMENT, LENGTH, NOISE = 4, 128, 1024, 0.1


def streams(n: int, d: int, mixed: bool, seed: int) -> tuple[Tensor, Tensor]:
    """x and y, [n, LENGTH, d]."""
    g = generator(seed)
    centre, w = torch.randn(n, N_REGIONS, d, generator=g), torch.randn(n, N_REGIONS, d, d, generator=g)
    region = torch.arange(LENGTH) // SEGMENT % N_REGIONS
    if mixed:
        region = region[torch.randperm(LENGTH, generator=g)]
    x = F.normalize(centre[:, region] + torch.randn(n, LENGTH, d, generator=g), dim=-1) * d**0.5
    y = torch.einsum("nlij,nlj->nli", w[:, region] / d**0.5, x)
    return x, y + NOISE * torch.randn(y.shape, generator=g)


def lla(x: Tensor, y: Tensor, sharpness: float, ridge: float) -> Tensor:
    """Local linear attention."""
    q, k, v = x[:, 1:, None], x[:, :-1, None], y[:, :-1, None]
    scale = sharpness / x.shape[-1] ** 0.5
    return torch.cat(
        [
            reference.flash_lla(*one, torch.tensor([ridge]), scale)
            for one in zip(q.split(1), k.split(1), v.split(1), strict=True)
        ]
    )[:, :, 0]


def softmax(x: Tensor, y: Tensor, sharpness: float) -> Tensor:
    """Softmax attention."""
    q, k, v = x[:, None, 1:], x[:, None, :-1], y[:, None, :-1]
    scale = sharpness / x.shape[-1] ** 0.5
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)[:, 0]


def linear(x: Tensor, y: Tensor, gain: float, keep: float) -> Tensor:
    """Linear attention with decay: gain times the decayed mean of (q·k) v."""
    w = decay(keep)
    return gain * ((x[:, 1:] @ x[:, :-1].transpose(1, 2)) * (w / w.sum(1, keepdim=True))) @ y[:, :-1]


def least_squares(x: Tensor, y: Tensor, ridge: float, keep: float) -> Tensor:
    """One affine map of all that was seen, by ridge regression with forgetting (MesaNet's optimum)."""
    x = F.pad(x, (0, 1), value=1.0)
    eye, out = torch.eye(x.shape[2]), []
    for one, answer in zip(x, y, strict=True):
        k, v, w = one[:-1], answer[:-1], decay(keep)
        square = (w @ (k[:, :, None] * k[:, None]).flatten(1)).unflatten(1, eye.shape) + ridge * eye
        s = torch.linalg.solve(square, one[1:])
        out.append((s @ k.T * w) @ v)
    return torch.stack(out)


def delta_rule(x: Tensor, y: Tensor, rate: float) -> Tensor:
    """DeltaNet: one step of gradient descent a pair."""
    k = F.normalize(x, dim=-1)
    s, out = torch.zeros(len(x), y.shape[2], x.shape[2]), []
    for t in range(LENGTH - 1):
        miss = y[:, t] - torch.einsum("nij,nj->ni", s, k[:, t])
        s = s + rate * miss[:, :, None] * k[:, t, None]
        out.append(torch.einsum("nij,nj->ni", s, k[:, t + 1]))
    return torch.stack(out, 1)


def decay(keep: float) -> Tensor:
    """Weights of what was seen, [rows, columns]: keep ** age."""
    at = torch.arange(LENGTH - 1.0)
    age = at[:, None] - at
    return torch.where(age >= 0, keep ** age.clamp_min(0), 0.0)


METHODS: dict[str, tuple[Predict, dict[str, tuple[float, ...]]]] = {
    "LLA": (lla, {"sharpness": (1, 2, 4, 8, 16), "ridge": (0.001, 0.01, 0.1, 1.0)}),
    "softmax attention": (softmax, {"sharpness": (1, 2, 4, 8, 16, 32)}),
    "linear attention": (linear, {"gain": (0.25, 0.5, 1, 2), "keep": (0.9, 0.97, 0.99, 1.0)}),
    "DeltaNet": (delta_rule, {"rate": (0.1, 0.2, 0.4, 0.7, 1.0)}),
    "least squares": (least_squares, {"ridge": (0.01, 0.1, 1.0, 10.0), "keep": (1.0,)}),
    "least squares, forgetting": (least_squares, {"ridge": (0.1, 1.0), "keep": (0.9, 0.95, 0.97, 0.99)}),
}


def errors(predict: Predict, data: tuple[Tensor, Tensor], setting: dict[str, float]) -> Tensor:
    """Squared error over the variance of y, [streams, LENGTH - 1]."""
    x, y = data
    return (predict(x, y, **setting) - y[:, 1:]).square().mean(-1) / y.square().mean()


def tuned(
    predict: Predict, grid: dict[str, tuple[float, ...]], data: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """The setting with the least error."""
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return min(settings, key=lambda setting: float(errors(predict, data, setting).mean()))


def ratio_interval(ours: Tensor, theirs: Tensor) -> Interval:
    """theirs / ours, of means over streams, with a 95 % bootstrap interval."""

    def ratio(pairs: Sequence[tuple[float, float]]) -> float:
        mine, other = (fmean(column) for column in zip(*pairs, strict=True))
        return other / mine

    pairs = list(zip(ours.tolist(), theirs.tolist(), strict=True))
    return ratio(pairs), *resampled(pairs, ratio)


def regression(options: argparse.Namespace) -> None:
    """A table for each d."""
    for d, mixed in ((8, False), (16, False), (32, False), (16, True)):
        train, test = streams(6, d, mixed, seed=1), streams(options.streams, d, mixed, seed=2)
        order = "mixed" if mixed else "in segments"
        print(f"\nd = {d}, {order}, {options.streams} streams of {LENGTH}; error / variance")
        columns = ("method", "setting", "segment 1", "2 to 4", "5 to 8", "quarter 1", "quarter 4")
        table_head(*columns, "× LLA, 2 to 8")
        for name, (predict, grid) in METHODS.items():
            setting = tuned(predict, grid, train)
            e = F.pad(errors(predict, test, setting), (1, 0), value=1.0).unflatten(1, (-1, SEGMENT))
            later = e[:, 1:]
            if name == "LLA":
                ours = later.mean((1, 2))
            times, low, high = ratio_interval(ours, later.mean((1, 2)))
            figures = [
                e[:, 0],
                e[:, 1:4],
                e[:, 4:],
                later[:, :, : SEGMENT // 4],
                later[:, :, -SEGMENT // 4 :],
            ]
            cells = [name, ", ".join(f"{key} {value:g}" for key, value in setting.items())]
            cells += [f"{float(part.mean()):.3f}" for part in figures]
            cells += ["1" if name == "LLA" else f"{times:.2f} ({low:.2f} – {high:.2f})"]
            table_row(*cells)


# ---------------------------------------------------------------- trained models


class Other(LocalLinearAttention):
    """Softmax or linear attention with the same projections."""

    def __init__(self, kind: str, width: int, n_heads: int) -> None:
        super().__init__(width, n_heads)
        self.kind, self.raw_ridge.requires_grad = kind, False

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """y as x."""
        q, k, v = (
            part(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.kind == "softmax":
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # linear, with the feature map elu + 1
            w = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(2, 3)).tril()
            o = w / w.sum(-1, keepdim=True) @ v
        y: Tensor = self.o_proj(o.transpose(1, 2).flatten(2))
        return y


class Model(nn.Module):
    """Embedding of a token and its place, layers of attention and a feed-forward part, a head."""

    def __init__(self, kind: str, size: int, length: int, n_layers: int) -> None:
        super().__init__()
        width, n_heads = 32, 2
        self.embed, self.place = nn.Embedding(size, width), nn.Embedding(length, width)
        self.attend = nn.ModuleList(
            LocalLinearAttention(width, n_heads) if kind == "LLA" else Other(kind, width, n_heads)
            for _ in range(n_layers)
        )
        self.think = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(n_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * n_layers + 1))
        self.head = nn.Linear(width, size)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, length, size]."""
        x = self.embed(ids) + self.place.weight[: ids.shape[1]]
        for i, (attend, think) in enumerate(zip(self.attend, self.think, strict=True)):
            x = x + attend(self.norms[2 * i](x))
            x = x + think(self.norms[2 * i + 1](x))
        out: Tensor = self.head(self.norms[-1](x))
        return out

    def ridges(self) -> str:
        """The λ learnt, or nothing."""
        layers = [layer for layer in self.attend if not isinstance(layer, Other)]
        return " ".join(f"{value:.2g}" for layer in layers for value in layer.ridge.tolist())


PERMUTATIONS = torch.tensor(list(itertools.permutations(range(3))))
N_MOVES = 6


def tracking_batch(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Permutations by number, and the number of the product so far."""
    ids = torch.randint(0, 6, (n, N_MOVES), generator=g)
    state, out = torch.arange(3).expand(n, 3), []
    for t in range(N_MOVES):
        state = state.gather(1, PERMUTATIONS[ids[:, t]])
        out.append((state[:, None] == PERMUTATIONS).all(2).int().argmax(1))
    return ids, torch.stack(out, 1)


def trained(model: Model, steps: int, seed: int) -> tuple[float, float]:
    """Accuracy on new sequences, and CPU seconds."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps, pct_start=0.1)
    begun, g = time.process_time(), generator(seed + 100)
    for _ in range(steps):
        ids, should = tracking_batch(64, g)
        loss = F.cross_entropy(model(ids).flatten(0, 1), should.flatten())
        step(model, loss, optimiser, rate)
    with torch.inference_mode():
        ids, should = tracking_batch(512, generator(10_000))
        right = (model(ids).argmax(-1) == should).float().mean()
    return float(right), time.process_time() - begun


def tracking(options: argparse.Namespace) -> None:
    """State tracking: accuracy of each kind and seed."""
    print(f"{N_MOVES} permutations of three things, two layers; by chance {1 / 6:.3f}")
    print(f"{options.steps} steps of 64 sequences, width 32, 2 heads; ridge begins at 1")
    for kind in ("softmax", "linear", "LLA"):
        right, seconds, ridges = [], 0.0, ""
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            model = Model(kind, 6, N_MOVES, n_layers=2)
            accuracy, taken = trained(model, options.steps, seed)
            right.append(accuracy)
            seconds, ridges = seconds + taken, model.ridges()
        shown = " ".join(f"{accuracy:.3f}" for accuracy in right)
        mean = sum(right) / len(right)
        learnt = f"   λ of the last: {ridges}" if ridges else ""
        print(
            f"{kind:8} mean {mean:.3f}   seeds {shown}   {seconds / options.seeds:.0f} CPU s each{learnt}",
            flush=True,
        )


# ---------------------------------------------------------------- the solver


def solver(options: argparse.Namespace) -> None:
    """The error curve, the worst of the seeds."""
    n, counts = 512, (4, 8, 16, 32)
    table_head("d", "λ", *(f"{count} iterations" for count in counts), "until 1e-6: mean, most")
    for d, lam in itertools.product((64, 128), (0.1, 1.0, 10.0)):
        worst, taken = dict.fromkeys(counts, 0.0), []
        for seed in range(options.seeds):
            g = generator(seed)
            q, k, v = (torch.randn(1, n, 1, d, generator=g, dtype=torch.float64) for _ in range(3))
            ridge, scale = torch.tensor([lam], dtype=torch.float64), d**-0.5
            exact = reference.solved(q, k, v, ridge, scale)
            for count in counts:
                found = reference.solved(q, k, v, ridge, scale, iterations=count)
                worst[count] = max(worst[count], float((found - exact).norm() / exact.norm()))
            p = torch.softmax(
                (q[0, :, 0] @ k[0, :, 0].T * scale).masked_fill(reference.hidden(q, k, 0), -torch.inf), -1
            )
            mean = p @ k[0, :, 0]
            right = mean - q[0, :, 0]
            taken.append(reference.conjugate_gradient(p, k[0, :, 0], mean, ridge, right, 200)[1])
        rows = torch.cat(taken)
        cells = (f"{worst[count]:.0e}" for count in counts)
        table_row(d, f"{lam:g}", *cells, f"{float(rows.mean()):.1f}, {int(rows.max())}")


def main() -> None:
    """Run one part."""
    parser = command(__doc__)
    parts = {"regression": regression, "tracking": tracking, "solver": solver}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    parts[options.part](options)


if __name__ == "__main__":
    main()

"""Does one layer of local linear attention recall at least as much as softmax and linear attention, each
tuned alike?

    python benchmarks/flash_lla_recall.py [wide] [narrow] [many] [--seeds 4|8] [--rows FILE]

16 pairs of key and value tokens, then the keys in another order; right is each key's value. A token is read
with its predecessor, so one layer without feed-forward part suffices; 32 wide, two heads.

    wide     64 keys and 64 values, heads of 16: so much room that all can learn it
    narrow   the same, heads of 2: a head cannot keep the keys apart by their directions alone
    many     256 keys and 256 values, heads of 4

Each method has six settings: two learning rates and three of its own (LLA: where λ starts, it is learnt;
softmax: a factor on the scale d^-½; linear: the feature map). All six are trained on seed 0, the best two on
seed 1 as well; the one with the least loss on 512 sequences kept for this is trained on seeds from 2 on and
judged by 512 others. Figures of the tuning are printed as well, and how many keys are never learnt: those
answered rightly in less than half of the places they are asked in. Differences are paired by seed, with 95 %
intervals of Student's t. Needs torch.
"""

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from arguments import checked, command, keeps_rows
from printing import met
from rows import Rows
from torch import nn
from torch.nn import functional as F
from training import step

from abduce.serving.kernels.flash_lla import flash_lla
from abduce.serving.kernels.flash_lla.module import LocalLinearAttention

Tensor = torch.Tensor
N_PAIRS, WIDTH, N_HEADS, BATCH = 16, 32, 2, 64
T = {4: 3.182, 8: 2.365}  # Student's t, 97.5 %, by the number of seeds
OWN: dict[str, tuple[float | str, ...]] = {
    "LLA": (0.1, 1.0, 10.0),
    "softmax": (1.0, 2.0, 4.0),
    "linear": ("elu + 1", "relu", "softmax"),
}
MAPS = {
    "elu + 1": lambda x: F.elu(x) + 1,
    "relu": lambda x: F.relu(x) + 1e-3,
    "softmax": lambda x: x.softmax(-1),
}
RATES = (1e-2, 3e-2)


@dataclass(frozen=True)
class Task:
    """Keys and values to choose from, width of a head, training steps."""

    n_keys: int
    head_dim: int
    steps: int


TASKS = {"wide": Task(64, 16, 500), "narrow": Task(64, 2, 800), "many": Task(256, 4, 800)}


class Attention(LocalLinearAttention):
    """One of the three with the same projections; y of the last N_PAIRS tokens alone: no more is asked."""

    def __init__(self, kind: str, own: float | str, head_dim: int) -> None:
        ridge = own if kind == "LLA" else 1.0
        super().__init__(WIDTH, N_HEADS, head_dim=head_dim, ridge=ridge)
        self.kind, self.own = kind, own
        self.raw_ridge.requires_grad = kind == "LLA"

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """y [batch, N_PAIRS, WIDTH]."""
        q, k, v = (
            part(z).unflatten(-1, (N_HEADS, -1))
            for part, z in ((self.q_proj, x[:, -N_PAIRS:]), (self.k_proj, x), (self.v_proj, x))
        )
        if self.kind == "LLA":
            o = flash_lla(q, k, v, self.ridge, self.scale)
        else:
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
            if self.kind == "softmax":
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale * self.own)
            else:
                w = (MAPS[self.own](q) @ MAPS[self.own](k).transpose(2, 3)) * seen
                o = w / w.sum(-1, keepdim=True) @ v
            o = o.transpose(1, 2)
        y: Tensor = self.o_proj(o.flatten(2))
        return y


class Model(nn.Module):
    """Embedding of a token and its predecessor, one attention layer, a head."""

    def __init__(self, kind: str, own: float | str, task: Task) -> None:
        super().__init__()
        size = 2 * task.n_keys + 1
        self.embed, self.before = nn.Embedding(size, WIDTH), nn.Embedding(size, WIDTH)
        self.attend = Attention(kind, own, task.head_dim)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, task.n_keys)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, N_PAIRS, n_keys]."""
        x = self.embed(ids) + self.before(F.pad(ids, (1, 0))[:, :-1])
        out: Tensor = self.head(self.norms[1](x[:, -N_PAIRS:] + self.attend(self.norms[0](x))))
        return out


def batch(n: int, n_keys: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids, and the values of the last N_PAIRS."""
    order = torch.rand(n, n_keys, generator=g).argsort(1)[:, :N_PAIRS]
    values = torch.randint(0, n_keys, (n, N_PAIRS), generator=g)
    pairs = torch.stack([order + 1, values + 1 + n_keys], 2).flatten(1)
    again = torch.rand(n, N_PAIRS, generator=g).argsort(1)
    return torch.cat([pairs, order.gather(1, again) + 1], 1), values.gather(1, again)


def trained(
    task: Task, kind: str, own: float | str, rate: float, seed: int, judged_by: int
) -> dict[str, Any]:
    """Accuracy, keys never learnt and loss on the 512 sequences of seed `judged_by`."""
    torch.manual_seed(seed)
    model = Model(kind, own, task)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=task.steps, pct_start=0.1)
    begun, g = time.process_time(), torch.Generator().manual_seed(seed + 100)
    for _ in range(task.steps):
        ids, should = batch(BATCH, task.n_keys, g)
        loss = F.cross_entropy(model(ids).flatten(0, 1), should.flatten())
        step(model, loss, optimiser, plan)
    with torch.inference_mode():
        ids, should = batch(512, task.n_keys, torch.Generator().manual_seed(judged_by))
        logits = model(ids)
        right = (logits.argmax(-1) == should).float()
        asked = ids[:, -N_PAIRS:].flatten()
        by_key = torch.zeros(task.n_keys + 1).index_add_(0, asked, right.flatten() - 0.5)
        return {
            "accuracy": float(right.mean()),
            "lost": int((by_key < 0).sum()),
            "loss": float(F.cross_entropy(logits.flatten(0, 1), should.flatten())),
            "ridge": model.attend.ridge.tolist() if kind == "LLA" else [],
            "cpu_s": time.process_time() - begun,
        }


def run(
    rows: Rows, name: str, kind: str, own: float | str, rate: float, seed: int, judged_by: int
) -> dict[str, Any]:
    """As `trained`, unless it is known."""
    task = TASKS[name]
    sizes = (*astuple(task), N_PAIRS, WIDTH, N_HEADS, BATCH)
    return rows(
        [name, *sizes, kind, own, rate, seed, judged_by],
        lambda: trained(task, kind, own, rate, seed, judged_by),
    )


def tuned(rows: Rows, name: str, kind: str) -> tuple[float | str, float]:
    """The setting of least loss, by seed 0 and, of the best two, by seeds 0 and 1."""
    runs = {
        setting: [run(rows, name, kind, *setting, 0, 20_000)]
        for setting in itertools.product(OWN[kind], RATES)
    }
    best = sorted(runs, key=lambda setting: runs[setting][0]["loss"])[:2]
    for setting in best:
        runs[setting].append(run(rows, name, kind, *setting, 1, 20_000))
    for setting, found in runs.items():
        told = "  ".join(f"{one['accuracy']:.3f} (loss {one['loss']:.4f})" for one in found)
        print(f"  tuning {kind:8} {setting[0]!s:8} rate {setting[1]:g}   {told}", flush=True)
    return min(best, key=lambda setting: sum(one["loss"] for one in runs[setting]))


def judge(rows: Rows, name: str, n_seeds: int) -> None:
    """A task's rows, and whether the order is the published one."""
    task, seeds = TASKS[name], range(2, 2 + n_seeds)
    print(
        f"\n{name}: {N_PAIRS} pairs of {task.n_keys} keys and values, two heads of {task.head_dim}, "
        f"{task.steps} steps of {BATCH} sequences; by chance {1 / task.n_keys:.3f}"
    )
    right: dict[str, list[float]] = {}
    lost: dict[str, list[float]] = {}
    for kind in OWN:
        own, rate = tuned(rows, name, kind)
        found = [run(rows, name, kind, own, rate, seed, 10_000) for seed in seeds]
        right[kind], lost[kind] = [one["accuracy"] for one in found], [one["loss"] for one in found]
        ridges = " ".join(f"{value:.2g}" for one in found for value in one["ridge"])
        print(
            f"{kind:8} {own!s:8} rate {rate:g}: {statistics.mean(right[kind]):.4f}   seeds "
            f"{' '.join(f'{x:.4f}' for x in right[kind])}   loss {statistics.mean(lost[kind]):.4f}   "
            f"keys never learnt {' '.join(str(one['lost']) for one in found)}   "
            f"{statistics.mean(one['cpu_s'] for one in found):.0f} CPU s each"
            + (f"   λ learnt: {ridges}" if ridges else ""),
            flush=True,
        )
    for one, other in itertools.pairwise(OWN):
        mean, half = difference(right[one], right[other])
        shown, spread = difference(lost[one], lost[other])
        print(f"{one} - {other}: accuracy {mean:+.4f} ± {half:.4f}, loss {shown:+.4f} ± {spread:.4f}")
        doubt = ", but the interval holds 0" if abs(mean) <= half else ""
        print(f"  {one} ≥ {other}: {met(mean >= 0)}{doubt}")


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds, and half its 95 % interval; not numbers where a loss is none."""
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, gains)):
        return math.nan, math.nan
    return statistics.mean(gains), T[len(gains)] * statistics.stdev(gains) / len(gains) ** 0.5


def main() -> None:
    """The tasks asked for, or all."""
    parser = command(__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=4, choices=T, help="how many judge what was chosen")
    keeps_rows(parser)
    options = parser.parse_args()
    tasks = checked(parser, options.tasks, TASKS)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    for name in tasks:
        judge(options.rows, name, options.seeds)


if __name__ == "__main__":
    main()

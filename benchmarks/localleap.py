"""How many forwards a token does LocalLeap need, at what cost in right answers? A small model, trained here.

    python benchmarks/localleap.py [--steps 600] [--problems 400] [--calibrate]

The language: a prompt of six keys, each with a digit; the answer says of each in turn

    KEY (is | was) (the | a) [very] DIGIT + 1 .

One form of each pair is four times as frequent as the other, so a token may be unsure in form while its
content is sure. One sentence in ten has "very", which moves all that follows: what is far is unsure of its
place. An answer is right if it is well formed and names every key with its digit, in any form. A transformer
of 63,000 parameters learns it in half a minute on one CPU core, by the masked diffusion loss, half of the
time with the masks of block-wise decoding.

Printed for each order of decoding: accuracy and forwards per token, against the sequential order the paired
difference of accuracy with a 95 % bootstrap interval over problems, and tokens a second of CPU time at batch
one. With `--calibrate` the sweep of settings on other problems: the front of accuracy and forwards, and the
share of early predictions that were final, by distance to the nearest anchor. Needs torch.
"""

import random
import sys
import time

import torch
from arguments import command
from intervals import paired
from printing import met
from torch import nn
from torch.nn import functional as F
from training import step

from abduce.serving.kernels.localleap import Config
from abduce.serving.transformers.localleap import Step, decode
from abduce.serving.transformers.localleap_calibration import consistency, front, sweep

N_PAIRS, BLOCK, GEN = 6, 16, 32
DIGITS, KEYS = range(10), range(10, 36)
IS, WAS, THE, A, VERY, STOP, EOS, MASK = range(36, 44)
SIZE, N_PROMPT = 44, 2 * N_PAIRS
MAX_VERY = GEN - 5 * N_PAIRS  # more would not fit
WORDS = {"mask_id": MASK, "gen_length": GEN, "block": BLOCK}
ORDERS = {
    "sequential": Config(2.0, 2.0, 0),
    "threshold 0.9": Config(0.9, 0.9, 0),
    "LocalLeap 0.9 / 0.75 / 4": Config(),
}


# ---------------------------------------------------------------- the language


def problem(rng: random.Random) -> tuple[list[int], list[int]]:
    """A prompt and one of its right answers."""
    keys, digits = rng.sample(KEYS, N_PAIRS), rng.choices(DIGITS, k=N_PAIRS)
    prompt = [token for pair in zip(keys, digits, strict=True) for token in pair]
    answer: list[int] = []
    for key, digit in zip(keys, digits, strict=True):
        answer += [key, rng.choices((IS, WAS), (4, 1))[0], rng.choices((THE, A), (4, 1))[0]]
        answer += [VERY] * (answer.count(VERY) < MAX_VERY and rng.random() < 0.1) + [(digit + 1) % 10, STOP]
    return prompt, answer + [EOS] * (GEN - len(answer))


def batch_of(rng: random.Random, n: int) -> torch.Tensor:
    """Whole texts, int64 [n, N_PROMPT + GEN]."""
    return torch.tensor([prompt + answer for prompt, answer in (problem(rng) for _ in range(n))])


def is_right(prompt: list[int], answer: list[int]) -> bool:
    """Whether an answer is well formed and says of each key what it should."""
    rest = list(answer)
    for key, digit in zip(prompt[::2], prompt[1::2], strict=True):
        n = 6 if rest[3:4] == [VERY] else 5
        said, rest = rest[:n], rest[n:]
        if said[:1] != [key] or said[1] not in (IS, WAS) or said[2] not in (THE, A):
            return False
        if said[-2:] != [(digit + 1) % 10, STOP]:
            return False
    return set(rest) <= {EOS}


# ---------------------------------------------------------------- the model


class Layer(nn.Module):
    """Attention in both directions with rotary positions, and a feed-forward part."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [batch, length, width]."""
        batch, length, width = x.shape
        heads = self.qkv(self.norms[0](x)).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (z * cos + torch.cat([-z.chunk(2, -1)[1], z.chunk(2, -1)[0]], -1) * sin for z in heads[:2])
        seen = F.scaled_dot_product_attention(q, k, heads[2])
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Model(nn.Module):
    """A transformer over the whole text, masks and all."""

    def __init__(self, width: int = 48, n_layers: int = 2, n_heads: int = 4) -> None:
        super().__init__()
        length, d = N_PROMPT + GEN, width // n_heads
        self.embed, self.place = nn.Embedding(SIZE, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(Layer(width, n_heads) for _ in range(n_layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, SIZE)
        angles = torch.outer(torch.arange(length), 100.0 ** -(torch.arange(0, d, 2) / d)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [batch, length, vocabulary]."""
        x = self.embed(ids) + self.place.weight
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        out: torch.Tensor = self.head(self.norm(x))
        return out


def masks(n: int, rng: torch.Generator) -> torch.Tensor:
    """Which answer tokens are hidden, bool [n, GEN]: anywhere, or as when a block is being decoded."""
    share = torch.rand(n, 1, generator=rng)
    anywhere = torch.rand(n, GEN, generator=rng) < share
    block = torch.randint(0, GEN // BLOCK, (n, 1), generator=rng)
    of = torch.arange(GEN) // BLOCK
    decoding = (of > block) | ((of == block) & anywhere)
    return torch.where(torch.rand(n, 1, generator=rng) < 0.5, decoding, anywhere)


def trained(steps: int, batch: int = 32) -> Model:
    """The model after `steps`; says on the way how it goes."""
    torch.manual_seed(0)
    model, rng, dice = Model(), random.Random(0), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    begun = time.process_time()
    for i in range(steps):
        texts = batch_of(rng, batch)
        hidden = F.pad(masks(batch, dice), (N_PROMPT, 0))
        logits = model(texts.masked_fill(hidden, MASK))
        loss = F.cross_entropy(logits[hidden], texts[hidden])
        step(model, loss, optimiser, rate)
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i:5d}  loss {loss:.3f}  {time.process_time() - begun:4.0f} s", file=sys.stderr)
    return model.eval()


# ---------------------------------------------------------------- the measurements


def judged(prompts: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Which answers are right, bool [problems]."""
    pairs = zip(prompts.tolist(), answers.tolist(), strict=True)
    return torch.tensor([is_right(prompt, answer) for prompt, answer in pairs])


def speed(model: Model, prompts: torch.Tensor, config: Config) -> float:
    """Tokens a second at batch 1, on one thread."""
    decode(model, prompts[:1], config, **WORDS)
    begun = time.process_time()
    for prompt in prompts:
        decode(model, prompt[None], config, **WORDS)
    return len(prompts) * GEN / (time.process_time() - begun)


def compare(model: Model, prompts: torch.Tensor) -> None:
    """The table of orders, and the bars."""
    print(f"{'':26} accuracy   forwards/token   paired difference, points   tokens/s")
    steps: dict[str, float] = {}
    rates: dict[str, float] = {}
    base = torch.zeros(0)
    for name, config in ORDERS.items():
        decoded = decode(model, prompts, config, **WORDS)
        right = judged(prompts, decoded.ids).float()
        base = base if len(base) else right
        gained, low, high = (100 * x for x in paired(right.tolist(), base.tolist()))
        steps[name], rates[name] = decoded.forwards_per_token, speed(model, prompts[:40], config)
        print(
            f"{name:26} {right.mean():8.3f} {steps[name]:16.3f}   {gained:+7.1f} [{low:+.1f}, {high:+.1f}]"
            f"{rates[name]:18,.0f}"
        )
    first, threshold, leap = ORDERS
    share, gain = steps[leap] / steps[first], rates[leap] / rates[first]
    bar("at most 0.35 of the sequential forwards", share, share <= 0.35)
    bar(
        "at most 0.9 of threshold decoding's", steps[leap] / steps[threshold], share <= 0.9 * steps[threshold]
    )
    bar("points of accuracy gained, at least -1", gained, gained >= -1)
    bar("tokens/s, as a share of the gain in forwards, at least 0.7", gain * share, gain * share >= 0.7)


def bar(name: str, value: float, held: bool) -> None:
    """One line for a bar."""
    print(f"  {name}: {value:.3f}, {met(held)}")


def calibrate(model: Model, prompts: torch.Tensor) -> None:
    """The front of settings, and how early predictions fare by distance."""
    configs = [
        Config(k, t, w)
        for k in (0.8, 0.9, 0.97)
        for t in (0.3, 0.5, 0.65, 0.75, 0.9)
        for w in (1, 2, 4, 8)
        if t <= k
    ]
    points = sweep(model, prompts, lambda ids: judged(prompts, ids), configs, **WORDS)
    print(f"\n{len(points)} settings on {len(prompts)} problems; the front:")
    for point in front(points):
        c = point.config
        print(
            f"  κ {c.anchor_threshold}  τ {c.relaxed_threshold}  W {c.radius}   accuracy {point.accuracy:.3f}"
            f"   forwards/token {point.decoded.forwards_per_token:.3f}"
        )
    steps: list[Step] = []
    decoded = decode(model, prompts, ORDERS["sequential"], watch=steps.append, **WORDS)
    told = consistency(steps, decoded.ids, N_PROMPT, 0.9)
    print("\nearly predictions equal to the final token, sequential order, by distance to an anchor:")
    shares = []
    for low, high in ((1, 2), (3, 4), (5, 8), (9, BLOCK)):
        n, same = (sum(told[d][i] for d in told if low <= d <= high) for i in (0, 1))
        shares.append(same / n)
        print(f"  {low:2d} to {high:2d}   {same / n:.4f} of {n}")
    bar("falls from the nearest to the farthest", shares[0] - shares[-1], shares[0] > shares[-1])


def main() -> None:
    """Train, then print."""
    parser = command(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--calibrate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(options.steps)
    print(f"torch {torch.__version__}, {sum(p.numel() for p in model.parameters()):,} parameters")
    with torch.inference_mode():
        compare(model, batch_of(random.Random(1), options.problems)[:, :N_PROMPT])
        if options.calibrate:
            calibrate(model, batch_of(random.Random(2), options.problems // 2)[:, :N_PROMPT])


if __name__ == "__main__":
    main()

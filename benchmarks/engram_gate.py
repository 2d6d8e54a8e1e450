"""When Engram's gate pays: trained with it and without it, by the size of the table's first rows.

    python benchmarks/engram_gate.py [--rows FILE]

The text and the model are those of `engram.py`, 80 % of the budget in the table, 300 steps. The first rows
are N(0, 1), as in the source's code, or 0.02 as large, as in this project. Each of the four (rows, gate) has
the learning rate of four that is best on seeds 0 and 1 (the table's is five times that) and is then trained
on seeds 2 to 7. Printed: held-out loss, the paired difference with a 95 % interval of Student's t, gates at
the last tokens of frequent words and elsewhere, and on held-out text gates where the token's trigram was in
the text learnt from and where it was not. Without the gate the part of the projection that makes keys is
idle. Needs torch, numpy and tokenizers.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from arguments import command, keeps_rows

from engram import CONTEXT, Model, Plan, Text, gates, judged, text, trained  # isort: skip
from rows import Rows

T_5 = 2.571  # Student's t, 97.5 %, for six seeds
STEPS, RATES, TUNED_ON, SEEDS = 300, (3e-3, 6e-3, 1.2e-2, 2.4e-2), (0, 1), (2, 3, 4, 5, 6, 7)


def outcome(
    rows: Rows, corpus: Text, first_rows: float, gated: bool, rate: float, seed: int
) -> dict[str, Any]:
    """Held-out loss, and with a gate what it does, unless it is known."""

    def measured() -> dict[str, float]:
        plan = Plan(0.8, gated=gated, first_rows=first_rows)
        model, loss = trained(plan, corpus, STEPS, seed, rate)
        if not gated:
            return {"loss": loss}
        last, other = gates(model, corpus)
        seen, new = by_trigram(model, corpus)
        found = {"last": float(last.mean()), "other": float(other.mean()), "seen": seen, "new": new}
        return {"loss": loss, **found}

    return rows([first_rows, gated, STEPS, rate, seed], measured)


def by_trigram(model: Model, corpus: Text) -> tuple[float, float]:
    """Mean gate on held-out text, where the trigram was in the text learnt from and where it was not."""
    known = {tuple(gram) for gram in corpus.train.unfold(0, 3, 1).tolist()}
    ids = corpus.held_out[: len(corpus.held_out) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    with torch.no_grad():
        x = model.blocks[0](model.embed(ids) + model.place.weight)
        alpha = model.engram.alpha(x, model.addresses(ids)[0])[:, 2:, 0]
    was = torch.tensor([[tuple(gram) in known for gram in row] for row in ids.unfold(1, 3, 1).tolist()])
    return float(alpha[was].mean()), float(alpha[~was].mean())


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean difference over six seeds, and half its 95 % interval."""
    gains = [a - b for a, b in zip(ours, theirs, strict=True)]
    return statistics.mean(gains), T_5 * statistics.stdev(gains) / len(gains) ** 0.5


def judge(run: Callable[[float, bool, float, int], dict[str, Any]]) -> None:
    """The table, of what `run` tells of first rows, gate, rate and seed."""
    rates: dict[tuple[float, bool], float] = {}
    for first_rows in (0.02, 1.0):
        for gated in (True, False):
            tried = {
                rate: statistics.mean(run(first_rows, gated, rate, seed)["loss"] for seed in TUNED_ON)
                for rate in RATES
            }
            rates[first_rows, gated] = min(tried, key=tried.__getitem__)
            told = "  ".join(f"{rate:g}: {loss:.4f}" for rate, loss in tried.items())
            print(f"tuning, first rows {first_rows:g}, {'gate' if gated else 'no gate'}: {told}", flush=True)
    for first_rows in (0.02, 1.0):
        arms = [
            [run(first_rows, gated, rates[first_rows, gated], seed) for seed in SEEDS]
            for gated in (True, False)
        ]
        print(f"\nfirst rows {first_rows:g}")
        losses = [[one["loss"] for one in arm] for arm in arms]
        for name, found in zip(("gate", "no gate"), losses, strict=True):
            shown = " ".join(f"{loss:.3f}" for loss in found)
            print(f"  {name:8} {statistics.mean(found):.4f}   seeds {shown}")
        mean, half = interval(*losses)
        print(f"  gate - no gate {mean:+.4f} ± {half:.4f}")
        judged("without the gate it is worse", mean + half < 0)
        for one, other, name in (
            ("last", "other", "ends of frequent words"),
            ("seen", "new", "known trigrams"),
        ):
            pair = [[row[key] for row in arms[0]] for key in (one, other)]
            gap, spread = interval(*pair)
            print(
                f"  gates at {name} {statistics.mean(pair[0]):.3f}, elsewhere "
                f"{statistics.mean(pair[1]):.3f}: {gap:+.3f} ± {spread:.3f}",
                flush=True,
            )


def main() -> None:
    """All of it."""
    parser = command(__doc__)
    keeps_rows(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    judge(partial(outcome, options.rows, text()))


if __name__ == "__main__":
    main()

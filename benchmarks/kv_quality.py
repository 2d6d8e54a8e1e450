"""KV methods on the small model: how much of a text may go unread before the next words and details suffer.

    python benchmarks/kv_quality.py [--documents 12] [--asked] [--texts FOLDER] [--rows FILE]
                                    [--only "EMS; H2O"]

Each document is a topic of Python's own language reference (`pydoc_data`, in every installation), or a text
of FOLDER (*.txt, *.md, *.rst). Three needles, "The secret number of Paris is 4071.", stand at line ends in
its first 768 tokens. These are read exactly, once; then each method makes its memory of them at each keep
ratio, and later tokens read that and themselves:

    perplexity   of the document's next 48 tokens
    needle       "… The secret number of Paris is": are all four digits the most probable ones?

The question is not known when the memory is made, which is hard on what forgets. `--asked`: also once where
it is, as the end of what is read, for one needle a document; that reading predicts the first digit, and the
other three go through the memory. Differences from the full cache are paired,
intervals are 95 % by bootstrap over documents. The ratio is of entries in memory for EMS, DeltaLLM and the
baselines, of attended tokens for ActQKV, which keeps all. Needs torch. 768 tokens and a model of 135M
parameters: nothing here says what a long context does.
"""

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abduce.serving.transformers import kv
from abduce.serving.transformers import model as models

N_PREFIX, N_NEXT = 768, 48
RATIOS = (0.5, 0.25, 0.125)
CITIES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Cairo", "Lima", "Tokyo")
METHODS: dict[str, Callable[[float], kv.Method]] = {
    "EMS": kv.EMS,
    "EMS, mass bias": lambda ratio: kv.EMS(ratio, mass_bias=True),
    "EMS, evict only": lambda ratio: kv.EMS(ratio, tau=1.1),
    "EMS, unrotated": lambda ratio: kv.EMS(ratio, unrotated=True),
    "EMS, unrotated, mass bias": lambda ratio: kv.EMS(ratio, unrotated=True, mass_bias=True),
    "EMS, pool 5": lambda ratio: kv.EMS(ratio, pool=5),
    "EMS, pool 5, mass bias": lambda ratio: kv.EMS(ratio, pool=5, mass_bias=True),
    "ActQKV": kv.ActQKV,
    "DeltaLLM": kv.DeltaLLM,
    "SnapKV": kv.SnapKV,
    "H2O": kv.H2O,
    "StreamingLLM": kv.StreamingLLM,
}


# ---------------------------------------------------------------- documents


def texts(folder: Path | None) -> list[str]:
    """In the order of their names."""
    if folder is None:
        from pydoc_data.topics import topics

        named = dict(topics)
    else:
        files = [f for f in folder.rglob("*") if f.suffix in (".txt", ".md", ".rst")]
        named = {str(f): f.read_text(encoding="utf-8") for f in files}
    return [named[name] for name in sorted(named)]


def planted(tokens: models.Tokeniser, ids: Sequence[int], seed: int) -> dict[str, Any]:
    """A prefix of N_PREFIX tokens with three needles, what comes next, and questions with answers."""
    rng = random.Random(seed)
    needles = {city: f"{rng.randrange(10_000):04}" for city in rng.sample(CITIES, 3)}

    def encode(text: str) -> tuple[int, ...]:
        return tokens.encode(text, beginning=False)

    said = [encode(f"The secret number of {c} is {x}.\n") for c, x in needles.items()]
    end = N_PREFIX - sum(map(len, said))
    prefix = list(ids[:end])
    lines = [i + 1 for i, token in enumerate(prefix) if "\n" in tokens.hf.decode([token])]
    for depth, each in reversed(list(zip((0.15, 0.45, 0.75), said, strict=True))):
        at = min(lines, key=lambda i: abs(i - depth * end))
        prefix[at:at] = each
    asked = [(encode(f"\nThe secret number of {c} is"), encode(f" {x}")) for c, x in needles.items()]
    return {"prefix": prefix, "next": list(ids[end : end + N_NEXT]), "asked": asked}


# ---------------------------------------------------------------- measurements


def nll(reader: kv.Reader, memory: kv.Memory, ids: Sequence[int]) -> float:
    """Mean over all tokens but the first, which the prefix alone predicts."""
    logits = reader.tell(memory, ids, N_PREFIX)[:-1].float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))


def is_found(
    reader: kv.Reader, memory: kv.Memory, question: Sequence[int], answer: Sequence[int], position: int
) -> bool:
    """Whether greedy decoding would give the answer."""
    logits = reader.tell(memory, [*question, *answer], position)
    return bool(logits[len(question) - 1 : -1].argmax(-1).tolist() == list(answer))


def measure(reader: kv.Reader, document: dict[str, Any], known: int | None) -> Iterator[dict[str, Any]]:
    """A row for each method and ratio; `known`: the needle that is asked for before the memory is made."""
    prefix = reader.read(document["prefix"])
    if known is not None:
        question, (space, first, *rest) = document["asked"][known]
        longer = reader.read([*question, space], after=prefix)
    cases = [("full cache", 1.0, kv.FullCache())]
    cases += [(name, ratio, make(ratio)) for name, make in METHODS.items() for ratio in RATIOS]
    for name, ratio, method in cases:
        memory = method(prefix)
        row = {"method": name, "ratio": ratio, "nll": nll(reader, memory, document["next"])}
        row["read_share"] = memory.read_share
        row["found"] = []
        for each in document["asked"]:
            if memory.refresh is not None:  # it adapts, and each question is to find it as it was made
                memory = method(prefix)
            row["found"].append(is_found(reader, memory, *each, N_PREFIX))
        if known is not None:
            row["known"] = [is_found(reader, method(longer), [first], rest, N_PREFIX + len(question) + 1)]
        yield row


# ---------------------------------------------------------------- table


def interval(values: Sequence[float], seed: int = 0, n: int = 4000) -> tuple[float, float]:
    """95 %, by bootstrap of the mean."""
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(n))
    return means[int(0.025 * n)], means[int(0.975 * n)]


def cell(values: Sequence[float], form: str) -> str:
    """Mean and interval."""
    low, high = interval(values)
    return f"{sum(values) / len(values):{form}} ({low:{form}} – {high:{form}})"


def measured(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The documents that have a row of every method and ratio."""
    n = Counter(row["document"] for row in rows)
    return sorted(d for d in n if n[d] == 1 + len(METHODS) * len(RATIOS))


def report(rows: Sequence[dict[str, Any]]) -> None:
    """A table of Markdown, of the documents that were measured whole."""
    whole = measured(rows)
    cells: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["ratio"]), {})[row["document"]] = row
    full = cells["full cache", 1.0]
    counts = ("found", "known") if all("known" in full[d] for d in whole) else ("found",)
    heads = ["method", "ratio", "read", "perplexity", "nats a token over full", "needles", "known question"]
    heads = heads[: 5 + len(counts)]
    print(f"{len(whole)} documents\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for (name, ratio), of in cells.items():
        loss = sum(of[d]["nll"] for d in whole) / len(whole)
        share = sum(of[d]["read_share"] for d in whole) / len(whole)
        parts = [name, f"{ratio:g}", f"{share:.3f}", f"{math.exp(loss):.2f}"]
        parts.append(cell([of[d]["nll"] - full[d]["nll"] for d in whole], "+.3f"))
        parts += [cell([sum(of[d][x]) / len(of[d][x]) for d in whole], ".2f") for x in counts]
        print(f"| {' | '.join(parts)} |")


def filled(
    given: argparse.Namespace,
    measured: Callable[[Sequence[dict[str, Any]]], list[int]],
    measure: Callable[[kv.Reader, dict[str, Any], int], Iterator[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The rows of `given.documents` texts: those that the file `given.rows` has, and what is measured of the
    others, each added there at once."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    if given.rows and given.rows.exists():
        rows = [json.loads(line) for line in given.rows.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["document"] in measured(rows)]
        given.rows.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = models.folder_of(None)
    tokens = models.Tokeniser.load(folder)
    reader = kv.Reader(models.load(folder, "cpu", "float32", None))
    encoded = [tokens.whole(text) for text in texts(given.texts)]
    long = [ids for ids in encoded if len(ids) >= N_PREFIX + N_NEXT]
    begun = time.monotonic()
    for i in sorted(set(range(min(given.documents, len(long)))) - set(measured(rows))):
        for row in measure(reader, planted(tokens, long[i], i), i):
            rows.append({"document": i, **row})
            if given.rows:
                with given.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        print(f"document {i}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--documents", type=int, default=12)
    arguments.add_argument("--asked", action="store_true")
    arguments.add_argument("--texts", type=Path)
    arguments.add_argument("--rows", type=Path, help="measurements as JSON lines: go on from them, and add")
    arguments.add_argument("--only", type=lambda text: text.split("; "), help="methods, by '; '")
    given = arguments.parse_args()
    for name in set(METHODS) - set(given.only or METHODS):
        del METHODS[name]

    def each(reader: kv.Reader, document: dict[str, Any], i: int) -> Iterator[dict[str, Any]]:
        return measure(reader, document, i % 3 if given.asked else None)

    report(filled(given, measured, each))


if __name__ == "__main__":
    main()

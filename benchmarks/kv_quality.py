"""KV methods on the small model: how much of a text may go unread before the next words and details suffer.

    python benchmarks/kv_quality.py [--documents 12] [--asked] [--texts FOLDER] [--rows FILE]
                                    [--only "EMS; H2O"] [--over "EMS"]

Each document is a topic of Python's own language reference (`pydoc_data`, in every installation), or a text
of FOLDER (*.txt, *.md, *.rst). Three needles, "The secret number of Paris is 4071.", stand at line ends in
its first 768 tokens. These are read exactly, once; then each method makes its memory of them at each keep
ratio, and later tokens read that and themselves:

    perplexity   of the document's next 48 tokens
    needle       "… The secret number of Paris is": are all four digits the most probable ones?

The question is not known when the memory is made, which is hard on what forgets. `--asked`: also once where
it is, as the end of what is read, for one needle a document; that reading predicts the first digit, and the
other three go through the memory. Differences from the full cache are paired, with `--over` also those from
a method at the same ratio; intervals are 95 % by bootstrap over documents. The ratio is of entries in memory
for EMS, DeltaLLM and the baselines, of attended tokens for ActQKV, which keeps all. Needs torch. 768 tokens
and a model of 135M parameters: nothing here says what a long context does.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from arguments import checked, command, keeps_rows
from intervals import bootstrap
from printing import table_head, table_row
from rows import Row, Rows

from abduce.serving.transformers import kv
from abduce.serving.transformers import model as models

Found = dict[int, dict[Any, Row]]  # of a document, by case
Case = tuple[str, float]  # method and keep ratio

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


FULL: Case = ("full cache", 1.0)


def cases(names: Sequence[str]) -> list[Case]:
    """The full cache, and these methods at each ratio."""
    return [FULL, *((name, ratio) for name in names for ratio in RATIOS)]


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


def planted(tokens: models.Tokeniser, ids: Sequence[int], seed: int) -> Row:
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


def measure(
    reader: kv.Reader, document: Row, known: int | None, wanted: Sequence[Case]
) -> Iterator[tuple[Case, Row]]:
    """A row for each case; `known`: the needle that is asked for before the memory is made."""
    prefix = reader.read(document["prefix"])
    if known is not None:
        question, (space, first, *rest) = document["asked"][known]
        longer = reader.read([*question, space], after=prefix)
    for name, ratio in wanted:
        method = METHODS[name](ratio) if name in METHODS else kv.FullCache()
        memory = method(prefix)
        row: Row = {"nll": nll(reader, memory, document["next"]), "read_share": memory.read_share}
        row["found"] = []
        for each in document["asked"]:
            if memory.refresh is not None:  # it adapts, and each question is to find it as it was made
                memory = method(prefix)
            row["found"].append(is_found(reader, memory, *each, N_PREFIX))
        if known is not None:
            row["known"] = [is_found(reader, method(longer), [first], rest, N_PREFIX + len(question) + 1)]
        yield (name, ratio), row


# ---------------------------------------------------------------- table


def cell(values: Sequence[float], form: str) -> str:
    """Mean and interval."""
    mean, low, high = bootstrap(values)
    return f"{mean:{form}} ({low:{form}} – {high:{form}})"


def lead(rows: Found, case: Any, base: Any, key: str) -> list[float]:
    """For each document a case's `key` less the base's; of answers the share that is right."""

    def value(row: Row) -> float:
        return sum(row[key]) / len(row[key]) if isinstance(row[key], list) else float(row[key])

    return [value(of[case]) - value(of[base]) for of in rows.values()]


def report(rows: Found, wanted: Sequence[Case], over: str | None) -> None:
    """A table of Markdown."""
    told = all("known" in of[case] for of in rows.values() for case in wanted)
    counts = ("found", "known") if told else ("found",)
    heads = ["method", "ratio", "read", "perplexity", "nats a token over full", "needles", "known question"]
    heads = heads[: 5 + len(counts)] + ([f"nats over {over}", f"needles over {over}"] if over else [])
    print(f"{len(rows)} documents\n")
    table_head(*heads)
    for name, ratio in wanted if rows else ():
        each = [of[name, ratio] for of in rows.values()]
        loss, share = (sum(row[key] for row in each) / len(each) for key in ("nll", "read_share"))
        parts = [name, f"{ratio:g}", f"{share:.3f}", f"{math.exp(loss):.2f}"]
        parts.append(cell(lead(rows, (name, ratio), FULL, "nll"), "+.3f"))
        parts += [cell([sum(row[x]) / len(row[x]) for row in each], ".2f") for x in counts]
        if over and name in (over, FULL[0]):
            parts += ["", ""]
        elif over:
            parts.append(cell(lead(rows, (name, ratio), (over, ratio), "nll"), "+.3f"))
            parts.append(cell(lead(rows, (name, ratio), (over, ratio), "found"), "+.2f"))
        table_row(*parts)


# ---------------------------------------------------------------- rows


def filled(
    options: argparse.Namespace,
    setting: Sequence[Any],
    wanted: Sequence[Any],
    measure: Callable[[kv.Reader, Row, int, Sequence[Any]], Iterator[tuple[Any, Row]]],
) -> Found:
    """Every case that is wanted of the first `options.documents` texts, of those that are long enough. What
    `options.rows` has of a document is not asked of `measure`."""
    torch.set_num_threads(1)
    source = str(options.texts) if options.texts else None
    rows: Rows = options.rows

    def run(i: int, case: Any) -> list[Any]:
        return [*setting, source, i, case]

    found: Found = {i: {} for i in range(options.documents)}
    for i, known in found.items():
        known.update({case: row for case in wanted if (row := rows.get(run(i, case)))})
    lacking = {i: [case for case in wanted if case not in known] for i, known in found.items()}
    if any(lacking.values()):
        folder = models.folder_of(None)
        tokens = models.Tokeniser.load(folder)
        reader = kv.Reader(models.load(folder, "cpu", "float32", None))
        encoded = [tokens.whole(text) for text in texts(options.texts)]
        long = [ids for ids in encoded if len(ids) >= N_PREFIX + N_NEXT]
        begun = time.monotonic()
        for i, ids in enumerate(long[: options.documents]):
            if not lacking[i]:
                continue
            for case, row in measure(reader, planted(tokens, ids, i), i, lacking[i]):
                found[i][case] = rows.add(run(i, case), row)
            print(f"document {i}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return {i: cases for i, cases in found.items() if len(cases) == len(wanted)}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--asked", action="store_true")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--only", help="methods, by ';'")
    parser.add_argument("--over", help="a method: differences from it as well")
    keeps_rows(parser)
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(";")] if options.only else list(METHODS)
    names += [options.over] if options.over else []
    wanted = cases(checked(parser, names, METHODS))

    def each(reader: kv.Reader, document: Row, i: int, lacking: Sequence[Case]) -> Iterator[tuple[Case, Row]]:
        return measure(reader, document, i % 3 if options.asked else None, lacking)

    report(filled(options, ["kept", options.asked], wanted, each), wanted, options.over)


if __name__ == "__main__":
    main()

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
import json
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from intervals import bootstrap

from abduce.serving.transformers import kv
from abduce.serving.transformers import model as models

Row = dict[str, Any]
Rows = dict[int, dict[Any, Row]]  # of a document, by case
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


def measure(reader: kv.Reader, document: Row, known: int | None, wanted: Sequence[Case]) -> Iterator[Row]:
    """A row for each case; `known`: the needle that is asked for before the memory is made."""
    prefix = reader.read(document["prefix"])
    if known is not None:
        question, (space, first, *rest) = document["asked"][known]
        longer = reader.read([*question, space], after=prefix)
    for name, ratio in wanted:
        method = METHODS[name](ratio) if name in METHODS else kv.FullCache()
        memory = method(prefix)
        row: Row = {"method": name, "ratio": ratio, "nll": nll(reader, memory, document["next"])}
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


def cell(values: Sequence[float], form: str) -> str:
    """Mean and interval."""
    mean, low, high = bootstrap(values)
    return f"{mean:{form}} ({low:{form}} – {high:{form}})"


def lead(rows: Rows, case: Any, base: Any, key: str) -> list[float]:
    """For each document a case's `key` less the base's; of answers the share that is right."""

    def value(row: Row) -> float:
        return sum(row[key]) / len(row[key]) if isinstance(row[key], list) else float(row[key])

    return [value(of[case]) - value(of[base]) for of in rows.values()]


def report(rows: Rows, wanted: Sequence[Case], over: str | None) -> None:
    """A table of Markdown."""
    told = all("known" in of[case] for of in rows.values() for case in wanted)
    counts = ("found", "known") if told else ("found",)
    heads = ["method", "ratio", "read", "perplexity", "nats a token over full", "needles", "known question"]
    heads = heads[: 5 + len(counts)] + ([f"nats over {over}", f"needles over {over}"] if over else [])
    print(f"{len(rows)} documents\n\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
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
        print(f"| {' | '.join(parts)} |")


# ---------------------------------------------------------------- rows


def filled(
    given: argparse.Namespace,
    wanted: Sequence[Any],
    case_of: Callable[[Row], Any],
    measure: Callable[[kv.Reader, Row, int, Sequence[Any]], Iterator[Row]],
) -> Rows:
    """The documents that have a row of every case that is wanted. What the file `given.rows` has is not
    measured again, what it lacks of the first `given.documents` texts is measured, and added at once."""
    torch.set_num_threads(1)
    source = str(given.texts) if given.texts else None
    rows: Rows = defaultdict(dict)
    kept = given.rows.read_text(encoding="utf-8") if given.rows and given.rows.exists() else ""
    for row in map(json.loads, kept.splitlines()):
        if row.get("texts") == source:
            rows[row["document"]][case_of(row)] = row
    lacking = {i: [case for case in wanted if case not in rows[i]] for i in range(given.documents)}
    if any(lacking.values()):
        folder = models.folder_of(None)
        tokens = models.Tokeniser.load(folder)
        reader = kv.Reader(models.load(folder, "cpu", "float32", None))
        encoded = [tokens.whole(text) for text in texts(given.texts)]
        long = [ids for ids in encoded if len(ids) >= N_PREFIX + N_NEXT]
        begun = time.monotonic()
        for i, ids in enumerate(long[: given.documents]):
            if not lacking[i]:
                continue
            for row in measure(reader, planted(tokens, ids, i), i, lacking[i]):
                row = {"document": i, **({"texts": source} if source else {}), **row}
                rows[i][case_of(row)] = row
                if given.rows:
                    with given.rows.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            print(f"document {i}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return {i: rows[i] for i in sorted(rows) if all(case in rows[i] for case in wanted)}


def checked(arguments: argparse.ArgumentParser, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names, in the order of the known ones; ends the program if one is none of them."""
    for name in names:
        if name not in known:
            arguments.error(f"no method {name!r}. Known: {'; '.join(known)}")
    return [name for name in known if name in names]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--documents", type=int, default=12)
    arguments.add_argument("--asked", action="store_true")
    arguments.add_argument("--texts", type=Path)
    arguments.add_argument("--rows", type=Path, help="measurements as JSON lines: go on from them, and add")
    arguments.add_argument("--only", help="methods, by ';'")
    arguments.add_argument("--over", help="a method: differences from it as well")
    given = arguments.parse_args()
    names = [name.strip() for name in given.only.split(";")] if given.only else list(METHODS)
    names += [given.over] if given.over else []
    wanted = cases(checked(arguments, names, list(METHODS)))

    def each(reader: kv.Reader, document: Row, i: int, lacking: Sequence[Case]) -> Iterator[Row]:
        return measure(reader, document, i % 3 if given.asked else None, lacking)

    def case_of(row: Row) -> Any:
        without = given.asked and "known" not in row
        return None if without else (row.get("method"), row.get("ratio"))

    report(filled(given, wanted, case_of, each), wanted, given.over)


if __name__ == "__main__":
    main()

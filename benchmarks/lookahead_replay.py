"""Does drafting gain more from a tree of guesses than from paths, and more with a past than without?

    .venv-sglang/bin/python benchmarks/lookahead_replay.py [--prompts 20] [--rows FILE]

The small model's greedy texts are written once. Since drafts never change a text, how many tokens a forward
gives follows from the text alone: each is gone through again with the tries of `LOOKAHEAD`, for trees of at
most n rows, the last token's own among them, and for two flat forms with as many: the tree's paths side by
side, prefixes repeated, and its likeliest path alone. Cold: each request by itself. Warm: one tenant, who
has asked the questions before it in the same family. EDL: tokens per forward after the first token.
"""

import itertools
import random
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import lookahead
from arguments import command, keeps_rows
from intervals import resampled, told
from printing import table_head, table_row
from rows import Row, Rows

from abduce.serving import hf_folder
from abduce.serving.sglang.plugin.tries import Tries

SIZES = (2, 8, 16, 64)
N_NEW = 48


class Run(NamedTuple):
    """Tokens after the first, and forwards that gave them."""

    tokens: int
    forwards: int


def families(n: int, seed: int) -> dict[str, list[str]]:
    """Texts to copy, openings to go on from, and two kinds of task, each asked again and again."""
    listed, rng = lookahead.prompts(2 * n, seed), random.Random(seed)
    shelf = "Q: A shelf holds {} books. How many books are on {} shelves?\nA: One shelf holds {} books."
    code = (
        "def {}(values):\n    total = 0\n    for value in values:\n        total += {}\n    return total\n\n"
    )
    names, terms = ("sum_of", "count_of", "squares"), ("value", "1", "value * value")
    shown = "\n\n".join(
        shelf.format(a, b, a) + f" {b} shelves hold {b} * {a} = {a * b} books." for a, b in ((2, 3), (4, 2))
    )
    defined = "".join(code.format(name, term) for name, term in zip(names, terms, strict=True))
    return {
        "copying": listed[::2],
        "free": listed[1::2],
        "sums": [
            f"{shown}\n\n{shelf.format(a, rng.randint(2, 9), a)}"
            for a in (rng.randint(2, 9) for _ in range(n))
        ],
        "code": [f"{defined}def {word}_of(values):\n" for word in rng.sample(WORDS, n)],
    }


WORDS = (
    "mean", "product", "maximum", "minimum", "median", "cubes", "halves", "doubles", "evens", "odds", "signs",
    "lengths", "digits", "positives", "negatives", "zeros", "ranges", "errors", "weights", "logs", "roots",
    "powers", "limits", "steps", "peaks", "gaps", "ranks", "shares", "rates", "scores",
)  # fmt: skip


def written(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Each prompt's ids, and those of the model's greedy text."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    folder = hf_folder.small_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokens.pad_token = tokens.pad_token or tokens.eos_token
    asked = tokens(list(texts), return_tensors="pt", padding=True)
    with torch.inference_mode():
        out = model.generate(**asked, max_new_tokens=N_NEW, do_sample=False, pad_token_id=tokens.pad_token_id)
    found = []
    for text, row in zip(texts, out[:, asked.input_ids.shape[1] :].tolist(), strict=True):
        end = row.index(tokens.eos_token_id) + 1 if tokens.eos_token_id in row else N_NEW
        found.append({"prompt": tokens(text).input_ids, "output": row[:end]})
    return found


def paths(tokens: Sequence[int], parents: Sequence[int]) -> list[list[int]]:
    """From below the last token to each leaf, the likeliest first."""
    inner = set(parents)
    found = []
    for node in (i for i in range(len(tokens)) if i not in inner):
        path = []
        while node >= 0:
            path.append(tokens[node])
            node = parents[node]
        found.append(path[::-1])
    return found


def drafted(tries: Tries, request: str, last: Sequence[int], n: int, form: str) -> list[list[int]]:
    """Paths that a draft of n rows holds in this form."""
    if form == "tree":
        guess = tries.draft(request, last, n=n)
        return paths(guess.tokens, guess.parents)
    guess = tries.draft(request, last, n=10 * n)
    kept, room = [], n - 1
    for path in paths(guess.tokens, guess.parents)[: 1 if form == "one path" else None]:
        kept.append(path[:room])
        room -= len(kept[-1])
    return kept


FORMS = ("tree", "paths side by side", "one path")


def replayed(tries: Tries, tenant: str | None, text: Row, n: int, form: str) -> Run:
    """The text once more, as a server would have written it."""
    prompt, output = text["prompt"], text["output"]
    tries.open("request", tenant, prompt, [])
    at, forwards = 1, 0
    tries.extend("request", output[:1])
    while at < len(output):
        last = [*prompt[-2:], *output[max(0, at - 2) : at]][-2:]
        rest, gained = output[at:], 0
        for path in drafted(tries, "request", last, n, form):
            same = 0
            while same < min(len(path), len(rest)) and path[same] == rest[same]:
                same += 1
            gained = max(gained, same)
        new = output[at : at + gained + 1]
        tries.extend("request", new)
        at, forwards = at + len(new), forwards + 1
    tries.close("request")
    return Run(len(output) - 1, forwards)


def edl(runs: Sequence[Run]) -> float:
    """Tokens per forward."""
    return sum(run.tokens for run in runs) / sum(run.forwards for run in runs)


def gain(pairs: Sequence[tuple[Run, Run]]) -> float:
    """EDL of the first over that of the second."""
    ours, theirs = zip(*pairs, strict=True)
    return edl(ours) / edl(theirs)


def compared(ours: Sequence[Run], theirs: Sequence[Run]) -> str:
    """The ratio of two EDLs on the same texts, with its 95 % interval."""
    pairs = list(zip(ours, theirs, strict=True))
    return told((gain(pairs), *resampled(pairs, gain)), ".2f")


def main() -> None:
    """Write the texts, go through them, print."""
    parser = command(__doc__)
    keeps_rows(parser)
    parser.add_argument("--prompts", type=int, default=20, help="of each family, 30 at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows: Rows = options.rows
    table_head("family", "past", "n", *FORMS, "tree over paths", "paths over one")
    for name, asked in families(options.prompts, options.seed).items():
        run = ["lookahead_replay", name, options.prompts, options.seed, N_NEW]
        row = rows.get(run)
        texts = (row or rows.add(run, {"texts": written(asked)}))["texts"]
        trees = {}
        for past, n in itertools.product(("cold", "warm"), SIZES):
            forms = []
            for form in FORMS:
                tries, tenant = Tries([0, 2]), "one" if past == "warm" else None
                forms.append([replayed(tries, tenant, text, n, form) for text in texts])
            tree, side, one = forms
            trees[past, n] = tree[1:]  # the first has no past
            table_row(
                name,
                past,
                n,
                *(f"{edl(each):.2f}" for each in forms),
                compared(tree, side),
                compared(side, one),
            )
        gains = (f"n = {n} {compared(trees['warm', n], trees['cold', n])}" for n in SIZES)
        print(f"\n{name}, warm over cold: {'; '.join(gains)}\n", flush=True)


if __name__ == "__main__":
    main()

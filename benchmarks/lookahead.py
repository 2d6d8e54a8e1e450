"""Drafts from text: are they lossless, how many tokens does a forward gain, against stock NGRAM and none?

    python benchmarks/lookahead.py --prompts 200 --sizes 2 8

Starts one SGLang server after the other, each fresh, and asks all of them the same greedy questions: half
of them copy a list that stands in the prompt, half go on freely. EDL is tokens per forward after the first
token. `--path` is the server's PYTHONPATH; the server's environment must have this package installed.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.request import Request, urlopen

from arguments import command

from abduce.serving import hf_folder
from abduce.serving.sglang import launch

ROOT = Path(__file__).parents[1]
COLOURS = ("red", "green", "blue", "black", "white", "grey", "brown", "pink")
THINGS = ("apple", "pear", "plum", "grape", "peach", "lemon", "chair", "table", "lamp", "clock")
SUBJECTS = ("the sea", "a small town", "winter", "bread", "the moon", "a river", "music", "rain")
OPENINGS = (
    "Here is a short text about {}:\n",
    "Question: what is known about {}?\nAnswer:",
    "A poem about {}:\n",
    "Once there was {},",
)


def prompts(n: int, seed: int) -> list[str]:
    """Alternately a list token. `--path` isnd an opening to go on from; all different."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < n:
        if len(found) % 2:
            text = rng.choice(OPENINGS).format(
                f"{rng.choice(COLOURS)} {rng.choice(SUBJECTS)} and {rng.choice(THINGS)}"
            )
        else:
            items = ", ".join(
                f"{rng.choice(COLOURS)} {rng.choice(THINGS)} {rng.randrange(100)}" for _ in range(8)
            )
            text = f"The list: {items}.\nThe same list once more: {items}.\nThe same list once more:"
        if text not in found:
            found.append(text)
    return found


def ask(url: str, body: dict[str, Any]) -> Any:
    request = Request(f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(urlopen(request, timeout=1200).read())


def run(
    texts: Sequence[str],
    words: Sequence[str],
    options: argparse.Namespace,
    *,
    tell: bool = False,
    **wishes: Any,
) -> dict[str, Any]:
    """A fresh server's replies to all texts, in batches, and the seconds they took. `tell`: with the two
    likeliest tokens at each place."""
    flags = launch.flags(gpu=launch.has_gpu(), amx=launch.has_amx())
    port = launch.free_port()
    command = launch.command(options.python, str(options.model), "127.0.0.1", port, flags)
    more = {"return_logprob": True, "top_logprobs_num": 2} if tell else {}
    with tempfile.TemporaryDirectory() as folder:
        variables = {**launch.variables(flags), "HF_HUB_OFFLINE": "1", "PYTHONPATH": options.path}
        log = Path(folder) / "log"
        words = [*words, "--dtype", options.dtype] if options.dtype else words
        server = launch.Server([*command, *words], f"http://127.0.0.1:{port}", log=log, environment=variables)
        with launch.running(server):
            params = {"temperature": 0, "max_new_tokens": options.tokens, **wishes}
            ask(server.url, {"text": "Warm up", "sampling_params": params})
            replies: list[Any] = []
            began = perf_counter()
            rest = iter(texts)
            while batch := list(islice(rest, options.batch)):
                replies += ask(server.url, {"text": batch, "sampling_params": [params] * len(batch), **more})
            took = perf_counter() - began
            info = json.loads(urlopen(f"{server.url}/server_info", timeout=60).read())
    state = info["internal_states"][0].get("abduce", {}).get("lookahead", {})
    return {"ids": [reply["output_ids"] for reply in replies], "replies": replies, "s": took, "state": state}


def edl(replies: Sequence[Any]) -> float:
    """Tokens per forward, the first token of each text excepted: it comes with the prompt's forward."""
    tokens = sum(reply["meta_info"]["completion_tokens"] - 1 for reply in replies)
    forwards = sum(reply["meta_info"].get("spec_verify_ct") or 0 for reply in replies)
    return tokens / forwards if forwards else 1.0


def line(name: str, result: dict[str, Any], plain: dict[str, Any]) -> str:
    n = len(result["ids"])
    same = sum(a == b for a, b in zip(result["ids"], plain["ids"], strict=False))
    tokens = sum(map(len, result["ids"]))
    copy, free = result["replies"][::2], result["replies"][1::2]
    sources = Counter({k: v["kept"] for k, v in result["state"].get("sources", {}).items()})
    return (
        f"{name:24} {same:4} of {n:4}  {edl(copy):6.2f} {edl(free):6.2f}  {tokens / result['s']:8.1f}  "
        + ", ".join(f"{source} {kept}" for source, kept in sources.items())
    )


def flips(result: dict[str, Any], plain: dict[str, Any]) -> Iterator[str]:
    """Where a text first differs from that without speculation, and how near its two likeliest tokens were
    there: half precision rounds a forward over several tokens otherwise than one over a single token."""
    for i, (ours, theirs) in enumerate(zip(result["ids"], plain["ids"], strict=True)):
        if ours == theirs:
            continue
        at = next(j for j, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
        (first, one, _), (second, other, _) = plain["replies"][i]["meta_info"]["output_top_logprobs"][at]
        which = "the other of the two likeliest" if ours[at] in (one, other) else "a third token"
        yield f"  text {i}, token {at}: {which}, which were {first - second:.3f} nats apart"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--dtype", default="", help="bfloat16 and float16: also which texts flip, and at which margin"
    )
    parser.add_argument("--tenant", help="one tenant for all; without it each request stands alone")
    parser.add_argument("--ngram", action="store_true", help="stock NGRAM too, at the same sizes")
    parser.add_argument("--backend", default="abduce_tree", help="an attention backend that takes trees")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; else the small model")
    parser.add_argument("--python", default=str(ROOT / ".venv-sglang/bin/python"))
    parser.add_argument("--path", default=f"{ROOT / 'tests/serving/sglang_env/stand_ins'}:{ROOT}")
    options = parser.parse_args()
    options.model = options.model or hf_folder.small_model()
    texts = prompts(options.prompts, options.seed)
    setting = f"{options.tokens} tokens, {options.batch} at a time, seed {options.seed} {options.dtype}"
    print(f"{options.model.name}, {len(texts)} prompts, {setting}, tenant {options.tenant}\n")
    print(f"{'':24} {'identical':12}  {'EDL copy':>6} {'free':>4}  tokens/s  drafts kept by source")
    plain = run(texts, [], options, tell="16" in options.dtype)
    print(line("no speculation", plain, plain), flush=True)
    wishes: dict[str, Any] = {"custom_params": {"abduce_tenant": options.tenant}} if options.tenant else {}
    for algorithm in ["LOOKAHEAD", "NGRAM"][: 2 if options.ngram else 1]:
        for n in options.sizes:
            words = ["--attention-backend", options.backend, "--speculative-algorithm", algorithm]
            result = run(texts, [*words, "--speculative-num-draft-tokens", str(n)], options, **wishes)
            print(line(f"{algorithm}, n = {n}", result, plain), flush=True)
            if "16" in options.dtype:
                print("\n".join(flips(result, plain)), flush=True)


if __name__ == "__main__":
    main()

"""Does a server say what a plain recomputation says, with a model that has Engram tables? One trained here.

    python benchmarks/engram_serving.py FOLDER [--steps 300]      train, save the folder
    abduce engine FOLDER --flags='--chunked-prefill-size 64'      serve it
    python benchmarks/engram_serving.py FOLDER --url http://127.0.0.1:30000

The second tells of 40 held-out texts of 8 to 200 tokens: whether the server's 24 greedy tokens are those of a
plain recomputation by transformers, which caches nothing; by how much log-probs differ; and what they are
when all of the text, or its first half, was in the server's prefix cache, against a cold cache.

Needs torch, transformers and tokenizers.
"""

import json
import random
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import engram as small
import torch
from arguments import command
from torch.nn import functional as F
from training import step

from abduce.serving.transformers import engram

CONTEXT, N_NEW, N_TEXTS = 256, 24, 40


def train(folder: Path, steps: int) -> None:
    """A model of two layers, 32 wide, with tables before the second, and its folder."""
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    corpus = small.text()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=small.tokeniser(small.parts()[0]), bos_token="<s>", eos_token="<s>"
    )
    model = engram.new(
        tokenizer,
        layers=(1,),
        max_order=3,
        n_heads=2,
        d_head=8,
        base=2400,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    table = [p for name, p in model.named_parameters() if name.endswith("engram.table")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("engram.table")]
    groups = [{"params": rest, "lr": 3e-3, "weight_decay": 0.01}]
    groups.append({"params": table, "lr": 1.5e-2, "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(groups)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, (s + 1) / 20) * (1 - s / steps))
    for window in small.batches(corpus.train, steps, 0):
        logits = model(window[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        step(model, loss, optimiser, rate)
    model.eval()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {table[0].numel():,} in the table")
    print(f"held-out loss {held_out(model, corpus):.3f} nats a token", end="")
    engram.save(model, tokenizer, folder)
    with torch.no_grad():
        table[0].zero_()
    print(f", {held_out(model, corpus):.3f} with an empty table\n{folder}")


@torch.no_grad()
def held_out(model: Any, corpus: small.Text) -> float:
    """Mean loss over windows of the held-out text."""
    size = small.CONTEXT + 1
    windows = corpus.held_out[: len(corpus.held_out) // size * size].view(-1, size)
    losses = [
        F.cross_entropy(model(w[:, :-1], use_cache=False).logits.flatten(0, 1), w[:, 1:].flatten())
        for w in windows.split(len(windows) // 4)[:4]
    ]
    return float(sum(losses)) / len(losses)


def ask(url: str, ids: list[int], n: int) -> tuple[list[int], list[float], int]:
    """Ids, their log-probs, and how many tokens were found in the cache."""
    params = {"temperature": 0, "max_new_tokens": n, "ignore_eos": True}
    body = {"input_ids": ids, "sampling_params": params, "return_logprob": True}
    request = Request(url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"})
    told = json.loads(urlopen(request, timeout=300).read())
    values = [value for value, _, _ in told["meta_info"]["output_token_logprobs"]]
    return told["output_ids"], values, told["meta_info"]["cached_tokens"]


@torch.no_grad()
def compare(folder: Path, url: str) -> None:
    """What the server says against a plain recomputation, and with a warm cache against a cold one."""
    from transformers import AutoModelForCausalLM

    engram.register()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    held, dice = small.text().held_out.tolist(), random.Random(0)
    same, off, warm = 0, 0.0, {"the first half": [], "all but the last token": []}
    for _ in range(N_TEXTS):
        n = dice.randrange(8, 201)
        begin = dice.randrange(len(held) - n)
        text = held[begin : begin + n]
        urlopen(url + "/flush_cache?timeout=30", b"", timeout=60).read()
        ids, cold, n_cached = ask(url, text, N_NEW)
        assert not n_cached
        law = torch.log_softmax(model(torch.tensor([text + ids]), use_cache=False).logits[0, n - 1 : -1], -1)
        same += law.argmax(-1).tolist() == ids
        off = max(off, float((law.max(-1).values - torch.tensor(cold)).abs().max()))
        for name, length in zip(warm, (n // 2, n - 1), strict=True):
            urlopen(url + "/flush_cache?timeout=30", b"", timeout=60).read()
            ask(url, text[:length], 1)
            again, found, n_cached = ask(url, text, N_NEW)
            assert n_cached == length
            warm[name].append((again == ids, max(abs(a - b) for a, b in zip(found, cold, strict=True))))
    print(f"greedy text of a plain recomputation: {same} of {N_TEXTS}; log-probs differ by at most {off:.1e}")
    for name, told in warm.items():
        print(
            f"{name} from the cache: text of the cold request {sum(x for x, _ in told)} of {N_TEXTS}, "
            f"log-probs to the bit {sum(d == 0 for _, d in told)} of {N_TEXTS}, else by at most "
            f"{max(d for _, d in told):.1e}"
        )
    states = json.loads(urlopen(url + "/server_info", timeout=60).read())["internal_states"]
    print(json.dumps(states[0]["abduce"]["engram"]))


def main() -> None:
    """Train, or compare."""
    parser = command(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--url")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.url:
        compare(options.folder, options.url)
    else:
        train(options.folder, options.steps)


if __name__ == "__main__":
    main()

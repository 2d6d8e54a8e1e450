"""A small llama with Engram layers and random weights, and what it says, computed plainly; run by the Python
of the server's environment.

Reads {"folder", "tokenizer", "prompts": lists of ids, "n_new"} as JSON, writes the model into the folder, and
prints for each prompt, as JSON, the ids it writes greedily, their log-probs, and the log-prob of the first of
them if the last token of the prompt had lost sight of those before it. Each forward reads the whole text and
nothing is cached.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from abduce.serving.transformers import engram


def made(folder: Path, tokenizer: Path) -> Any:
    """The model, and its folder."""
    torch.manual_seed(0)
    known = AutoTokenizer.from_pretrained(tokenizer)
    model = engram.new(
        known,
        layers=(0, 2),
        max_order=4,
        n_heads=2,
        d_head=8,
        base=1009,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        bos_token_id=known.bos_token_id,
        eos_token_id=known.eos_token_id,
    )
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and not name.endswith("_norm"):
            torch.nn.init.normal_(weight, std=0.3 if "lm_head" not in name else 1.0)
        elif name.endswith("_norm"):
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    engram.save(model, known, folder)
    return model.eval()


def written(model: Any, prompt: list[int], n_new: int) -> tuple[list[int], list[float], float]:
    """Ids, their log-probs, and that of the first without the tokens before."""
    ids, found = list(prompt), []
    for _ in range(n_new):
        log_p = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0, -1], -1)
        ids.append(int(log_p.argmax()))
        found.append(float(log_p.max()))
    addresses = model.model.addresses
    whole = addresses.of

    def lost(near: torch.Tensor) -> Any:
        return whole(torch.cat([near[:-1], torch.where(torch.arange(4) > 0, -1, near[-1:])]))

    addresses.of = lost
    log_p = torch.log_softmax(model(torch.tensor([prompt]), use_cache=False).logits[0, -1], -1)
    del addresses.of
    return ids[len(prompt) :], found, float(log_p[ids[len(prompt)]])


def main() -> None:
    """Read, make, compute, print."""
    asked = json.load(sys.stdin)
    with torch.no_grad():
        model = made(Path(asked["folder"]), Path(asked["tokenizer"]))
        json.dump([written(model, prompt, asked["n_new"]) for prompt in asked["prompts"]], sys.stdout)


main()

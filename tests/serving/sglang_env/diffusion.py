"""A small block-diffusion model with random weights, and what LocalLeap writes with it, computed plainly; run
by the Python of the server's environment.

Reads {"folder", "tokenizer", "prompts": lists of ids, "blocks", "block", "mask", "settings"} as JSON, writes
the model into the folder, and prints as JSON for each prompt the ids of so many blocks and the denoising
forwards they took. Each forward reads the whole text, in which a block sees itself and what is before it:
nothing is cached, so a server that says the same has cached the right keys and values.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from abduce.serving.kernels.localleap import Config, reference


def made(folder: Path, tokenizer: Path, mask: int) -> Any:
    """The model, and its folder, whose architecture is SDAR's: Qwen3's weights, blocks in place of tokens."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=mask + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=False,
        eos_token_id=mask + 1,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).float().eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3 if "lm_head" not in name else 1.0)
    model.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    told["architectures"] = ["SDARForCausalLM"]
    (folder / "config.json").write_text(json.dumps(told))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return model


def written(model: Any, prompt: list[int], asked: dict[str, Any]) -> tuple[list[int], int]:
    """The ids after the prompt, up to the end of the last block, and the forwards."""
    block, mask, rule = asked["block"], asked["mask"], Config(**asked["settings"])
    first = len(prompt) // block
    length, forwards = (first + asked["blocks"]) * block, 0
    ids = torch.tensor(prompt + [mask] * (length - len(prompt)))
    given = torch.arange(length) < len(prompt)  # a mask there is text
    of = torch.arange(length) // block
    seen = torch.where(of[:, None] >= of, 0.0, -torch.inf)
    for end in range((first + 1) * block, length + 1, block):
        here = slice(end - block, end)
        while (hidden := (ids[here] == mask) & ~given[here]).any():
            logits = model(ids[None, :end], attention_mask=seen[None, None, :end, :end]).logits[0, -block:]
            logits[:, mask] = -torch.inf
            tokens, confidence = reference.predict(logits)
            chosen = reference.commits(confidence[None], hidden[None], rule)[0]
            ids[here] = torch.where(chosen, tokens, ids[here])
            forwards += 1
    return ids[len(prompt) :].tolist(), forwards


def main() -> None:
    """Read, make, compute, print."""
    asked = json.load(sys.stdin)
    with torch.no_grad():
        model = made(Path(asked["folder"]), Path(asked["tokenizer"]), asked["mask"])
        json.dump([written(model, prompt, asked) for prompt in asked["prompts"]], sys.stdout)


main()

"""DeltaLLM's runs by Θ: how many entries are left of a real model's keys, and what that does to its text.

For each document: 600 tokens are read exactly; the keys between the first 4 and the last 128 are replaced by
those of their runs (which is what reading runs computes, exactly); then the log-prob of the next 150 tokens.

    .venv-sglang/bin/python benchmarks/kv_theta.py            # a minute on one core
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from intervals import bootstrap, told

from abduce.serving import hf_folder
from abduce.serving.kernels import deltallm

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENTS = ("gateway", "recipes", "memory", "sandbox", "telemetry", "repl")
THETAS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
N_PROMPT, N_AFTER, SINK, LOCAL = 600, 150, 4, 128


def main() -> None:
    """Print a row for each Θ."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = hf_folder.small_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    added: dict[float, list[float]] = {theta: [] for theta in THETAS}
    left: dict[float, list[float]] = {theta: [] for theta in THETAS}
    for name in DOCUMENTS:
        text = (DOCS / f"{name}.md").read_text()[:6000]
        ids = tokenizer(text, return_tensors="pt").input_ids[:, : N_PROMPT + N_AFTER]
        with torch.inference_mode():
            cache = model(ids[:, :N_PROMPT], use_cache=True).past_key_values
            exact = loss(model, ids, copy.deepcopy(cache))
            for theta in THETAS:
                changed, share = by_runs(copy.deepcopy(cache), theta)
                added[theta].append(loss(model, ids, changed) - exact)
                left[theta].append(share)
    print("theta | runs / tokens | nats a token added, 95 % over documents")
    for theta in THETAS:
        print(f"{theta} | {sum(left[theta]) / len(DOCUMENTS):.2f} | {told(bootstrap(added[theta]))}")


def by_runs(cache: Any, theta: float) -> tuple[Any, float]:
    """The cache with the keys of runs, and runs per token over layers and heads."""
    share = 0.0
    for layer in cache.layers:
        k = layer.keys[0].transpose(0, 1)  # [tokens, kv_heads, head_dim]
        middle = k[SINK : N_PROMPT - LOCAL]
        ids = deltallm.run_ids(middle, deltallm.thresholds(k, theta))
        begins = torch.diff(ids, dim=1, prepend=ids[:, :1] - 1) > 0
        first = torch.where(begins, torch.arange(ids.shape[1]), 0).cummax(1).values
        keys = middle.transpose(0, 1).gather(1, first[..., None].expand(-1, -1, k.shape[2]))
        layer.keys[0, :, SINK : N_PROMPT - LOCAL] = keys
        share += float((ids.max(1).values + 1).double().mean()) / ids.shape[1]
    return cache, share / len(cache.layers)


def loss(model: Any, ids: torch.Tensor, cache: Any) -> float:
    """Nats a token of what follows the prompt."""
    log_p = model(ids[:, N_PROMPT:], past_key_values=cache).logits[0, :-1].log_softmax(-1)
    return float(-log_p.gather(1, ids[0, N_PROMPT + 1 :, None]).mean())


if __name__ == "__main__":
    main()

"""Tiny models with random weights, and their prefilled twins. Import after torch is known to be there."""

import random

import torch
import transformers

from abduce.serving.transformers import query_weights
from abduce.serving.transformers.batching import Batcher
from abduce.serving.transformers.query_ttt import prefill
from abduce.serving.transformers.slots import Slots

SIZE = 40
READINGS = ["strict", "recomputed"]


def model_of(kind="Llama", *, dtype=torch.float32, attention="sdpa", **fields):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": SIZE,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "pad_token_id": 0,
            "initializer_range": 0.2,  # so that attention is not flat
            **fields,
        }
    )
    config._attn_implementation = attention
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()


def text_of(n, seed=0):
    """Tokens with something to learn: a phrase of eight comes again and again."""
    draw = random.Random(seed)
    phrases = [[draw.randrange(SIZE) for _ in range(8)] for _ in range(3)]
    ids = [token for _ in range(n) for token in draw.choice(phrases)]
    return torch.tensor(ids[:n])


def prefilled(model, ids):
    """The model's twin, and keys and values of `ids` but the last."""
    own = query_weights.twin(model)
    memory = Slots(own, 1)
    batcher = Batcher(memory, 1)
    batcher.submit(prefill(ids[:-1].tolist()), 1).result(60)
    batcher.close()
    return own, memory.ordinary(0)


def bits(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def same(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

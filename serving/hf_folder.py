"""A Hugging Face folder from a GGUF file: the small model for engines that read no GGUF.

    hf_folder.small_model()              the package's small model as a folder in the cache, made once
    hf_folder.convert(file, folder)      any llama model with a byte-level BPE tokeniser

Weights are dequantised, so the folder holds the very model that the embedded engine serves, without
another download. Each number is d·q + m with half-precision d and m; it is stored in half precision too, at
a relative error of 2^-11 at most, and computed with in whatever precision an engine chooses.

Needs `gguf` and `safetensors`, of the extra `transformers`, and no torch.
"""

import json
import shutil
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import settings, weights
from .errors import MissingExtra, UsageError

_LAYER = {  # GGUF name within a block: Hugging Face name within a layer
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # token type of special tokens


def small_model() -> Path:
    """The folder of the package's small model, made from its GGUF file unless it is in the cache.

    Raises UsageError if the file can't be fetched, MissingExtra without `gguf` and `safetensors`."""
    file = weights.fetch_default()
    folder = settings.cache() / f"{file.stem}-hf"
    return folder if folder.is_dir() else convert(file, folder)


def convert(file: Path, folder: Path) -> Path:
    """`file` as a Hugging Face folder; returns `folder`, which appears whole or not at all.

    Raises UsageError for a model that is no llama model or has another kind of tokeniser."""
    if not (find_spec("gguf") and find_spec("safetensors")):
        raise MissingExtra("gguf or safetensors", "transformers")
    gguf, safetensors = import_module("gguf"), import_module("safetensors.numpy")
    reader = gguf.GGUFReader(file)
    told = {name: each.contents() for name, each in reader.fields.items()}
    if told["general.architecture"] != "llama" or told.get("tokenizer.ggml.model") != "gpt2":
        raise UsageError(
            f"{file.name} cannot be converted: only llama models with a byte-level BPE tokeniser can. "
            "Give the engine a Hugging Face folder of the model."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="convert-") as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        heads = {
            "attn_q": told["llama.attention.head_count"],
            "attn_k": told["llama.attention.head_count_kv"],
        }
        tensors = dict(_tensor(gguf, each, heads) for each in reader.tensors)
        safetensors.save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        parts = {
            "config.json": _config(told, tied="lm_head.weight" not in tensors),
            "generation_config.json": _special(told),
            "tokenizer.json": _tokenizer(told),
            "tokenizer_config.json": _tokenizer_config(told),
        }
        for name, part in parts.items():
            (made / name).write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
        try:
            made.rename(folder)
        except OSError:  # another process has made it meanwhile
            shutil.rmtree(made)
            if not folder.is_dir():
                raise
    return folder


def _tensor(gguf: Any, tensor: Any, heads: dict[str, int]) -> tuple[str, Any]:
    """Name and values `[out, in]` or `[size]`, float16."""
    *block, name, kind = tensor.name.split(".")
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    if name in heads:  # GGUF holds the rotary pairs side by side, Hugging Face half a head apart
        rows, columns = values.shape
        pairs = values.reshape(heads[name], rows // heads[name] // 2, 2, columns)
        values = pairs.swapaxes(1, 2).reshape(rows, columns)
    full = f"model.layers.{block[1]}.{_LAYER[name]}" if block else _TOP[name]
    return f"{full}.{kind}", values.astype("float16")


def _special(told: dict[str, Any]) -> dict[str, Any]:
    ids = {name: told.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    return {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["padding"]}


def _config(told: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    of = {name.removeprefix("llama."): value for name, value in told.items() if name.startswith("llama.")}
    return _special(told) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": of["embedding_length"],
        "intermediate_size": of["feed_forward_length"],
        "max_position_embeddings": of["context_length"],
        "num_attention_heads": of["attention.head_count"],
        "num_hidden_layers": of["block_count"],
        "num_key_value_heads": of["attention.head_count_kv"],
        "rms_norm_eps": round(of["attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": of["rope.freq_base"],
        "tie_word_embeddings": tied,
        "vocab_size": len(told["tokenizer.ggml.tokens"]),
    }


def _tokenizer(told: dict[str, Any]) -> dict[str, Any]:
    tokens = told["tokenizer.ggml.tokens"]
    special = [i for i, kind in enumerate(told["tokenizer.ggml.token_type"]) if kind == _CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    splits: list[dict[str, Any]] = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ]
    if told.get("tokenizer.ggml.pre") == "smollm":  # each digit is a token
        splits.insert(0, {"type": "Digits", "individual_digits": True})
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": told["tokenizer.ggml.merges"],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def _tokenizer_config(told: dict[str, Any]) -> dict[str, Any]:
    tokens = told["tokenizer.ggml.tokens"]
    named = {key.replace("_id", ""): tokens[i] for key, i in _special(told).items() if isinstance(i, int)}
    return named | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": told.get("tokenizer.chat_template"),
        "model_max_length": told["llama.context_length"],
    }

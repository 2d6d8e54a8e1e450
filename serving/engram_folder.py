"""What the config.json of an Engram model's folder says: a llama with tables at some of its layers.

    {"model_type": "abduce_engram", "architectures": ["EngramLlamaForCausalLM"], …as a llama's…,
     "engram": {"layers": [1, 3], "max_order": 3, "n_heads": 4, "d_head": 16, "base": 20011,
                "n_compressed": 38210, "pad": 0, "seed": 0}}

The weights are safetensors, `model.layers.1.engram.table` among them, and the map of the tokens,
`model.addresses.token_map`. transformers (`serving/transformers/engram.py`) and SGLang
(`serving/sglang/plugin/engram.py`) read the same folder. Needs neither of them, nor torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import UsageError

MODEL_TYPE = "abduce_engram"
ARCHITECTURE = "EngramLlamaForCausalLM"


@dataclass(frozen=True)
class Shape:
    """Where the tables are and how they are addressed; see `kernels/engram/hashing.py`. `base`: rows of a
    column at least; `pad`: the token before a text. The layers have no convolution: a server would have to
    keep its state."""

    layers: tuple[int, ...]
    max_order: int
    n_heads: int
    d_head: int
    base: int
    n_compressed: int
    pad: int = 0
    seed: int = 0

    @property
    def n_columns(self) -> int:
        """Rows that a token reads at a layer."""
        return (self.max_order - 1) * self.n_heads

    def told(self) -> dict[str, Any]:
        """As it is written in config.json."""
        return {**asdict(self), "layers": list(self.layers)}

    def said(self) -> str:
        """In words."""
        where = ", ".join(map(str, self.layers))
        orders = "2" if self.max_order == 2 else f"2 to {self.max_order}"
        rows = len(self.layers) * self.n_columns * self.base
        return (
            f"Engram at layer{'s' * (len(self.layers) > 1)} {where}: n-grams of {orders} tokens, "
            f"about {rows:,} rows of {self.d_head} numbers"
        )


def shape_of(config: Mapping[str, Any]) -> Shape:
    """What the config says. Raises ValueError that names the wrong key and what to write."""
    told = config.get("engram")
    if not isinstance(told, Mapping):
        raise ValueError('config.json has no "engram": write its layers and sizes, or save the model again')
    known = {field.name: field for field in fields(Shape)}
    needed = {name for name, field in known.items() if not isinstance(field.default, int)}
    if told.keys() - known or needed - told.keys():
        wrong = sorted((told.keys() - known) | (needed - told.keys()))
        raise ValueError(f'"engram" in config.json holds {", ".join(known)}; look at {", ".join(wrong)}')
    layers = told["layers"]
    n_layers, n_tokens = int(config["num_hidden_layers"]), int(config["vocab_size"])
    if not _whole(*(layers if isinstance(layers, list) else [None])) or sorted(set(layers)) != layers:
        raise ValueError(f'"layers" of "engram" are whole numbers, rising, not {layers!r}')
    if not layers or not 0 <= layers[0] <= layers[-1] < n_layers:
        raise ValueError(f'"layers" of "engram" are among 0 to {n_layers - 1}, not {layers!r}')
    least = {"max_order": 2, "n_heads": 1, "d_head": 1, "base": 2, "n_compressed": 1, "pad": 0, "seed": 0}
    for name, floor in least.items():
        value = told.get(name, known[name].default)
        if not _whole(value) or value < floor:
            raise ValueError(f'"{name}" of "engram" is a whole number from {floor}, not {value!r}')
    shape = Shape(**{**told, "layers": tuple(layers)})
    if shape.n_compressed > n_tokens or shape.pad >= n_tokens:
        raise ValueError(f'"n_compressed" and "pad" of "engram" go with a vocabulary of {n_tokens} tokens')
    return shape


def shape_in(folder: str | Path) -> Shape | None:
    """The shape of a folder's model; None if it is no Engram model, or no folder. Raises UsageError for one
    whose config.json is wrong."""
    file = Path(folder).expanduser() / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
        return None
    try:
        return shape_of(config)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: {error}.") from None


def _whole(*values: object) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)

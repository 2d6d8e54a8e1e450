"""The configuration class of Engram models, for whoever reads their folders by transformers: this engine, and
SGLang's processes, which read it before they know what to load."""

from typing import Any

from transformers import AutoConfig, LlamaConfig

from ..engram_folder import MODEL_TYPE


class EngramConfig(LlamaConfig):  # type: ignore[misc]
    """A llama's; `engram` is `engram_folder.Shape` as it is written. `engram_kept`: rows of each table that
    SGLang keeps on its GPU; the rest is fetched from the host."""

    model_type = MODEL_TYPE
    engram: dict[str, Any] | None = None
    engram_kept: int = 0


def register() -> None:
    """Let `AutoConfig` know it."""
    AutoConfig.register(MODEL_TYPE, EngramConfig, exist_ok=True)

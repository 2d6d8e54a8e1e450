"""A Hugging Face folder as the transformers engine needs it: the tokeniser, and the model.

Weights are read from safetensors only, and no code of a model's folder is run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from .. import hf_folder, settings
from ..engram_folder import shape_in
from ..errors import EngineError, MissingExtra, UsageError
from ..flow import Prompt
from ..tool_calls import described, offer, plain
from .matchers import Vocabulary

Attention: TypeAlias = str | Callable[..., Any]


def folder_of(spec: str | Path | None) -> str:
    """The folder of a model, or its name on the hub. A GGUF file is converted once, into the cache."""
    if spec is None:
        return str(hf_folder.small_model())
    path = Path(spec).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"No weights at {path}. Give a .gguf file, a Hugging Face folder or org/name.")
        folder = settings.cache() / f"{path.stem}-hf"
        return str(folder if folder.is_dir() else hf_folder.convert(path, folder))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{path} has no config.json: it is no Hugging Face folder of a model.")
        return str(path)
    if len(Path(spec).parts) != 2 or path.is_absolute():
        raise UsageError(
            f"No model at {spec}. Give a Hugging Face folder, a .gguf file, or org/name of the hub."
        )
    return str(spec)


@dataclass(frozen=True)
class Tokeniser:
    """Text to tokens and back. `size`: tokens of the model, which may exceed those that are named."""

    hf: Any
    size: int
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        if not getattr(self.hf, "is_fast", False):
            raise UsageError("The transformers engine needs a fast tokeniser: a folder with tokenizer.json.")

    @classmethod
    def load(cls, folder: str) -> "Tokeniser":
        """The tokeniser of a folder."""
        transformers = library()
        _know(folder)
        try:
            hf = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"No tokeniser in {folder}: {' '.join(str(error).split())[:300]}") from None
        try:
            told = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:  # a folder without one
            told = config.eos_token_id
        ends = {hf.eos_token_id, *(told if isinstance(told, list) else [told])} - {None}
        if not ends:
            raise UsageError(
                f"{folder} names no token that ends a turn: set eos_token_id in its config.json."
            )
        return cls(hf, config.get_text_config().vocab_size, tuple(sorted(ends)))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What each token writes; nothing where it is special."""
        if not find_spec("llguidance"):
            raise MissingExtra("llguidance", "transformers")
        told = import_module("llguidance").LLTokenizer(self._raw(verbatim=False).to_str())
        added = json.loads(self._plain.to_str())["added_tokens"]
        special = {each["id"] for each in added if each["special"]}
        named = range(min(self.size, told.vocab_size))
        written = [b"" if i in special else bytes(told.decode_bytes([i])) for i in named]
        return Vocabulary([*written, *[b""] * (self.size - len(written))])

    def encode(self, text: str, *, beginning: bool) -> tuple[int, ...]:
        """At the beginning of a prompt special tokens are read as such; within an answer they are text, so
        that no model or user can end a turn by writing their names."""
        if beginning:
            return tuple(self._marked.encode(text, add_special_tokens=False).ids)
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def whole(self, text: str) -> tuple[int, ...]:
        """A text without messages, begun as the model's texts begin."""
        return tuple(self._marked.encode(text, add_special_tokens=True).ids)

    def head(self, prompt: Prompt) -> tuple[int, ...]:
        """The messages by the chat template, up to where the assistant's turn begins."""
        if not self.hf.chat_template:
            raise EngineError("This model has no chat template: give Prompt(prefix=...) without messages.")
        messages = [plain(message) for message in prompt.messages]
        tools = [described(tool) for tool in prompt.tools]
        text = self._template(messages, tools or None)
        if tools and text == self._template(messages, None):  # the template has no place for them
            text = self._template(offer(messages, tools), None)
        return self.encode(text, beginning=True)

    def _template(self, messages: list[dict[str, str]], tools: list[dict[str, Any]] | None) -> str:
        return str(
            self.hf.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        )

    @cached_property
    def _marked(self) -> Any:
        return self._raw(verbatim=False)

    @cached_property
    def _plain(self) -> Any:
        return self._raw(verbatim=True)

    def _raw(self, *, verbatim: bool) -> Any:
        raw = import_module("tokenizers").Tokenizer.from_str(self.hf.backend_tokenizer.to_str())
        raw.no_padding()
        raw.no_truncation()
        raw.encode_special_tokens = verbatim
        return raw


def load(folder: str, device: str | None, dtype: str | None, attention: Attention | None) -> Any:
    """The model, ready to be asked. Raises UsageError for one whose layers keep no plain keys and values."""
    torch, transformers = import_module("torch"), library()
    with_tables = _know(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UsageError(f"dtype cannot be {dtype!r}: write float32, bfloat16 or float16.")
    words: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    if attention is not None:
        words["attn_implementation"] = _attention_name(transformers, attention)
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **words)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    if with_tables:
        import_module(f"{__package__}.engram").check_folder(model, folder)
    return model.to(device).eval()


def demand_plain_layers(config: Any, context: int) -> None:
    """Slots hold keys and values of whole texts: no shorter sliding window, no recurrent state."""
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in kinds or (getattr(config, "layer_types", None) is None and window)
    if kinds - {"full_attention", "sliding_attention"} or (sliding and window and window < context):
        raise UsageError(
            f"The transformers engine cannot serve layers of kind {', '.join(sorted(kinds))} with a window "
            f"of {window} tokens over a context of {context}. Give a model with full attention"
            + (f", or context={window}." if window else ".")
        )


def library() -> Any:
    """transformers, once it is there with torch."""
    for name in ("torch", "transformers"):
        if not find_spec(name):
            raise MissingExtra(name, "transformers")
    return import_module("transformers")


def _know(folder: str) -> bool:
    """Whether a folder is of an Engram model; transformers knows its classes then."""
    found = shape_in(folder) is not None
    if found:
        import_module(f"{__package__}.engram").register()
    return found


def _attention_name(transformers: Any, attention: Attention) -> str:
    """The name under which transformers knows an attention function; one of the caller's is registered."""
    if isinstance(attention, str):
        return attention
    name = f"abduce_{getattr(attention, '__name__', 'attention')}_{id(attention):x}"
    transformers.AttentionInterface.register(name, attention)
    return name

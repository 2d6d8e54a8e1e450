"""The KV methods of `--kv` and their sizes, as they are written: `ems:budget=1024,window=32`.

Needs neither torch nor SGLang: the command line checks by it what a server will be told.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Ems:
    """Evict, then merge: entries per KV head, whatever the length. The kernel's own sizes and defaults."""

    budget: int = 256  # the paper's headline
    window: int = 32  # SnapKV's
    tail: int = 128  # generated tokens before compressing again; reconstructed
    tau: float = 0.5
    gamma: float = 0.98
    rho: int = 8
    merge_keys: bool = True
    mass_bias: bool = False
    pool: int = 1  # a score becomes the largest of so many neighbours' in the prompt
    unrotated: bool = False  # keys are merged as they were before their positions were rotated in
    release: bool = False  # SGLang's slots of what is in entries are given back: more requests fit

    def __post_init__(self) -> None:
        if not 0 < self.window < self.budget or self.tail < 1:
            raise ValueError(
                f"ems: write 0 < window < budget and tail >= 1, got window={self.window}, "
                f"budget={self.budget}, tail={self.tail}"
            )
        if self.rho < 1 or not 0 < self.gamma <= 1:
            raise ValueError(f"ems: write rho >= 1 and 0 < gamma <= 1, got {self.rho} and {self.gamma}")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"ems: write an odd pool >= 1, got {self.pool}")
        if self.unrotated and not self.merge_keys:
            raise ValueError("ems: leave out unrotated=true, which is for merged keys, or merge_keys=false")


@dataclass(frozen=True)
class ActQKV:
    """Pages of the cache that a step reads, in tokens: the first, the last, and `budget` between them."""

    budget: int = 2048  # the paper's headline
    page: int = 64  # InfLLM's, of a short-context configuration
    first: int = 128  # InfLLM's n_init
    last: int = 1024  # spared of InfLLM's n_local, 4096
    k_min: int = 4  # pages of a layer at least; at most 2 · budget / page
    refresh: int = 8  # steps between two divisions of the budget over the layers
    prefill: int = (
        0  # above 0, prompts are read in windows of so many tokens, by what each finds; InfLLM: 512
    )

    def __post_init__(self) -> None:
        if min(self.page, self.last, self.k_min, self.refresh) < 1 or min(self.first, self.prefill) < 0:
            raise ValueError("actqkv: write page, last, k_min and refresh >= 1 and first, prefill >= 0")
        if self.budget < self.page:
            raise ValueError(f"actqkv: write budget >= page, got budget={self.budget}, page={self.page}")

    @property
    def k(self) -> int:
        """Pages chosen by score in a layer, on average over the layers."""
        return self.budget // self.page

    @property
    def n_first(self) -> int:
        """Pages that are always read, at the start."""
        return -(-self.first // self.page)

    @property
    def n_last(self) -> int:
        """Pages that are always read, at the end."""
        return -(-self.last // self.page)


@dataclass(frozen=True)
class DeltaLLM:
    """Keys far from the query as runs: tokens that stay within Θ of the first of their run share its key."""

    theta: float = 2.5  # standard deviations per channel: a third fewer entries in benchmarks/kv_theta.py
    local: int = 128
    sink: int = 4
    block: int = 32  # tokens that leave the window together
    prefill: float = 0.0  # above 0, the prompt is read by differences too, at this Θ; elements bear 0.5

    def __post_init__(self) -> None:
        if min(self.theta, self.prefill) < 0 or self.local < 1 or self.sink < 0 or self.block < 1:
            raise ValueError("deltallm: write theta and prefill >= 0, local >= 1, sink >= 0 and block >= 1")


Config: TypeAlias = Ems | ActQKV | DeltaLLM

METHODS: dict[str, type[Config]] = {"ems": Ems, "actqkv": ActQKV, "deltallm": DeltaLLM}
"""Name → its sizes. The attention backend is `abduce_<name>`."""


def parse(text: str) -> Config:
    """The method that is written. Raises ValueError that says what to write instead.

    >>> parse("ems:budget=1024").budget
    1024
    """
    name, _, rest = text.strip().partition(":")
    if name not in METHODS:
        raise ValueError(f"no KV method {name!r}. Write one of {', '.join(METHODS)}, such as ems:budget=1024")
    told: dict[str, Any] = {}
    kinds = {field.name: field.type for field in fields(METHODS[name])}
    for word in filter(None, rest.split(",")):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or key not in kinds:
            raise ValueError(f"{name} has no {word!r}. Write {name}:KEY=VALUE,… with {', '.join(kinds)}")
        told[key] = _value(f"{name}:{key}", kinds[key], value)
    return METHODS[name](**told)


def name_of(config: Config) -> str:
    """The name that `parse` knows it by."""
    return next(name for name, kind in METHODS.items() if kind is type(config))


def backend_of(config: Config) -> str:
    """The name of its attention backend."""
    return f"abduce_{name_of(config)}"


def namespace(config: Config) -> str | None:
    """The part of the prefix cache for prompts that are not read exactly; None if they are."""
    lossy = isinstance(config, (ActQKV, DeltaLLM)) and config.prefill > 0
    return f"abduce:{text_of(config)}" if lossy else None


def text_of(config: Config) -> str:
    """It, written with the sizes that are not the default: equal configurations give equal texts.

    >>> text_of(parse("deltallm:theta=1,local=128"))
    'deltallm:theta=1.0'
    """
    said = [
        f"{field.name}={_word(value)}"
        for field in fields(config)
        if (value := getattr(config, field.name)) != field.default
    ]
    return ":".join([name_of(config), *([",".join(said)] if said else [])])


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(key: str, kind: Any, text: str) -> Any:
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        what = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise ValueError(f"{key} is {what}, not {text!r}") from None

"""Member: models with Engram tables, folders whose config.json has the model type `abduce_engram`.

Nothing is to be chosen: the folder says it. The tables stay in the memory of the host. The tokens before a
new one, which its address needs, are read from a token beside each slot of the cache (`engram_slots.py`), so
that prompts in parts, prefixes from the cache and trees of drafts read the rows that one pass would read.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import resolved_view

from ...engram_folder import ARCHITECTURE, MODEL_TYPE, shape_of
from ...kernels.engram.hashing import map_of
from ...transformers import engram_config
from .hooks import around, is_around

PREPARE = "sglang.srt.model_executor.model_runner:ModelRunner.initialize"
MOVE = "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.move_kv_cache"
ARRIVE = "sglang.srt.managers.scheduler:Scheduler._maybe_namespace_elastic_radix_cache"

SIZES = ("tp_size", "pp_size", "dcp_size")
SWITCHES = (
    "enable_dp_attention",
    "enable_hierarchical_cache",  # slots that no forward has written: no token beside them
    "enable_kv_cache_sharding",
    "enable_lmcache",
    "enable_lora",
    "enable_mixed_chunk",
    "enable_pdmux",
    "enable_torch_compile",
    "enable_two_batch_overlap",
    "enable_unified_cache_external_linker",
)
"""Settings that are refused, because they were not made to work or not tried."""

_served: list[Any] = []
"""The Engram model of this process, if there is one, and whether its tokeniser has been seen to fit."""


def register() -> None:
    """Let SGLang know the configuration, and the model class where one is loaded. Raises LookupError if a
    place that is wrapped is gone."""
    engram_config.register()
    for target, wrapper in HOOKS.items():
        around(target, wrapper)


def verify(scheduler: Any) -> dict[str, Any]:
    """Where the tables are, and what was read of them. Raises RuntimeError if the model is served without
    them, or with another tokeniser."""
    for target, wrapper in HOOKS.items():
        if not is_around(target, wrapper):
            raise RuntimeError(f"abduce: the plug-in's hook on {target} is not in force")
    runner = scheduler.tp_worker.model_runner
    if runner.model_config.hf_config.model_type != MODEL_TYPE:
        return {"used": False}
    model = getattr(runner.model, "model", None)
    if not _served or model is not _served[0]:
        raise RuntimeError(
            f"abduce: the folder has Engram tables, and {type(runner.model).__name__} serves it without. "
            "Leave out --model-impl"
        )
    if len(_served) == 1 and scheduler.tokenizer is not None:
        token_map = model.addresses.token_map
        if not map_of(scheduler.tokenizer, len(token_map))[0].equal(token_map.cpu()):
            raise RuntimeError(
                "abduce: the Engram tables are addressed by another tokeniser than this server's. Put back "
                "the tokeniser that the model was trained with, and leave out --tokenizer-path"
            )
        _served.append(True)
    return {"used": True, **state(model)}


def state(model: Any) -> dict[str, Any]:
    """Of the tables, all layers together. `asked`: distinct rows of a forward and layer; `hits`: those that
    were on the device already; `waited_s`: what forwards stood still for rows."""
    counts = [table.counts for table in model.tables.values()]
    layouts = model.addresses.layouts
    return {
        "layers": list(model.shape.layers),
        "orders": model.shape.max_order,
        "rows": sum(layout.n_rows for layout in layouts),
        "host_bytes": sum(table.n_bytes for table in model.tables.values()),
        "tokens": model.n_tokens,
        "asked": sum(count.asked for count in counts),
        "hits": sum(count.hits for count in counts),
        "copied_bytes": sum(count.copied_bytes for count in counts),
        "waited_s": sum(count.wait_s for count in counts),
    }


def refuse(runner: Any) -> None:
    """Raise ValueError if the settings are not served, with what to do about it, or the folder is wrong."""
    args, config = resolved_view(runner.server_args), runner.model_config
    shape_of(config.hf_config.to_dict())
    if not isinstance(kept := config.hf_config.engram_kept, int) or kept < 0:
        raise ValueError(f"abduce: engram_kept is a whole number of rows, not {kept!r}")
    found = [name for name in SIZES if getattr(args, name) > 1]
    found += [name for name in SWITCHES if getattr(args, name)]
    found += ["quantization"] * (config.quantization is not None)
    found += ["disaggregation_mode"] * (args.disaggregation_mode != "null")
    found += ["dllm_algorithm"] * (args.dllm_algorithm is not None)
    found += ["is_embedding"] * (not config.is_generation)
    found += ["speculative_algorithm"] * (args.speculative_algorithm not in (None, "NGRAM", "LOOKAHEAD"))
    if found:
        flag = "--" + found[0].replace("_", "-")
        raise ValueError(f"abduce: a model with Engram tables does not go with {flag}. Leave it out.")
    graphs = args.cuda_graph_config
    if runner.device != "cpu" and {graphs.decode.backend, graphs.prefill.backend} != {"disabled"}:
        raise ValueError(
            "abduce: a model with Engram tables fetches its rows from the host at each step. Write "
            "--disable-decode-cuda-graph --disable-prefill-cuda-graph"
        )


def prepare(original: Callable[..., Any], runner: Any) -> Any:
    """Before a model is looked for: one with tables finds its class."""
    if runner.model_config.hf_config.model_type != MODEL_TYPE:
        return original(runner)
    refuse(runner)
    from sglang.srt.models.registry import ModelRegistry

    from .engram_model import EngramLlamaForCausalLM

    ModelRegistry.models[ARCHITECTURE] = EngramLlamaForCausalLM
    told = original(runner)
    if isinstance(runner.model, EngramLlamaForCausalLM):
        _served[:] = [runner.model.model]
    return told


def move(original: Callable[..., Any], pool: Any, tgt_loc: Any, src_loc: Any) -> Any:
    """When keys and values are moved between slots, as accepted drafts' are: the tokens go with them."""
    told = original(pool, tgt_loc, src_loc)
    for model in _served[:1]:
        if model.slots is not None:
            model.slots.move(tgt_loc, src_loc)
    return told


def arrive(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    """When a request comes in: one of embeddings is refused, for they have no address."""
    original(scheduler, request)
    if _served and request.input_embeds is not None:
        request.input_embeds = None
        request.set_finish_with_abort("This model reads token ids: send text or input_ids, no input_embeds.")


HOOKS: dict[str, Callable[..., Any]] = {PREPARE: prepare, MOVE: move, ARRIVE: arrive}
"""What is wrapped by what."""

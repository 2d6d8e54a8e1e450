"""Member: the attention backends of the KV methods, `abduce_ems`, `abduce_actqkv` and `abduce_deltallm`.

    --attention-backend abduce_ems, with the sizes in the environment: ABDUCE_KV=ems:budget=1024

Prompts are read exactly, so a prompt's keys and values are the model's own, and all requests share them. What
is generated from the first step on that leaves something out is not: it stays out of the prefix cache. Where
a method reads prompts its own way (`deltallm:prefill=0.5`), these have a prefix cache of their own. What no
later step will read goes back to SGLang if a method is told so (`ems:release=true`).
A request that says `"custom_params": {"abduce_kv": "exact"}` is served by the stock backend, whatever runs
beside it.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from sglang.srt.server_args import add_attention_backend_choices

from ... import settings
from .hooks import around, is_around
from .kv_backend import EXACT, REQUESTS, KVReading, backend, wants
from .kv_config import METHODS, Config, Ems, backend_of, namespace, parse
from .kv_rotary import rotary_of

FORWARD = "sglang.srt.managers.tp_worker:TpModelWorker.forward_batch_generation"
ARRIVE = "sglang.srt.managers.scheduler:Scheduler._maybe_namespace_elastic_radix_cache"
CHECKPOINT = "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.checkpoint_into_tree"
STEP = "sglang.srt.managers.scheduler:Scheduler.run_batch"

RELEASED = "abduce_released"
"""An attribute of requests that have given slots back: what `skip_radix_cache_insert` was before."""

_in_use: list[Config] = []
"""The method of the backend that was made in this process."""

_backends: list[KVReading] = []
"""That backend."""


def register() -> None:
    """Offer the backends. Raises LookupError if a place that is wrapped is gone, ValueError if what the
    environment names is no method."""
    configured()
    for name in METHODS:
        offered = f"abduce_{name}"
        if offered not in ATTENTION_BACKENDS:
            add_attention_backend_choices([offered])
        register_attention_backend(offered)(_factory(name))
    for target, wrapper in HOOKS.items():
        around(target, wrapper)


def verify(scheduler: Any) -> dict[str, Any]:
    """Which method is in use, and what it has read. Raises RuntimeError if one was asked for and is not in
    force."""
    for target, wrapper in HOOKS.items():
        if not is_around(target, wrapper):
            raise RuntimeError(f"abduce: the plug-in's hook on {target} is not in force")
    missing = [name for name in METHODS if f"abduce_{name}" not in ATTENTION_BACKENDS]
    if missing:
        raise RuntimeError(f"abduce: no attention backend is registered for {missing}")
    runner = scheduler.tp_worker.model_runner
    found = getattr(runner.attn_backend, "decode_backend", runner.attn_backend)
    asked, config = runner.decode_attention_backend_str, configured()
    if config is not None and asked != backend_of(config):
        raise RuntimeError(
            f"abduce: ABDUCE_KV asks for {backend_of(config)}, and the server decodes by {asked}. "
            f"Write --attention-backend {backend_of(config)}"
        )
    if not isinstance(found, KVReading):
        if asked.removeprefix("abduce_") in METHODS:
            raise RuntimeError(f"abduce: {asked} was asked for, and {type(found).__name__} decodes")
        return {"used": None}
    if type(scheduler.tree_cache) is not UnifiedRadixCache:
        raise RuntimeError(
            f"abduce: {asked} keeps generated text out of SGLang's own prefix cache, and not out of "
            f"{type(scheduler.tree_cache).__name__}. Leave out the flags that choose another cache"
        )
    return {"used": asked, **found.state()}


def configured() -> Config | None:
    """What ABDUCE_KV says, None if nothing."""
    told = settings.kv_method()
    return None if told is None else parse(told)


def refuse(runner: Any, config: Config) -> None:
    """Raise ValueError if a model or a setting is not served, with what to do about it."""
    name = backend_of(config)
    model, args = runner.model_config, resolved_view(runner.server_args)
    text = model.hf_text_config
    graphs = args.cuda_graph_config
    found = {
        "multi-head latent attention": runner.use_mla_backend,
        "sliding windows": runner.sliding_window_size is not None or runner.is_hybrid_swa,
        "an encoder": model.is_encoder_decoder or not model.is_generation,
        "layers without attention": mambaish_config(model) is not None,
        "capped logits": bool(getattr(text, "attn_logit_softcapping", None)),
    }
    for what, there in found.items():
        if there:
            raise ValueError(f"{name} does not serve models with {what}. Serve it without --kv.")
    if isinstance(config, Ems) and config.unrotated and rotary_of(runner.model) is None:
        raise ValueError(
            f"{name} cannot take the positions off this model's keys: it does not rotate all layers as Llama "
            "does. Leave out unrotated=true."
        )
    settled = {
        "--speculative-algorithm": args.speculative_algorithm is not None,
        "--enable-mixed-chunk": args.enable_mixed_chunk,
        "--disaggregation-mode": args.disaggregation_mode != "null",
        "--enable-dp-attention": args.enable_dp_attention,
        "--dcp-size": args.dcp_size > 1,
        "--kv-cache-dtype": runner.kv_cache_dtype != runner.dtype,
        "--strip-thinking-cache": isinstance(config, Ems) and config.release and args.strip_thinking_cache,
    }
    for flag, there in settled.items():
        if there:
            raise ValueError(f"{name} does not go with {flag}. Leave it out.")
    if runner.device != "cpu" and {graphs.decode.backend, graphs.prefill.backend} != {"disabled"}:
        raise ValueError(
            f"{name} plans each step on the host. Write --disable-decode-cuda-graph "
            "--disable-prefill-cuda-graph"
        )
    reads_prompts = isinstance(config, Ems) or namespace(config) is not None
    if reads_prompts and runner.prefill_attention_backend_str != runner.decode_attention_backend_str:
        raise ValueError(
            f"{name} is to see prompts. Write --attention-backend {name}, and no --prefill-attention-backend"
        )


def _factory(name: str) -> Callable[[Any], Any]:
    def make(runner: Any) -> Any:
        config = configured() or METHODS[name]()
        if backend_of(config) != f"abduce_{name}":
            raise ValueError(f"ABDUCE_KV is for {backend_of(config)}, not for abduce_{name}")
        refuse(runner, config)
        _in_use[:] = [config]
        _backends[:] = [backend(runner, config)]
        return _backends[0]

    return make


def note(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Before a forward: know its requests by their ids."""
    if _in_use:
        for request in batch.reqs if batch is not None else ():
            REQUESTS[request.rid] = request
            if batch.forward_mode.is_extend() and hasattr(request, RELEASED):  # it is read again, exactly
                request.skip_radix_cache_insert = getattr(request, RELEASED)
                delattr(request, RELEASED)
    return original(worker, batch, *args, **kwargs)


def give_back(original: Callable[..., Any], scheduler: Any, *args: Any, **kwargs: Any) -> Any:
    """After a step: SGLang's slots of what no later step will read go back to it."""
    out = original(scheduler, *args, **kwargs)
    for each in _backends:
        freed = [release(scheduler.tree_cache, request, n) for request, n in each.n_done()]
        if any(freed):  # SGLang does not look for room again before a request has ended, unless told to
            scheduler.running_batch.batch_is_full = False
    return out


def release(tree: Any, request: Any, n: int) -> bool:
    """Give back the slots of a request's first n tokens. False if there is nothing more to give.

    row        [ of the prefix cache | the request's own, in entries | since then ]
                 0                     cache_protected_len             n
    after it   [ may be evicted      | free                          | the request's own ]

    The prefix cache keeps what it has, unlocked, for as long as there is room. Nothing more of the row goes
    into it: the row's first slots may soon be somebody else's. A kernel that reads them still comes before
    one that writes them, on the stream that both run on.
    """
    kv = request.kv
    if not kv.holds_kv:
        return False
    first = not hasattr(request, RELEASED)
    if first:
        setattr(request, RELEASED, request.skip_radix_cache_insert)
        request.skip_radix_cache_insert = True
        tree.unlock(request.lock)
        request.lock = None
    n = n // tree.page_size * tree.page_size
    if n > kv.cache_protected_len:
        tree.free_kv_row(kv, [(kv.cache_protected_len, n)])
        kv.cache_protected_len = n
        return True
    return first


def keep_exact(original: Callable[..., Any], tree: Any, request: Any, *, up_to: int, **kwargs: Any) -> Any:
    """When a request's slots are put into the prefix cache: only those before the first reduced step."""
    exact = getattr(request, EXACT, None)
    if exact is not None:
        # What the cache already holds of the row is not given back by taking less.
        up_to = min(up_to, max(exact, request.kv.cache_protected_len))
    return original(tree, request, up_to=up_to, **kwargs)


def keep_apart(original: Callable[..., Any], scheduler: Any, request: Any) -> Any:
    """When a request comes in: what is read inexactly has a part of the prefix cache of its own."""
    original(scheduler, request)
    own = namespace(_in_use[0]) if _in_use else None
    if own is not None and wants(request):
        request.extra_key = f"{request.extra_key}|{own}" if request.extra_key else own


HOOKS: dict[str, Callable[..., Any]] = {
    FORWARD: note,
    CHECKPOINT: keep_exact,
    ARRIVE: keep_apart,
    STEP: give_back,
}
"""What is wrapped by what."""

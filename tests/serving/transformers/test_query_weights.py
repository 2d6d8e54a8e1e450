"""Laws of a span read against a cache that stands still: values, gradients, operations."""

import math
import random

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from abduce.serving.errors import UsageError  # noqa: E402
from abduce.serving.transformers import query_weights  # noqa: E402

from .query_parts import READINGS, SIZE, model_of, prefilled, text_of  # noqa: E402

# ---------------------------------------------------------------- spans against a cache


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Phi3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_span_against_the_cache_equals_the_full_forward(kind, attention):
    model, ids = model_of(kind, attention=attention), text_of(700)
    own, kept = prefilled(model, ids)
    query_weights.own_queries(own)
    with torch.no_grad():
        full = model(ids[None]).logits[0]
        draw = random.Random(1)
        for k in (1, 63, 100):
            start = draw.randrange(len(ids) - k)
            for reading in READINGS:
                told = query_weights.span_logits(own, kept, ids, start, k, reading)
                assert torch.allclose(told, full[start : start + k], atol=1e-5)


def test_the_readings_agree_before_the_first_step_and_differ_after():
    model, ids = model_of(), text_of(200)
    own, kept = prefilled(model, ids)
    weights = query_weights.own_queries(own)

    def gap():
        told = [query_weights.span_logits(own, kept, ids, 60, 30, reading) for reading in READINGS]
        return float((told[0] - told[1]).detach().abs().max())

    assert gap() < 1e-5
    with torch.no_grad():
        weights[0].mul_(1.5)
    assert gap() > 1e-4


@pytest.mark.parametrize("reading", READINGS)
def test_keys_and_tokens_after_a_position_do_not_show(reading):
    model, ids = model_of(), text_of(120)
    own, kept = prefilled(model, ids)
    query_weights.own_queries(own)
    start, k, at = 40, 20, 12
    first = query_weights.span_logits(own, kept, ids, start, k, reading).detach()
    later = {layer: [tensor.clone() for tensor in pair] for layer, pair in kept.items()}
    for pair in later.values():
        for tensor in pair:
            tensor[:, :, start + at :] += 3
    changed = ids.clone()
    changed[start + at :] = (changed[start + at :] + 1) % SIZE
    told = query_weights.span_logits(own, later, changed, start, k, reading).detach()
    assert torch.equal(told[:at], first[:at])
    assert not torch.allclose(told[at:], first[at:], atol=1e-3)


# ---------------------------------------------------------------- gradients


def in_float64(model):
    """Norms too, which transformers computes in float32."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if "RMSNorm" in type(module).__name__:
                norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
                norm.weight = module.weight
                setattr(parent, name, norm)
    return model.double()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_gradients_are_those_of_finite_differences(kind, reading):
    model, ids = in_float64(model_of(kind)), text_of(60)
    own, kept = prefilled(model, ids)
    weights = query_weights.own_queries(own)
    loss = query_weights.span_loss(own, kept, ids, 20, 25, reading)
    grads = torch.autograd.grad(loss, weights)
    draw, h = torch.Generator().manual_seed(0), 1e-5
    for weight, grad in zip(weights, grads, strict=True):
        direction = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * h * direction
                ends.append(float(query_weights.span_loss(own, kept, ids, 20, 25, reading)))
                weight -= sign * h * direction
        assert float((grad * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


def test_our_attention_is_that_of_pytorch_with_a_gradient_for_queries_alone():
    torch.manual_seed(0)
    query = torch.randn(1, 6, 7, 8, requires_grad=True)
    key, value = (torch.randn(1, 2, 63, 8, requires_grad=True) for _ in "kv")
    mask = torch.zeros(1, 1, 7, 63).masked_fill_(
        torch.rand(1, 1, 7, 63) < 0.3, torch.finfo(torch.float32).min
    )
    ours = query_weights.QueryOnly.apply(query, key, value, mask, 0.3)
    wide = [tensor.repeat_interleave(3, 1) for tensor in (key, value)]
    theirs = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask, scale=0.3)
    assert torch.allclose(ours, theirs, atol=1e-6)
    way = torch.randn_like(ours)
    [expected] = torch.autograd.grad((theirs * way).sum(), query)
    told = torch.autograd.grad((ours * way).sum(), [query, key, value], allow_unused=True)
    assert torch.allclose(told[0], expected, atol=1e-5)
    assert told[1] is None
    assert told[2] is None


def test_a_step_on_the_attention_itself_moves_the_query_to_its_key():
    """∇_q -ln α* = (μ - k*) / √d, and the log-margin rises by η‖∇‖² to first order."""
    torch.manual_seed(0)
    d, n, target = 16, 50, 13
    keys, q = torch.randn(n, d, dtype=torch.float64), torch.randn(d, dtype=torch.float64)

    def attention(at):
        out = query_weights.QueryOnly.apply(
            at.view(1, 1, 1, d),
            keys[None, None],
            torch.eye(n, dtype=torch.float64)[None, None],
            None,
            d**-0.5,
        )
        return out.flatten()

    q.requires_grad_()
    alpha = attention(q)
    [grad] = torch.autograd.grad(-alpha[target].log(), q)
    assert torch.allclose(grad, (alpha @ keys - keys[target]).detach() / math.sqrt(d))
    with torch.no_grad():
        for rate in (1e-3, 1e-4):
            gain = (attention(q - rate * grad)[target] / alpha[target]).log()
            assert float(gain) == pytest.approx(rate * float(grad @ grad), rel=20 * rate)
            assert gain > 0


def test_a_model_without_query_projections_is_refused():
    config = transformers.GPT2Config(vocab_size=SIZE, n_embd=16, n_layer=2, n_head=2)
    with pytest.raises(UsageError, match="0 query projections in the 2 layers"):
        query_weights.own_queries(query_weights.twin(transformers.GPT2LMHeadModel(config)))


# ---------------------------------------------------------------- what it costs


class Largest(TorchDispatchMode):
    """The most numbers in one tensor that an operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, torch.Tensor) and not any(each is arg for arg in args):
                view = each._is_view() or func._schema.name in ("aten::detach", "aten::t", "aten::slice")
                self.numel = max(self.numel, 0 if view else each.numel())
        return out


def test_no_activation_of_a_step_grows_with_the_square_of_the_text():
    """Nor with text times width: the largest is [query heads of a key head · k, T]."""
    model, n, k = model_of(), 2000, 8
    own, kept = prefilled(model, text_of(n))
    weights = query_weights.own_queries(own)
    kept_sizes = []

    def keep(tensor):
        kept_sizes.append(tensor.untyped_storage().nbytes() if tensor.shape[-2:-1] != (n,) else 0)
        return tensor

    with Largest() as most, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = query_weights.span_loss(own, kept, text_of(n), n - k - 1, k)
        torch.autograd.grad(loss, weights)
    heads = 4 // 2
    assert most.numel <= heads * k * n < n * 48 < n * n


@pytest.mark.parametrize("n", [300, 1500])
@pytest.mark.parametrize(("kv_heads", "kept"), [(1, 0), (2, 1 / 2), (4, 1)])
def test_the_flops_of_a_step_are_those_of_the_formula(n, kv_heads, kept):
    """2 ((5 - kept) / 4 · 2 d L k T + (2 + 3 r) d² L k) multiplications: attention, of which the backward
    computes scores once more but for those that were kept, W_Q and W_O, and an MLP of three matrices; T is
    what the span can see. Beside it the head, and K and V of the span, which no gradient passes."""
    d, layers, k, ff = 64, 3, 40, 192
    sizes = {"hidden_size": d, "intermediate_size": ff, "num_hidden_layers": layers}
    model = model_of(**sizes, num_key_value_heads=kv_heads)
    ids = text_of(n)
    own, kv = prefilled(model, ids)
    weights = query_weights.own_queries(own)
    start = n - k - 1
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(query_weights.span_loss(own, kv, ids, start, k), weights)
    attention, linear = 2 * d * layers * k * (start + k), (2 + 3 * ff / d) * d * d * layers * k
    told = counter.get_total_flops() / 2
    beside = layers * k * d * 2 * 16 * kv_heads + 2 * k * d * model.config.vocab_size
    assert told - beside == pytest.approx(2 * ((5 - kept) / 4 * attention + linear), rel=0.02)
    assert told == pytest.approx(2 * (attention + linear), rel=0.2 if kept else 0.25)  # the paper's

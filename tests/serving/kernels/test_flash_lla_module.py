"""The layer of local linear attention: what it equals, what it decodes, what it learns."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import flash_lla  # noqa: E402
from abduce.serving.kernels.flash_lla.module import LEAST_RIDGE, LocalLinearAttention  # noqa: E402

WIDTH = 16


def layer(**keywords):
    torch.manual_seed(0)
    return LocalLinearAttention(WIDTH, 4, **keywords).double()


def text(n=12, batch=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, n, WIDTH, generator=g, dtype=torch.float64)


def rotary(n, begin=0, d=4):
    angles = torch.arange(begin, begin + n).double()[:, None] * 10.0 ** -torch.arange(d // 2).double()
    return tuple(f(angles.repeat(1, 2))[None] for f in (torch.cos, torch.sin))


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_it_projects_attends_and_projects(n_kv_heads):
    it, x = layer(n_kv_heads=n_kv_heads), text()
    q, k, v = (getattr(it, f"{name}_proj")(x).reshape(2, 12, -1, it.head_dim) for name in ("q", "k", "v"))
    o = flash_lla.flash_lla(q, k, v, torch.ones(4).double(), it.head_dim**-0.5)
    torch.testing.assert_close(it(x), o.flatten(2) @ it.o_proj.weight.T)


def test_a_strong_ridge_is_the_softmax_attention_of_the_same_weights():
    it, x = layer(ridge=1e9, n_kv_heads=2), text()
    q, k, v = (
        getattr(it, f"{name}_proj")(x).unflatten(-1, (-1, 4)).transpose(1, 2) for name in ("q", "k", "v")
    )
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(it(x), o.transpose(1, 2).flatten(2) @ it.o_proj.weight.T, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.001, 0.1, 1.0, 10.0, 100.0])
def test_the_ridge_begins_where_it_is_told_and_stays_positive(ridge):
    it = layer(ridge=ridge)
    torch.testing.assert_close(it.ridge, torch.full((4,), ridge).double(), rtol=1e-4, atol=0)
    with torch.no_grad():
        it.raw_ridge.fill_(-1e4)
    assert (it.ridge >= LEAST_RIDGE).all()
    assert torch.isfinite(it(text())).all()


def test_what_comes_later_changes_nothing_before():
    it, x = layer(), text()
    y = it(x)
    x[:, 8:] += 1
    torch.testing.assert_close(it(x)[:, :8], y[:, :8])


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("cuts", [(12,), (7, 1, 1, 1, 1, 1), (1,) * 12, (3, 4, 1, 4)])
def test_a_cache_gives_the_rows_of_the_whole(window, cuts):
    it, x = layer(n_kv_heads=2, window=window), text()
    with torch.no_grad():
        whole, cache, at, parts = it(x, rotary(12)), it.cache(2, 14), 0, []
        for n in cuts:
            parts.append(it(x[:, at : at + n], rotary(n, at), cache))
            at += n
    assert cache.length == 12
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_rotation_makes_it_blind_to_where_a_text_begins():
    """Keys and queries turn together: the regression is that of turned axes, and the ridge is round."""
    it, x = layer(), text()
    torch.testing.assert_close(it(x, rotary(12)), it(x, rotary(12, begin=40)))
    assert not torch.allclose(it(x, rotary(12)), it(x))


def test_every_parameter_gets_its_exact_gradient():
    torch.manual_seed(0)
    it = LocalLinearAttention(4, 2, n_kv_heads=1).double()
    x = text(n=4, batch=1)[..., :4].clone().requires_grad_()
    names, values = zip(*it.named_parameters(), strict=True)
    assert "raw_ridge" in names

    def run(x, *values):
        return torch.func.functional_call(it, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_runs_in_the_dtype_of_its_weights(dtype):
    it = layer().to(dtype)
    y = it(text().to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), layer()(text()), atol=0.05, rtol=0.05)


def test_it_goes_on_where_softmax_attention_stops():
    """Each text has an affine f of its own: f(x) for x beyond all that was seen, from a cache."""
    g = torch.Generator().manual_seed(0)
    x, slope, shift = (torch.rand(64, n, generator=g) for n in (20, 1, 1))
    x[:, -1] = 2.0
    texts = torch.stack([x, slope * x + shift], -1)

    @torch.no_grad()
    def error(ridge):
        it = LocalLinearAttention(2, 1, head_dim=1, ridge=ridge)
        for part, row in ((it.q_proj, [[1.0, 0.0]]), (it.k_proj, [[1.0, 0.0]]), (it.v_proj, [[0.0, 1.0]])):
            part.weight.copy_(torch.tensor(row))  # queries and keys are x, values f(x)
        cache = it.cache(64, 20)
        it(texts[:, :-1], cache=cache)
        o = flash_lla.flash_lla(
            it.q_proj(texts[:, -1:])[:, :, None], cache.k[:, :19], cache.v[:, :19], it.ridge, it.scale
        )
        return float((o[:, 0, 0, 0] - texts[:, -1, 1]).square().mean())

    assert error(0.001) < 0.01 * error(1e6)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="Write a divisor of 4"):
        layer(n_kv_heads=3)
    with pytest.raises(ValueError, match="must be above"):
        layer(ridge=0.0)
    it = layer()
    with pytest.raises(ValueError, match=r"Write layer.cache\(batch, 12\)"), torch.no_grad():
        it(text(), cache=it.cache(2, 8))

"""Local linear attention's laws in float64: its limits, its two forms, its gradients, its solver."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import flash_lla  # noqa: E402
from abduce.serving.kernels.flash_lla import reference  # noqa: E402

SCALE = 8**-0.5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(n=24, n_kv=1, group=2, d=8, seed=0):
    g = rng(seed)
    q = torch.randn(1, n, n_kv * group, d, generator=g, dtype=torch.float64)
    k, v = (torch.randn(1, n, n_kv, d, generator=g, dtype=torch.float64) for _ in range(2))
    return q, k, v


def ridge(value, heads=2):
    return torch.full((heads,), value, dtype=torch.float64)


def by_regression(q, k, v, lam, scale):
    """Row by row: the intercept of the weighted ridge regression of v on k - q, by its normal equations."""
    out = torch.empty_like(q)
    for i in range(q.shape[1]):
        for h in range(q.shape[2]):
            keys, values = k[0, : i + 1, 0], v[0, : i + 1, 0]
            w = torch.softmax(keys @ q[0, i, h] * scale, 0)
            x = torch.cat([torch.ones(i + 1, 1).double(), keys - q[0, i, h]], 1)
            penalty = torch.diag(torch.cat([torch.zeros(1), lam[h].expand(keys.shape[1])]))
            solution = torch.linalg.solve(x.T @ (w[:, None] * x) + penalty, x.T @ (w[:, None] * values))
            out[0, i, h] = solution[0]
    return out


@pytest.mark.parametrize("lam", [0.01, 1.0, 10.0])
def test_it_is_the_intercept_of_a_ridge_regression(lam):
    q, k, v = inputs()
    out = flash_lla.flash_lla(q, k, v, ridge(lam), SCALE)
    torch.testing.assert_close(out, by_regression(q, k, v, ridge(lam), SCALE), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lam", [0.001, 1.0, 10.0])
def test_the_published_form_is_the_same(lam):
    q, k, v = inputs()
    centred = reference.solved(q, k, v, ridge(lam), SCALE)
    published = reference.solved(q, k, v, ridge(lam), SCALE, form="published")
    torch.testing.assert_close(centred, published, rtol=1e-8, atol=1e-8)


def test_a_constant_is_reproduced():
    q, k, _ = inputs()
    v = torch.full_like(k, 3.25)
    out = flash_lla.flash_lla(q, k, v, ridge(0.3), SCALE)
    torch.testing.assert_close(out, torch.full_like(q, 3.25))


def test_a_strong_ridge_is_softmax_attention():
    q, k, v = inputs()
    softmax = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k.expand_as(q), v.expand_as(q))), is_causal=True, scale=SCALE
    )
    out = flash_lla.flash_lla(q, k, v, ridge(1e9), SCALE)
    torch.testing.assert_close(out, softmax.transpose(1, 2), rtol=1e-6, atol=1e-6)


def test_a_flat_kernel_without_ridge_is_least_squares():
    q, k, v = inputs(n=40)
    out = flash_lla.flash_lla(q, k, v, ridge(1e-10), 1e-12)
    x = torch.cat([torch.ones(40, 1).double(), k[0, :, 0]], 1)
    solution = torch.linalg.lstsq(x, v[0, :, 0]).solution
    ones = torch.ones(2, 1).double()
    torch.testing.assert_close(out[0, -1], torch.cat([ones, q[0, -1]], 1) @ solution, rtol=1e-5, atol=1e-5)


def test_affine_values_are_exact_wherever_there_are_enough_keys():
    q, k, _ = inputs(n=30)
    matrix, shift = torch.randn(8, 8, generator=rng(3)).double(), torch.randn(8, generator=rng(4)).double()
    out = flash_lla.flash_lla(q, k, k @ matrix + shift, ridge(1e-9), SCALE)
    torch.testing.assert_close(out[:, 12:], (q @ matrix + shift)[:, 12:], rtol=1e-4, atol=1e-4)


def test_one_key_gives_its_value():
    q, k, v = inputs(n=1)
    torch.testing.assert_close(flash_lla.flash_lla(q, k, v, ridge(1.0), SCALE), v.expand_as(q))


@pytest.mark.parametrize("form", ["centred", "published"])
def test_gradients_are_exact(form):
    q, k, v = (x.requires_grad_() for x in inputs(n=6, d=3))
    lam = ridge(0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: reference.solved(*x, SCALE, form=form), (q, k, v, lam), eps=1e-6, atol=1e-6
    )


def test_the_written_backward_is_autograd_to_1e_10():
    """README.md's formulas, in float64, against autograd through the direct solve."""
    q, k, v = (x.requires_grad_() for x in inputs(n=12, group=1))
    lam = ridge(0.7, 1).requires_grad_()
    g = torch.randn(12, 8, generator=rng(9), dtype=torch.float64)
    out = reference.flash_lla(q, k, v, lam, SCALE)
    wanted = torch.autograd.grad((out[0, :, 0] * g).sum(), (q, k, v, lam))
    with torch.no_grad():
        q_, k_, v_ = q[0, :, 0], k[0, :, 0], v[0, :, 0]
        p = torch.softmax((q_ @ k_.T * SCALE).masked_fill(torch.ones(12, 12).triu(1) > 0, -torch.inf), -1)
        mean = p @ k_
        away = k_ - mean[:, None]
        c_matrix = torch.einsum("ij,ijc,ije->ice", p, away, away) + lam * torch.eye(8).double()
        eta = torch.linalg.solve(c_matrix, mean - q_)
        c = g @ v_.T
        off = c - (p * c).sum(1, keepdim=True)
        u = torch.linalg.solve(c_matrix, torch.einsum("ij,ijc->ic", p * off, away))
        a, b = torch.einsum("ijc,ic->ij", away, eta), torch.einsum("ijc,ic->ij", away, u)
        e = c - off * a - b + a * b
        ds = p * (e - (p * e).sum(1, keepdim=True))
        dq = SCALE * ds @ k_ + u
        dk = SCALE * ds.T @ q_ + (p * (b - off)).T @ eta + (p * (a - 1)).T @ u
        dv = (p * (1 - a)).T @ g
    got = (dq[None, :, None], dk[None, :, None], dv[None, :, None], (u * eta).sum()[None])
    for is_, should in zip(got, wanted, strict=True):
        torch.testing.assert_close(is_, should, rtol=1e-10, atol=1e-10)


CURVE = {  # head_dim, λ: the known error after so many iterations
    (64, 0.01): {32: 1.4e-2},
    (64, 0.1): {8: 1e-1, 16: 5e-3, 32: 5e-6},
    (64, 1.0): {8: 1e-3, 16: 2e-7},
    (64, 10.0): {4: 3e-4, 8: 4e-8},
    (128, 1.0): {8: 6e-3, 16: 7e-6},
}


@pytest.mark.parametrize(("d", "lam"), CURVE)
def test_conjugate_gradients_converge_as_is_known(d, lam):
    """Within a factor of two; below 1e-6 of the residual a row stops."""
    g = rng(1)
    q, k, v = (torch.randn(1, 512, 1, d, generator=g, dtype=torch.float64) for _ in range(3))
    exact = reference.solved(q, k, v, ridge(lam, 1), d**-0.5)
    for iterations, known in CURVE[d, lam].items():
        found = reference.solved(q, k, v, ridge(lam, 1), d**-0.5, iterations=iterations)
        error = float((found - exact).norm() / exact.norm())
        assert error <= max(2 * known, 1e-6)
        assert error >= known / 2


def test_each_row_stops_when_it_is_done():
    g = rng(2)
    q, k = (torch.randn(1, 64, 1, 16, generator=g, dtype=torch.float64) for _ in range(2))
    later = torch.ones(64, 64).triu(1) > 0
    p = torch.softmax((q[0, :, 0] @ k[0, :, 0].T / 4).masked_fill(later, -torch.inf), -1)
    mean = p @ k[0, :, 0]
    right = mean - q[0, :, 0]
    found, taken = reference.conjugate_gradient(p, k[0, :, 0], mean, ridge(0.5, 1), right, 99)
    assert taken[0] == 1  # of one key there is no covariance
    assert (taken[1:5] <= torch.arange(2, 6)).all()  # nor more than its rank
    assert taken.mean() < taken.max() < 99
    away = k[0, None, :, 0] - mean[:, None]
    covariance = torch.einsum("ij,ijc,ije->ice", p, away, away) + 0.5 * torch.eye(16).double()
    left = torch.einsum("ice,ie->ic", covariance, found) - right
    assert (left.norm(dim=-1) <= 2e-6 * right.norm(dim=-1)).all()


def test_a_window_and_late_queries_are_the_rows_of_the_whole():
    q, k, v = inputs(n=20)
    whole = flash_lla.flash_lla(q, k, v, ridge(1.0), SCALE)
    torch.testing.assert_close(flash_lla.flash_lla(q[:, 13:], k, v, ridge(1.0), SCALE), whole[:, 13:])
    near = flash_lla.flash_lla(q, k, v, ridge(1.0), SCALE, window=5)
    torch.testing.assert_close(
        near[:, -1:], flash_lla.flash_lla(q[:, -1:], k[:, -5:], v[:, -5:], ridge(1.0), SCALE)
    )


def test_decode_is_the_last_row():
    q, k, v = inputs(n=20)
    slots = torch.arange(20)[None, None]
    out = flash_lla.decode(q[:, -1], k[0], v[0], slots, ridge(1.0), SCALE)
    torch.testing.assert_close(out, flash_lla.flash_lla(q, k, v, ridge(1.0), SCALE)[:, -1])


def hard(kind, dtype=torch.float64):
    q, k, v = (x.to(dtype) for x in inputs(n=20))
    if kind == "one key":
        return q[:, :1], k[:, :1], v[:, :1]
    return (q, k[:, :1].expand_as(k), v) if kind == "one key many times" else (1e3 * q, 1e3 * k, v)


HARD = ["one key", "one key many times", "huge logits"]


@pytest.mark.parametrize("kind", HARD)
def test_hard_cases_give_no_nan(kind):
    assert torch.isfinite(flash_lla.flash_lla(*hard(kind), ridge(0.1), SCALE)).all()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("kind", HARD)
def test_nor_do_the_kernels_or_their_gradients(kind):
    from abduce.serving.kernels.flash_lla import kernel

    q, k, v = hard(kind, torch.float32)
    lam = torch.full((2,), 0.1)
    given = [x.clone().requires_grad_() for x in (q, k, v, lam)]
    out = kernel.flash_lla(*given, SCALE)
    assert all(torch.isfinite(x).all() for x in torch.autograd.grad(out.square().sum(), given))
    slots = torch.arange(len(k[0]))[None, None]
    last = kernel.decode(q[:, -1], k[0].contiguous(), v[0], slots, lam, SCALE)
    assert torch.isfinite(last).all()
    if kind != "huge logits":  # there float32 ends: keys of 1e3, a ridge of 0.1
        exact = flash_lla.flash_lla(*hard(kind), ridge(0.1), SCALE)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(last.double(), exact[:, -1], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_beside_bfloat16_the_kernels_lose_little_more_than_it_does():
    """Relative errors of the output, and at most three times that of the gradients, one token beyond a tile.
    The interpreter cuts where a GPU rounds to bfloat16, so it shows the worse of both."""
    from abduce.serving.kernels.flash_lla import kernel

    for d, lam, close in ((64, 0.1, 2e-2), (128, 10.0, 1e-2)):
        g = rng(1)
        q, k, v, weight = (torch.randn(1, 65, 1, d, generator=g).bfloat16() for _ in range(4))
        given = [q, k, v, torch.tensor([lam])]
        exact = [x.double().requires_grad_() for x in given]
        should = reference.flash_lla(*exact, d**-0.5)
        with torch.set_grad_enabled(d == 64):  # the gradients of one are enough
            given = [x.clone().requires_grad_(d == 64) for x in given]
            out = kernel.flash_lla(*given, d**-0.5)
        assert (out.detach().double() - should.detach()).norm() <= close * should.detach().norm()
        if d == 64:
            got = torch.autograd.grad((out.double() * weight).sum(), given)
            wanted = torch.autograd.grad((should * weight).sum(), exact)
            for is_, right in zip(got, wanted, strict=True):
                assert (is_.double() - right).norm() <= 3 * close * right.norm()


def test_a_ridge_of_nothing_is_told():
    q, k, v = inputs(n=4)
    with pytest.raises(ValueError, match="must be positive"):
        flash_lla.flash_lla(q, k, v, ridge(0.0), SCALE)


@pytest.mark.usefixtures("interpreted")
def test_the_kernel_stops_where_it_is_told_to():
    from abduce.serving.kernels.flash_lla import kernel

    q, k, v = (x.float() for x in inputs(n=24, group=1, d=16))
    lam = torch.full((1,), 0.1)
    exact = reference.flash_lla(q, k, v, lam, SCALE)
    errors = [
        float((kernel.flash_lla(q, k, v, lam, SCALE, iterations=t) - exact).norm() / exact.norm())
        for t in (2, 8, 32)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]

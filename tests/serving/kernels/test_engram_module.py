"""Engram as a layer, and its table in host memory: laws of both, and that they give one result."""

import re
from concurrent.futures import wait
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import engram  # noqa: E402
from abduce.serving.kernels.engram import reference  # noqa: E402
from abduce.serving.kernels.engram.host_table import HostTable  # noqa: E402
from abduce.serving.kernels.engram.module import Addresses, Engram  # noqa: E402

SIZE = 300


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def made(*, branches=1, convolve=True, trained=True, own_table=True):
    """A layer and its addresses; `trained`: its convolution is not zero any more."""
    [layout] = engram.layouts([1], SIZE // 2, max_order=3, n_heads=2, base=97)
    torch.manual_seed(0)
    layer = Engram(layout, 16, 4, branches=branches, convolve=convolve, own_table=own_table).double()
    if trained and convolve:
        torch.nn.init.normal_(layer.conv)
    return layer, Addresses(torch.arange(SIZE) // 2, (layout,), pad=0)


def inputs(batch=3, n=11, branches=1, seed=1):
    h = torch.randn(batch, n, branches, 16, generator=rng(seed), dtype=torch.float64)
    return h, torch.randint(0, SIZE, (batch, n), generator=rng(seed))


@pytest.mark.parametrize("branches", [1, 4])
@pytest.mark.parametrize("convolve", [True, False])
def test_it_is_the_reference_text_by_text(branches, convolve):
    layer, addresses = made(branches=branches, convolve=convolve)
    h, ids = inputs(branches=branches)
    [rows] = addresses(ids)
    out = layer(h, rows)
    for b in range(len(h)):
        near = engram.predecessors(addresses.token_map[ids[b]], [11], 3, 0)
        e = reference.lookup(layer.table, reference.hash_rows(near, layer.layout))
        u = reference.gate(h[b], e @ layer.project.weight.T, layer.h_norm, layer.k_norm)
        y = reference.short_conv(u, layer.conv, layer.conv_norm, 3) if convolve else u
        torch.testing.assert_close(out[b], h[b] + y)


def test_one_branch_needs_no_axis():
    layer, addresses = made()
    h, ids = inputs()
    [rows] = addresses(ids)
    torch.testing.assert_close(layer(h[:, :, 0], rows), layer(h, rows)[:, :, 0])


def test_learning_and_serving_give_one_result():
    layer, addresses = made(branches=2)
    h, ids = inputs(branches=2)
    [rows] = addresses(ids)
    with torch.no_grad():
        served = layer(h, rows)
    torch.testing.assert_close(served, layer(h, rows).detach())


def test_at_first_the_convolution_is_the_identity():
    layer, addresses = made(trained=False)
    without, _ = made(convolve=False)
    h, ids = inputs()
    [rows] = addresses(ids)
    torch.testing.assert_close(layer(h, rows), without(h, rows))


def test_every_parameter_learns():
    layer, addresses = made()
    h, ids = inputs()
    layer(h, addresses(ids)[0]).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    touched = layer.table.grad.abs().sum(1) > 0
    assert torch.equal(touched.nonzero()[:, 0], addresses(ids)[0].unique())


def test_nothing_looks_ahead():
    layer, addresses = made()
    h, ids = inputs()
    before = layer(h, addresses(ids)[0])
    ids[:, 7] = (ids[:, 7] + 2) % SIZE
    after = layer(h, addresses(ids)[0])
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


def test_a_text_goes_on_from_its_last_tokens():
    _, addresses = made()
    _, ids = inputs()
    [whole] = addresses(ids)
    [rest] = addresses(ids[:, 5:], history=ids[:, 3:5])
    assert torch.equal(whole[:, 5:], rest)


def test_tokens_of_one_compressed_id_have_one_address():
    _, addresses = made()
    ids = torch.tensor([[2, 4, 6], [3, 5, 7]])
    [rows] = addresses(ids)
    assert torch.equal(rows[0], rows[1])


def test_a_gate_is_what_the_value_is_weighed_by():
    layer, addresses = made(branches=2, convolve=False)
    h, ids = inputs(branches=2)
    [rows] = addresses(ids)
    alpha = layer.alpha(h, rows)
    assert ((alpha > 0) & (alpha < 1)).all()
    v = (reference.lookup(layer.table, rows.flatten(0, 1)) @ layer.project.weight.T)[:, -16:].view(
        3, 11, 1, 16
    )
    torch.testing.assert_close(layer(h, rows) - h, alpha[..., None] * v)


# ---------------------------------------------------------------- the host's table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("n_kept", [0, 1, 13, 500])
def test_rows_from_the_host_are_the_tables_to_the_bit(dtype, n_kept):
    table = torch.randn(200, 6, generator=rng(2)).to(dtype)
    held = HostTable(table, n_kept=n_kept)
    for seed in range(30):
        n = (0, 1, 7, 64)[seed % 4]
        rows = (torch.rand(n, 3, generator=rng(seed)) ** 3 * 200).long()
        assert torch.equal(held(rows), reference.lookup(table, rows))
    held.close()


def test_logits_do_not_depend_on_where_the_table_is():
    layer, addresses = made(branches=2)
    elsewhere, _ = made(branches=2, own_table=False)
    elsewhere.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "table"})
    held = HostTable(layer.table.detach(), n_kept=20)
    head = torch.randn(32, 50, generator=rng(3), dtype=torch.float64)
    for seed in range(5):
        h, ids = inputs(branches=2, seed=seed)
        [rows] = addresses(ids)
        ticket = held.prefetch(rows.flatten(0, 1))
        with torch.no_grad():
            e = held.take(ticket).view(3, 11, -1)
            assert torch.equal(elsewhere(h, rows, e).flatten(2) @ head, layer(h, rows).flatten(2) @ head)
    held.close()


def test_what_was_read_last_is_kept():
    table = torch.randn(100, 4, generator=rng(4))
    held = HostTable(table, n_kept=10)

    def hits(*rows):
        before = held.counts.hits
        held(torch.tensor(rows)[:, None])
        return held.counts.hits - before

    assert hits(*range(10)) == 0
    assert hits(*range(10)) == 10
    assert hits(0, 1, 2, 50, 51) == 3  # two of 3 to 9 make room
    assert hits(0, 1, 2, 50, 51) == 5
    assert hits(*range(60, 75)) == 0
    assert held.counts.asked == 10 + 10 + 5 + 5 + 15
    assert held.counts.copied_bytes == (45 - held.counts.hits) * 16
    held.close()


def test_frequent_rows_stay_under_zipfs_law():
    size, width = 5000, 8
    table = torch.randn(size, width, generator=rng(5))
    p = 1 / torch.arange(1, size + 1, dtype=torch.float64) ** 1.1
    trace = torch.multinomial(p, 60 * 512, True, generator=rng(6)).view(60, 64, 8)
    rates = []
    for share in (0.02, 0.1, 1.0):
        held = HostTable(table, n_kept=int(share * size))
        for rows in trace:
            held(rows)
        rates.append(held.counts.hit_rate)
        missed = held.counts.asked - held.counts.hits
        held.close()
    assert rates == sorted(rates)
    assert rates[1] > 0.3
    assert missed == len(trace.unique())  # with room for all, each is copied once


def test_a_fetch_needs_nobody_who_waits_for_it():
    held = HostTable(torch.randn(2000, 64, generator=rng(7)))
    rows = torch.randint(0, 2000, (256, 16), generator=rng(8))
    tickets = [held.prefetch(rows) for _ in range(3)]
    wait(tickets, 60)  # the layers before
    assert all(ticket.done() for ticket in tickets)
    for ticket in tickets:
        held.take(ticket)
    while_done = held.counts.wait_s
    for _ in range(3):
        held(rows)
    assert held.counts.wait_s - while_done > while_done
    held.close()


def test_an_error_in_a_fetch_is_told_by_take():
    held = HostTable(torch.randn(10, 2))
    with pytest.raises(IndexError):
        held(torch.tensor([[11]]))
    held.close()


def test_the_example_of_the_document_runs():
    text = (Path(__file__).parents[3] / "docs" / "kernels" / "engram.md").read_text(encoding="utf-8")
    code, _ = re.findall(r"```py\n(.*?)```", text, re.DOTALL)  # the other: transformers/test_engram.py
    exec(code, {})

"""LocalLeap's rule: whole tensors equal the definition, and its limits are the orders it lies between."""

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import localleap  # noqa: E402
from abduce.serving.kernels.localleap import Config, reference  # noqa: E402


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(seed, batch=3, block=32):
    g = rng(seed)
    confidence = torch.rand(batch, block, generator=g)
    confidence[torch.rand(batch, block, generator=g) < 0.1] = 0.95
    masked = torch.rand(batch, block, generator=g) < torch.rand(batch, 1, generator=g)
    if seed % 7 == 0:
        masked[0] = False
    return confidence, masked


@pytest.mark.parametrize("block", [4, 5, 32, 64])
def test_whole_tensors_are_the_definition(block):
    for seed in range(150):
        confidence, masked = rows(seed, batch=seed % 4 + 1, block=block)
        tau, kappa = sorted(torch.rand(2, generator=rng(seed)).add(0.01).tolist())
        config = Config(kappa, tau, seed % 9)
        assert torch.equal(
            localleap.commits(confidence, masked, config), reference.commits(confidence, masked, config)
        )


def test_each_row_with_a_mask_goes_on_and_nothing_else_is_touched():
    for seed in range(200):
        confidence, masked = rows(seed)
        chosen = localleap.commits(confidence, masked, Config())
        assert torch.equal(chosen.any(1), masked.any(1))
        assert not (chosen & ~masked).any()


def test_its_limits_are_threshold_decoding_and_the_sequential_order():
    for seed in range(100):
        confidence, masked = rows(seed)
        best = localleap.commits(confidence, masked, Config(2.0, 1.5, 4))
        assert torch.equal(best.sum(1), masked.any(1).long())
        surest = confidence.masked_fill(~masked, -1).argmax(1)
        assert best[torch.arange(len(best)), surest].equal(masked.any(1))
        threshold = (masked & (confidence >= 0.9)) | best
        assert torch.equal(localleap.commits(confidence, masked, Config(0.9, 0.9, 4)), threshold)
        assert torch.equal(localleap.commits(confidence, masked, Config(0.9, 0.3, 0)), threshold)


def test_more_is_committed_with_a_wider_radius_and_a_lower_bar():
    for seed in range(100):
        confidence, masked = rows(seed)
        sets = [localleap.commits(confidence, masked, Config(0.9, 0.5, radius)) for radius in (0, 1, 4, 40)]
        sets += [localleap.commits(confidence, masked, Config(0.9, tau, 40)) for tau in (0.3, 0.01)]
        for fewer, more in pairwise(sets):
            assert not (fewer & ~more).any()


@pytest.mark.parametrize(("kappa", "tau", "radius"), [(0.7, 0.8, 4), (0.9, 0.0, 4), (0.9, 0.5, -1)])
def test_a_setting_without_sense_is_told(kappa, tau, radius):
    with pytest.raises(ValueError, match="LocalLeap"):
        Config(kappa, tau, radius)


def test_confidence_is_a_probability():
    logits = torch.randn(20, 50, generator=rng(1), dtype=torch.float64)
    token, confidence = localleap.predict(logits)
    torch.testing.assert_close(confidence, torch.softmax(logits, -1).gather(1, token[:, None])[:, 0])
    assert torch.equal(token, logits.argmax(-1))

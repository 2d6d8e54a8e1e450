"""LocalLeap's runner on a stub whose confidences are scripted, and its calibration."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.errors import UsageError  # noqa: E402
from abduce.serving.kernels.localleap import Config, reference  # noqa: E402
from abduce.serving.transformers.localleap import decode  # noqa: E402
from abduce.serving.transformers.localleap_calibration import consistency, front, sweep  # noqa: E402

SIZE, MASK, EOS = 12, 11, 10
SEQUENTIAL, THRESHOLD = Config(2.0, 2.0, 0), Config(0.9, 0.9, 0)


def logits_of(tokens, confidence):
    """Logits whose softmax gives each token its confidence, and the others the rest."""
    rest = (1 - confidence) / (SIZE - 1)
    p = rest.unsqueeze(-1).expand(*tokens.shape, SIZE).clone()
    return p.scatter(-1, tokens.unsqueeze(-1), confidence.unsqueeze(-1)).log()


class Scripted:
    """Says token 1 + position mod 9, as sure as the script of the forward says."""

    def __init__(self, *script, token=lambda at: 1 + at % 9):
        self.script, self.token, self.seen = list(script), token, []

    def __call__(self, ids):
        self.seen.append(ids.clone())
        told = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        confidence = torch.tensor(told, dtype=torch.float64).expand(ids.shape)
        at = torch.arange(ids.shape[1])
        tokens = torch.tensor([self.token(i) for i in at.tolist()]).expand(ids.shape)
        return logits_of(tokens, confidence)


def places(steps, row=0):
    return [step.chosen[row].nonzero()[:, 0].tolist() for step in steps]


PROMPT = torch.tensor([[1, 2]])
SURE = [0.0, 0.0, 0.5, 0.8, 0.95, 0.8, 0.6, 0.8, 0.4, 0.3]


def run(model, config, prompts=PROMPT, gen_length=8, block=8, **words):
    steps = []
    decoded = decode(
        model,
        prompts,
        config,
        mask_id=MASK,
        gen_length=gen_length,
        block=block,
        watch=steps.append,
        **words,
    )
    return decoded, steps


def test_the_trace_of_a_scripted_block():
    later = [0.0, 0.0, 0.95, 0.8, 0.95, 0.8, 0.6, 0.8, 0.4, 0.3]
    decoded, steps = run(Scripted(SURE, later, SURE), Config(0.9, 0.75, 2))
    # The anchor takes its neighbours; then 2 is an anchor but 5 too far; then the best, one at a time.
    assert places(steps) == [[1, 2, 3], [0], [5], [4], [6], [7]]
    assert decoded.forwards.tolist() == [6]
    assert decoded.ids.tolist() == [[1 + at % 9 for at in range(2, 10)]]
    _, wider = run(Scripted(SURE, later, SURE), Config(0.9, 0.75, 4))
    assert places(wider)[0] == [1, 2, 3, 5]


def test_between_the_sequential_order_and_a_block_at_once():
    assert places(run(Scripted(SURE), SEQUENTIAL)[1]) == [[2], [1], [3], [5], [4], [0], [6], [7]]
    assert places(run(Scripted(SURE), THRESHOLD)[1]) == [[2], [1], [3], [5], [4], [0], [6], [7]]
    assert len(run(Scripted([0.99] * 10), THRESHOLD)[1]) == 1
    assert len(run(Scripted(SURE), Config(0.9, 0.01, 8))[1]) == 1


def test_blocks_are_filled_from_left_to_right_and_what_is_written_stays():
    rng = torch.Generator().manual_seed(0)
    model = Scripted(*torch.rand(60, 26, generator=rng).tolist())
    decoded, steps = run(model, Config(0.8, 0.5, 2), gen_length=24)
    assert [step.start for step in steps] == sorted(step.start for step in steps)
    for before, after in zip(model.seen, model.seen[1:], strict=False):
        kept = before != MASK
        assert torch.equal(before[kept], after[kept])
    assert not (decoded.ids == MASK).any()
    assert decoded.chosen.tolist() == [24]
    assert decoded.forwards_per_token == len(steps) / 24


def test_rows_of_a_batch_do_not_disturb_each_other():
    rng = torch.Generator().manual_seed(1)
    weights = torch.randn(SIZE, SIZE, generator=rng) * 3

    def model(ids):
        """Each position by its neighbours."""
        around = weights[ids].roll(1, 1) + weights[ids].roll(-1, 1)
        return around + torch.sin(torch.arange(ids.shape[1]) * 1.0)[:, None]

    prompts = torch.randint(0, 9, (5, 4), generator=rng)
    together, _ = run(model, Config(0.9, 0.5, 3), prompts, 16)
    for i in range(5):
        alone, _ = run(model, Config(0.9, 0.5, 3), prompts[i : i + 1], 16)
        assert torch.equal(alone.ids[0], together.ids[i])
        assert alone.forwards[0] == together.forwards[i]


def test_a_literal_mask_in_the_prompt_is_left_alone():
    model = Scripted([0.5] * 10)
    decoded, _ = run(model, Config(), torch.tensor([[MASK, 3]]))
    assert all(seen[0, 0] == MASK for seen in model.seen)
    assert not (decoded.ids == MASK).any()


def test_a_model_that_predicts_masks_ends_all_the_same():
    decoded, _ = run(Scripted([0.95] * 10, token=lambda at: MASK), Config())
    assert not (decoded.ids == MASK).any()


def test_an_eos_ends_a_row_with_its_block():
    model = Scripted([0.99] * 26, token=lambda at: EOS if at == 5 else 3)
    decoded, _ = run(model, Config(), gen_length=24, eos_id=EOS)
    assert decoded.ids.tolist() == [[3, 3, 3, EOS, 3, 3, 3, 3] + [EOS] * 16]
    assert (decoded.forwards.tolist(), decoded.chosen.tolist()) == ([1], [8])
    assert run(model, Config(), gen_length=24)[0].forwards.tolist() == [3]


@pytest.mark.parametrize("n_prompt", [0, 1, 3])
def test_logits_of_a_shifted_model_are_those_of_the_position_before(n_prompt):
    prompts = torch.ones(1, n_prompt, dtype=torch.int64)
    model = Scripted([0.99] * (n_prompt + 8), token=lambda at: at)
    decoded, _ = run(model, Config(), prompts, shifted=True)
    assert decoded.ids.tolist() == [[max(0, at - 1) for at in range(n_prompt, n_prompt + 8)]]


@pytest.mark.parametrize(("gen_length", "block"), [(10, 4), (0, 4), (8, 0)])
def test_blocks_must_divide_the_length(gen_length, block):
    with pytest.raises(UsageError, match="multiple"):
        decode(Scripted([0.5]), PROMPT, Config(), mask_id=MASK, gen_length=gen_length, block=block)


def test_the_front_holds_what_nothing_beats():
    rng = torch.Generator().manual_seed(2)
    model = Scripted(*torch.rand(400, 10, generator=rng).tolist())
    configs = [Config(0.9, tau, w) for tau in (0.1, 0.5, 0.9) for w in (1, 4)]
    points = sweep(
        model, PROMPT.repeat(4, 1), lambda ids: ids[:, 0] > 0, configs, mask_id=MASK, gen_length=8, block=8
    )
    best = front(points)
    assert len(points) == 6
    assert len(best) == 1  # all are right: the one with the fewest forwards
    assert best[0].decoded.forwards_per_token == min(p.decoded.forwards_per_token for p in points)


def test_consistency_counts_early_predictions_by_distance():
    early = [0.0, 0.0, 0.5, 0.8, 0.95, 0.8, 0.6, 0.8, 0.4, 0.3]
    decoded, steps = run(Scripted(early, [0.5] * 10), THRESHOLD)
    told = consistency(steps, decoded.ids, 2, 0.9)
    assert told == {1: (2, 2), 2: (2, 2), 3: (1, 1), 4: (1, 1), 5: (1, 1)}
    changed = decoded.ids.clone()
    changed[0, 1] += 1  # distance 1 from the anchor at 2
    assert consistency(steps, changed, 2, 0.9)[1] == (2, 1)


def test_the_rule_is_the_kernels_own():
    rng = torch.Generator().manual_seed(3)
    model = Scripted(*torch.rand(60, 34, generator=rng).tolist())
    _, steps = run(model, Config(0.8, 0.5, 2), gen_length=32, block=32)
    for step in steps:
        assert torch.equal(step.chosen, reference.commits(step.confidence, step.masked, Config(0.8, 0.5, 2)))

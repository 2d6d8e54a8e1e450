"""The member LocalLeap inside SGLang's own loops, with a scripted model in place of the server's."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang")

from abduce.serving.kernels.localleap import Config, reference  # noqa: E402

SIZE, MASK, BLOCK = 12, 11, 8


@pytest.fixture(scope="module")
def leap() -> Iterator[Any]:
    """The member, registered."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.syspath_prepend(str(Path(__file__).parent / "sglang_env" / "stand_ins"))
        warnings.simplefilter("ignore")
        from abduce.serving.sglang.plugin import localleap

        localleap.register()
        yield localleap


def config_of(*, fdfo: bool, **settings: Any) -> Any:
    from sglang.srt.dllm.config import DllmConfig

    return DllmConfig("LocalLeap", settings, BLOCK, MASK, 4, first_done_first_out_mode=fdfo)


class Model:
    """Stands for SGLang's: logits are a function of the block, the same at each call."""

    def __init__(self, seed: int) -> None:
        self.weights = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 3
        self.read: list[Any] = []

    def forward(self, forward_batch: Any, pp_proxy_tensors: Any = None) -> Any:
        """Each position by its neighbours."""
        ids = forward_batch.input_ids.view(-1, BLOCK)
        self.read.append(ids.clone())
        around = self.weights[ids].roll(1, 1) + self.weights[ids].roll(-1, 1)
        around = around + torch.sin(torch.arange(BLOCK) * 1.0)[:, None]
        output = SimpleNamespace(full_logits=around.reshape(-1, SIZE).clone())
        return SimpleNamespace(logits_output=output, can_run_graph=False)


def batch_of(ids: Any, prompt_mask: Any = None) -> Any:
    return SimpleNamespace(batch_size=len(ids), input_ids=ids.clone().flatten(), dllm_prompt_mask=prompt_mask)


def blocks(seed: int, batch: int = 4) -> Any:
    """Blocks with some tokens given at the start, the last with all."""
    ids = torch.randint(0, MASK, (batch, BLOCK), generator=torch.Generator().manual_seed(seed))
    for row in range(batch):
        ids[row, row * BLOCK // (batch - 1) :] = MASK
    return ids


def until_done(algorithm: Any, model: Model, ids: Any) -> tuple[list[list[int]], list[int]]:
    """First done, first out, as the scheduler does it: texts and forwards."""
    texts: list[list[int]] = [[] for _ in ids]
    forwards = [0] * len(ids)
    now, live = ids.clone(), list(range(len(ids)))
    while live:
        _, told, accepted, _states, _ = algorithm.run(model, batch_of(now[live]), [None] * len(live))
        now[live] = torch.tensor(told)
        for row, n in zip(live, accepted, strict=True):
            forwards[row] += 1
            if n:
                texts[row] = now[row].tolist()
        live = [row for row, n in zip(live, accepted, strict=True) if not n]
    return texts, forwards


@pytest.mark.parametrize("seed", range(8))
def test_both_loops_give_one_text_which_is_the_rules(leap: Any, seed: int) -> None:
    settings = {"anchor_threshold": 0.8, "relaxed_threshold": 0.4, "radius": 2}
    ids, model = blocks(seed), Model(seed)
    texts, forwards = until_done(leap.LocalLeap(config_of(fdfo=True, **settings)), model, ids)
    together = batch_of(ids)
    leap.LocalLeap(config_of(fdfo=False, **settings)).run(model, together)
    assert together.input_ids.view(-1, BLOCK).tolist() == texts
    for row in range(len(ids)):
        text, n = ids[row : row + 1].clone(), 0
        while (masked := text == MASK).any():
            logits = model.forward(batch_of(text)).logits_output.full_logits
            logits[:, MASK] = -torch.inf
            tokens, confidence = reference.predict(logits)
            chosen = reference.commits(confidence[None], masked, Config(**settings))
            text, n = torch.where(chosen, tokens[None], text), n + 1
        assert text[0].tolist() == texts[row]
        assert forwards[row] == n + 1


@pytest.mark.parametrize("fdfo", [True, False])
def test_the_last_forward_of_a_block_reads_its_final_tokens(leap: Any, fdfo: bool) -> None:
    """So the keys and values that stay are those of the text, and not of masks."""
    ids, model = blocks(3)[:2], Model(3)
    algorithm = leap.LocalLeap(config_of(fdfo=fdfo))
    if fdfo:
        texts, _ = until_done(algorithm, model, ids[:1])
        assert model.read[-1].tolist() == texts
    else:
        batch = batch_of(ids)
        algorithm.run(model, batch)
        assert model.read[-1].flatten().tolist() == batch.input_ids.tolist()
    assert not (model.read[-1] == MASK).any()


def test_a_forward_writes_in_place_and_counts(leap: Any) -> None:
    algorithm = leap.LocalLeap(config_of(fdfo=True))
    batch, model = batch_of(blocks(0)), Model(0)
    before, storage = batch.input_ids.clone(), batch.input_ids.data_ptr()
    done = algorithm.step(batch, model.forward(batch).logits_output.full_logits, [None] * 4)
    assert done == [False, False, False, True]
    assert batch.input_ids.data_ptr() == storage
    changed = batch.input_ids != before
    assert (before[changed] == MASK).all()
    assert changed.view(4, BLOCK).any(1).tolist() == [True, True, True, False]
    table = algorithm.table()
    assert (table["forwards"], table["blocks"], table["tokens"]) == (4, 1, int(changed.sum()))
    assert (table["anchor_threshold"], table["relaxed_threshold"], table["radius"]) == (0.9, 0.75, 4)


def test_a_mask_that_the_prompt_says_is_text_stays(leap: Any) -> None:
    ids = blocks(1)
    ids[1, 0] = MASK
    given = torch.zeros(4, BLOCK, dtype=torch.bool)
    given[:, 0] = True
    algorithm, model = leap.LocalLeap(config_of(fdfo=True)), Model(1)
    batch = batch_of(ids, given)
    for _ in range(BLOCK + 1):
        done = algorithm.step(batch, model.forward(batch).logits_output.full_logits, [None] * 4)
    assert all(done)
    after = batch.input_ids.view(4, BLOCK)
    assert torch.equal(after[:, 0], ids[:, 0])
    assert not (after[:, 1:] == MASK).any()


def test_a_model_that_predicts_masks_ends_all_the_same(leap: Any) -> None:
    algorithm, batch = leap.LocalLeap(config_of(fdfo=True)), batch_of(blocks(2))
    for _ in range(BLOCK + 1):
        logits = torch.zeros(4 * BLOCK, SIZE)
        logits[:, MASK] = 50.0
        done = algorithm.step(batch, logits, [None] * 4)
    assert all(done)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"threshold": 0.9}, "no setting 'threshold'.*anchor_threshold"),
        ({"anchor_threshold": "high"}, "anchor_threshold is a number"),
        ({"radius": 2.5}, "radius is a whole number"),
        ({"radius": True}, "radius is a whole number"),
        ({"radius": -1}, "radius must be 0 or more"),
        ({"relaxed_threshold": 0.95}, "0 < relaxed_threshold <= anchor_threshold"),
        ({"block_size": 0}, "block_size is 1 or more"),
    ],
)
def test_a_bad_configuration_is_told(leap: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        leap.LocalLeap(config_of(fdfo=True, **settings))


def test_its_name_is_known_through_the_member_alone(leap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.dllm import algorithm

    assert algorithm.get_algorithm_cls("LocalLeap") is leap.LocalLeap
    assert isinstance(algorithm.get_algorithm(config_of(fdfo=True)), leap.LocalLeap)
    monkeypatch.setattr(leap, "get_exec", lambda: SimpleNamespace(dllm=SimpleNamespace(dllm_algorithm=None)))
    assert leap.verify(None) == {"used": False}
    monkeypatch.delitem(algorithm.algo_name_to_cls, "LocalLeap")
    with pytest.raises(RuntimeError, match="Unknown diffusion LLM algorithm: LocalLeap"):
        algorithm.get_algorithm_cls("LocalLeap")
    with pytest.raises(RuntimeError, match="not registered"):
        leap.verify(None)


def test_a_scheduler_with_another_algorithm_is_told(leap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = SimpleNamespace(dllm=SimpleNamespace(dllm_algorithm="LocalLeap"))
    monkeypatch.setattr(leap, "get_exec", lambda: named)
    worker = SimpleNamespace(dllm_algorithm=leap.LocalLeap(config_of(fdfo=True)))
    assert leap.verify(SimpleNamespace(tp_worker=worker))["used"]
    worker.dllm_algorithm = None
    with pytest.raises(RuntimeError, match="NoneType decodes"):
        leap.verify(SimpleNamespace(tp_worker=worker))


@pytest.mark.parametrize(
    ("params", "told"), [({"top_k": 1}, None), ({"top_k": 50}, "temperature 0"), ({"regex": "a"}, "grammar")]
)
def test_what_it_cannot_do_is_refused(leap: Any, params: dict[str, Any], told: str | None) -> None:
    request = SimpleNamespace(sampling_params=SimpleNamespace(**{"top_k": 1, **params}))
    refused = leap.LocalLeap.validate_request(request)
    assert refused is None if told is None else told in refused

"""Laws of DiffAdapt as it runs: what reaches the engine, when it falls back, what it refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.serving.errors import EngineError, MissingCapability, UnknownName, UsageError
from abduce.serving.flow import Completion, Hidden, Message, Note, Sampling
from abduce.serving.scripted import Scripted
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import State, Task
from abduce.strategies.diffadapt import DiffAdapt, entropy
from abduce.strategies.diffadapt.collect import observe, truncated
from abduce.strategies.diffadapt.features import REFERENCE, layout, read
from abduce.strategies.diffadapt.modes import EASY, HARD, MODES, NORMAL, Mode, digest, in_mode, limited
from abduce.strategies.diffadapt.probe import Signature, cosine
from abduce.strategies.policy import StepPolicy

from .diffadapt_parts import NAMES, POLICY, STATES, reader, signature, state_of


async def play(strategy, task, reply="The answer is 4", *, seed=0, engine=None, hidden=state_of):
    """The result, the requests of the engine and the notes."""
    asked, notes = [], []

    def script(request, seed):
        asked.append(request)
        return reply(request) if callable(reply) else reply

    engine = engine or Scripted(script, hidden=hidden, top_logprobs=lambda _: (-0.1, -3.0), ids=True)
    flow = strategy.solve(task, seed=seed)

    def watched():
        replies = None
        try:
            while True:
                batch = flow.send(replies)
                notes.extend(r.data for r in batch if isinstance(r, Note) and r.kind == "diffadapt")
                asked.extend(r for r in batch if isinstance(r, Hidden))
                replies = yield batch
        except StopIteration as end:
            return end.value

    result = await Driver(Services({"policy": engine}), seed=seed).run(watched())
    return result, asked, notes


# ---------------------------------------------------------------- inference


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
async def test_the_triple_reaches_the_engine_unchanged(mode):
    strategy = DiffAdapt(policy=POLICY, probe=reader())
    result, asked, notes = await play(strategy, Task(f"a {mode.name} one"))
    [request] = [each for each in asked if not isinstance(each, Hidden)]
    want = Sampling(temperature=mode.temperature, max_tokens=int(100 * mode.ratio))
    assert request.sampling == want
    assert request.prompt.messages == (Message("user", f"a {mode.name} one\n\n{mode.suffix}"),)
    facts = result.diagnostics
    assert (facts["mode"], facts["why"], facts["fallback"]) == (mode.name, "probe", False)
    assert facts["limit"] == int(100 * mode.ratio) and facts["truncated"] is False
    assert facts["probabilities"][NAMES.index(mode.name)] == facts["confidence"] > 0.9
    assert notes[-1]["used"] == facts["tokens"] and notes[-1]["mode"] == mode.name


async def test_the_probe_reads_the_question_without_any_modes_words():
    strategy = DiffAdapt(policy=POLICY, probe=reader())
    _, asked, _ = await play(strategy, Task("an easy one"))
    read_of = [r.prompt.messages[-1].content for r in asked if isinstance(r, Hidden)]
    assert read_of == ["an easy one", REFERENCE]


def test_what_the_probe_reads_begins_every_modes_prompt():
    policy = StepPolicy(prompt="few_shot", chat=False, examples=(("1+1", "2"),))
    state = State(Task("2+2"))
    seen = policy.prompt_for(state).prefix
    for mode in MODES:
        assert in_mode(policy, mode).prompt_for(state).prefix == seen + mode.suffix
    begun = in_mode(policy, EASY).prompt_for(state, "so far")
    assert begun.prefix == f"{seen}{EASY.suffix}so far"


@pytest.mark.parametrize("most", [1, 10, 37])
def test_limits_are_shares_of_the_callers_budget(most):
    for mode in MODES:
        task = limited(POLICY, Task("?", max_tokens=most), mode)
        assert task.max_tokens == max(1, int(mode.ratio * most + 1e-9))


async def test_below_tau_the_answer_is_normal():
    unsure = reader(tau=0.5)
    vague = lambda request: (0.1, 0.0, 0.05) if "vague" in str(request) else state_of(request)  # noqa: E731
    strategy = DiffAdapt(policy=POLICY, probe=unsure)
    result, _, _ = await play(strategy, Task("vague"), hidden=vague)
    facts = result.diagnostics
    assert (facts["mode"], facts["why"], facts["fallback"]) == ("normal", "unsure", True)
    assert facts["confidence"] < 0.5
    bold, _, _ = await play(replace(strategy, tau=0.0), Task("vague"), hidden=vague)
    assert bold.diagnostics["mode"] == "easy"


async def test_without_a_probe_the_answer_is_normal_and_the_run_says_so():
    result, asked, _ = await play(DiffAdapt(policy=POLICY), Task("an easy one"))
    assert result.diagnostics["mode"] == "normal"
    [warning] = result.diagnostics["warnings"]
    assert "abduce diffadapt fit" in warning
    assert not any(isinstance(request, Hidden) for request in asked)


@pytest.mark.parametrize("name", NAMES)
async def test_a_mode_that_is_asked_for_needs_no_probe(name):
    result, asked, _ = await play(DiffAdapt(policy=POLICY, probe=reader(), mode=name), Task("a hard one"))
    assert (result.diagnostics["mode"], result.diagnostics["why"]) == (name, "asked")
    assert not any(isinstance(request, Hidden) for request in asked)


async def test_a_question_that_cannot_be_read_is_answered_normally():
    def fails(request):
        raise EngineError("too long")

    result, _, _ = await play(DiffAdapt(policy=POLICY, probe=reader()), Task("an easy one"), hidden=fails)
    assert (result.diagnostics["mode"], result.diagnostics["why"]) == ("normal", "failed")
    assert "too long" in result.diagnostics["warnings"][0]
    assert result.answer == "4" or result.answer is not None

    def broken(request):
        return (math.nan, 0.0, 0.0) if "easy" in str(request.prompt) else state_of(request)

    result, _, _ = await play(DiffAdapt(policy=POLICY, probe=reader()), Task("an easy one"), hidden=broken)
    assert (result.diagnostics["mode"], result.diagnostics["why"]) == ("normal", "not_finite")
    result, _, _ = await play(DiffAdapt(policy=POLICY, probe=reader()), Task(" "))
    assert result.diagnostics["why"] == "empty"


# ---------------------------------------------------------------- signatures


OTHERS = {
    "another prompt": (signature(StepPolicy(prompt="cot")), "prompt around the question"),
    "other modes": (signature(modes=(EASY, NORMAL, replace(HARD, ratio=0.6))), "modes are others"),
    "another model": (signature(reference=(3.0, 2.0, 1.0)), "cosine 0.7143"),
    "another width": (signature(reference=(1.0, 2.0)), "3 numbers, not 2"),
}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_probe_with_another_signature_is_refused_before_anything_is_written(name):
    other, hint = OTHERS[name]
    asked = []

    def script(request, seed):
        asked.append(request)
        return "4"

    with pytest.raises(UsageError, match=hint):
        strategy = DiffAdapt(policy=POLICY, probe=reader(signature=other))
        await play(strategy, Task("an easy one"), engine=Scripted(script, hidden=state_of))
    assert not asked


@pytest.mark.parametrize("name", ["another prompt", "other modes", "another model"])
async def test_if_that_is_allowed_every_run_says_so(name):
    other, hint = OTHERS[name]
    strategy = DiffAdapt(policy=POLICY, probe=reader(signature=other), allow_mismatch=True)
    result, _, notes = await play(strategy, Task("an easy one"))
    assert result.diagnostics["mode"] == "easy"
    assert any(hint in warning for warning in result.diagnostics["warnings"])
    assert all(note["warnings"] for note in notes)


async def test_a_probe_that_cannot_read_the_model_is_refused_even_if_that_is_allowed():
    for other in (signature(reference=(1.0, 2.0)), replace(signature(), modes="")):
        modes = (NORMAL, Mode(name="short")) if not other.modes else MODES
        with pytest.raises(UsageError, match="does not fit"):
            strategy = DiffAdapt(
                policy=POLICY, probe=reader(signature=other), modes=modes, allow_mismatch=True
            )
            await play(strategy, Task("an easy one"))


def test_the_cosine_of_one_model_is_1_whatever_the_length():
    assert cosine((1.0, 2.0), (2.0, 4.0)) == pytest.approx(1)
    assert cosine((1.0, 0.0), (0.0, 1.0)) == 0 == cosine((0.0, 0.0), (1.0, 1.0))
    assert cosine((math.nan, 1.0), (1.0, 1.0)) == 0


def test_an_engine_without_hidden_states_is_refused_when_the_pipeline_is_made():
    made = {"strategy": "diffadapt", "policy": POLICY, "model": Synthetic()}
    build(**made)
    with pytest.raises(MissingCapability, match="hidden"):
        build(**made, probe=reader())


# ---------------------------------------------------------------- truncation and rescue


def long(request):
    """Five words an answer may have; more room, and it is stated."""
    room = request.sampling.max_tokens
    cut = Completion("one two three", (1, 2, 3), finish="length", n_tokens=3)
    return [cut] if room < 60 else "The answer is 4"


COUNTED = StepPolicy(prompt="plain", max_solution_tokens=100, answer_kind="number")


async def test_an_answer_that_runs_into_its_limit_is_none():
    strategy = DiffAdapt(policy=COUNTED, mode="hard")
    result, _, _ = await play(strategy, Task("?"), long)
    assert result.answer is None and not result.complete
    assert result.diagnostics["truncated"] and "within 50 tokens" in result.diagnostics["stopped"]


async def test_a_cut_easy_answer_is_gone_on_with_normally_if_so_wished():
    strategy = DiffAdapt(policy=COUNTED, mode="easy", rescue=True)
    result, asked, notes = await play(strategy, Task("?"), long)
    assert result.answer == "4" and result.complete
    assert result.text == "one two threeThe answer is 4"
    _, normal = asked
    assert normal.prompt.prefix == "one two three" and normal.sampling.max_tokens == 97
    assert NORMAL.suffix in normal.prompt.messages[-1].content
    assert result.diagnostics["tokens"] == notes[-1]["used"] > 3
    hard, asked, _ = await play(replace(strategy, mode="hard"), Task("?"), long)
    assert hard.answer is None and len(asked) == 1


def test_plain_text_and_stated_answers_are_never_truncated():
    from abduce.strategies.base import Step

    cut = State(Task("?")).extend(Step("The answer is 4", cut=True, last=True))
    assert not truncated(in_mode(COUNTED, NORMAL), cut)
    assert not truncated(in_mode(replace(COUNTED, answer_kind="text"), NORMAL), cut)


# ---------------------------------------------------------------- collecting, text features, mistakes


async def test_observed_solutions_have_features_and_entropies():
    engine = Scripted(
        lambda request, seed: ["The answer is 4"], hidden=state_of, top_logprobs=lambda _: (-0.1, -3.0)
    )
    flow = observe(COUNTED, Task("a hard one"), {NORMAL: 3, EASY: 2, HARD: 0}, kind="hidden", seed=0)
    features, drawn = await Driver(Services({"policy": engine}), seed=0).run(flow)
    assert features == STATES["hard"]
    assert {name: len(each) for name, each in drawn.items()} == {"normal": 3, "easy": 2}
    assert all(s.answer == "4" and s.entropy == entropy.of_the_best((-0.1, -3.0)) for s in drawn["normal"])


async def test_a_question_that_fails_ends_the_collecting():
    engine = Scripted([EngineError("the engine has died")], hidden=state_of, top_logprobs=lambda _: (-0.1,))
    flow = observe(COUNTED, Task("a hard one"), {NORMAL: 1}, kind="hidden", seed=0)
    with pytest.raises(EngineError, match="has died"):
        await Driver(Services({"policy": engine}), seed=0).run(flow)


async def test_features_of_the_text_need_no_hidden_states_and_their_draft_is_counted():
    engine = Scripted("a draft of five words", top_logprobs=lambda _: (-0.1, -3.0))
    reading = await Driver(Services({"policy": engine}), seed=0).run(
        read(COUNTED, Task(r"12 + 345 = \frac{1}{2}"), "text")
    )
    assert len(reading.values) == 8 and reading.n_tokens >= 5
    eight = np.zeros((3, 8), dtype=np.float32)
    probe = reader(
        w1=eight, mean=eight[0], std=eight[0] + 1, tau=0.0,
        signature=Signature("text", layout(COUNTED, "text"), digest(MODES)),
    )  # fmt: skip
    result, asked, _ = await play(DiffAdapt(policy=COUNTED, probe=probe), Task("2+2"))
    assert result.diagnostics["mode"] == "easy"  # the first of equals
    assert asked[0].sampling == Sampling(temperature=0.0, max_tokens=32)
    answer, _, _ = await play(DiffAdapt(policy=COUNTED, mode="easy"), Task("2+2"))
    assert result.diagnostics["tokens"] == 2 * answer.diagnostics["tokens"]  # the draft says the same


@pytest.mark.parametrize(
    ("parameters", "hint"),
    [
        ({"mode": "hrad"}, "Did you mean 'hard'"),
        ({"tau": 2.0}, "such as 0.5"),
        ({"modes": (EASY,)}, "one of them normal"),
        ({"modes": (NORMAL, NORMAL)}, "different names"),
        ({"modes": ({"name": "normal", "ratoi": 1},)}, "Did you mean 'ratio'"),
        ({"modes": ({"name": "normal", "ratio": 2},)}, "share of the budget"),
        ({"modes": ({"name": "normal", "ratio": "all"},)}, "must be a number"),
        ({"modes": ({"suffix": "x"},)}, "needs a name"),
        ({"modes": ({"name": "normal", "stop": "."},)}, "must be a list"),
        ({"modes": ({"name": "normal", "stop": [1]},)}, "list of texts"),
        ({"modes": ({"name": "normal", "stop": [""]},)}, "what ends an answer"),
    ],
)
def test_mistakes_are_told_with_what_to_write(parameters, hint):
    with pytest.raises((UsageError, UnknownName), match=hint):
        DiffAdapt(policy=POLICY, **parameters)


def test_a_modes_marks_end_its_answers_beside_the_policys():
    policy = replace(POLICY, stop=("END",))
    strategy = DiffAdapt(policy=policy, modes=({"name": "normal", "stop": [","]},))
    assert in_mode(policy, strategy.ways["normal"]).stop == ("END", ",")


def test_two_or_four_modes_do_as_well():
    modes = (*MODES, Mode(name="huge", ratio=1.0, extra={"chat_template_kwargs": {"enable_thinking": True}}))
    strategy = DiffAdapt(policy=POLICY, modes=modes, mode="huge")
    assert limited(POLICY, Task("?", extra={"a": 1}), strategy.ways["huge"]).extra == {
        "a": 1,
        "chat_template_kwargs": {"enable_thinking": True},
    }


async def test_the_same_seed_gives_the_same_run_and_another_another():
    drawn = lambda request, seed: f"The answer is {seed}"  # noqa: E731
    runs = []
    for seed in (0, 0, 1):
        engine = Scripted(drawn, hidden=state_of)
        result, _, notes = await play(
            DiffAdapt(policy=POLICY, probe=reader()), Task("an easy one"), seed=seed, engine=engine
        )
        runs.append((result.answer, notes))
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]

"""What every engine must do. An engine that is registered without an entry here fails `test_all_are_here`."""

import math
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from abduce.serving import ENGINES, Engine, engine
from abduce.serving.embedded import Embedded
from abduce.serving.errors import EngineError
from abduce.serving.flow import Generate, Hidden, LogProb, Prompt, Rate, Sampling
from abduce.serving.litellm import Litellm
from abduce.serving.scripted import Scripted
from abduce.serving.sglang import Sglang
from abduce.serving.synthetic import Synthetic
from abduce.serving.transformers import Transformers

QUESTION = Prompt.user("Name three colours, one on each line.")
SAMPLING = Sampling(temperature=1.0, max_tokens=12, stop=("\n",))
UNFIT = pytest.mark.filterwarnings("ignore:(?s)Pydantic serializer warnings")  # as `Litellm` does by itself
CASES = [
    "embedded",
    "litellm",
    pytest.param("litellm-sglang", marks=[pytest.mark.sglang, UNFIT]),
    "scripted",
    "scripted with all",
    pytest.param("sglang", marks=pytest.mark.sglang),
    pytest.param("sglang-in-process", marks=pytest.mark.sglang),
    "synthetic",
    "transformers",
]
NAMES = [str(getattr(case, "values", (case,))[0]) for case in CASES]


@pytest.fixture(params=CASES)
def served(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
    elif request.param == "litellm":
        yield request.getfixturevalue("hosted")
    elif request.param == "litellm-sglang":
        if not find_spec("litellm"):
            pytest.skip("litellm is not installed")
        url = request.getfixturevalue("sglang_server").url
        yield Litellm("openai/default", api_base=f"{url}/v1", prefix="continue_final_message")
    elif request.param == "transformers":
        yield request.getfixturevalue("white_box")
    elif request.param == "sglang":
        yield Sglang(request.getfixturevalue("sglang_server").url)
    elif request.param == "sglang-in-process":
        yield request.getfixturevalue("sglang_in_process")
    elif request.param == "scripted":
        yield Scripted("red\nblue\ngreen")
    elif request.param == "scripted with all":
        yield Scripted(
            lambda asked, seed: f"colour {seed}\nand more",
            logprob=lambda asked: [-0.5] * len(asked.continuation.split()),
            rate=lambda asked: 0.5,
            hidden=lambda asked: [1.0, 2.0],
            top_logprobs=lambda asked: [math.log(p) for p in (0.5, 0.3, 0.2)],
            ids=True,
        )
    else:
        yield Synthetic(alphabet="abc", depth=4)


def test_all_are_here() -> None:
    assert set(ENGINES) == {name.split()[0].split("-")[0] for name in NAMES}


@pytest.mark.parametrize("kind", [Embedded, Litellm, Sglang, Synthetic, Transformers])
def test_the_registry_tells_the_capabilities_of_the_class(kind: type[Engine]) -> None:
    assert ENGINES[kind.name].capabilities == kind.capabilities


def test_the_registry_tells_the_capabilities_of_a_plain_script() -> None:
    assert ENGINES["scripted"].capabilities == Scripted("").capabilities


async def test_gives_as_many_samples_as_asked_for_and_counts_them(served: Engine) -> None:
    completions, usage = await served.generate(Generate(QUESTION, n=3, sampling=SAMPLING), seed=1)
    assert len(completions) == 3
    assert usage.calls == 1
    assert usage.output_tokens == sum(c.n_tokens for c in completions)
    if isinstance(served, Litellm):  # whose tokeniser nobody knows
        assert usage.input_tokens > 0
        assert served.count_tokens(QUESTION) > 0
    else:
        assert usage.input_tokens == served.count_tokens(QUESTION)
    assert 0 <= usage.cached_tokens <= usage.input_tokens


async def test_a_stop_string_ends_the_text_and_is_told(served: Engine) -> None:
    completions, _ = await served.generate(Generate(QUESTION, n=3, sampling=SAMPLING), seed=2)
    for c in completions:
        assert (c.finish == "stop") == (c.stop == "\n") == ("\n" in c.text)
        assert c.text.startswith(c.content)
        assert c.n_tokens <= SAMPLING.max_tokens


async def test_the_length_is_bounded(served: Engine) -> None:
    [completion], _ = await served.generate(Generate(QUESTION, sampling=Sampling(max_tokens=1)), seed=3)
    assert completion.finish == "length"
    assert completion.stop == ""
    assert completion.n_tokens == 1


async def test_log_probs_are_one_for_each_token(served: Engine) -> None:
    asked = Generate(QUESTION, n=2, sampling=SAMPLING, logprobs=True)
    completions, _ = await served.generate(asked, seed=4)
    for c in completions:
        assert all(x <= 0 for x in c.logprobs)
        assert len(c.logprobs) in (len(c.ids) or c.n_tokens, (len(c.ids) or c.n_tokens) - (c.finish == "eos"))
        if "token_ids" in served.capabilities:
            assert len(c.ids) == len(c.logprobs) == c.n_tokens - (c.finish == "eos")


async def test_without_being_asked_no_log_probs(served: Engine) -> None:
    [completion], _ = await served.generate(Generate(QUESTION, sampling=SAMPLING), seed=4)
    assert completion.logprobs == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
async def test_the_best_log_probs_are_those_of_the_models_own_distribution(
    served: Engine, temperature: float
) -> None:
    if "top_logprobs" not in served.capabilities:
        pytest.skip("tells none")
    sampling = Sampling(temperature=temperature, max_tokens=6)
    asked = Generate(QUESTION, n=2, sampling=sampling, logprobs=True, top_logprobs=3)
    completions, _ = await served.generate(asked, seed=10)
    first, _ = await served.generate(
        Generate(QUESTION, sampling=Sampling(max_tokens=1), top_logprobs=3), seed=11
    )
    for c in completions:
        assert len(c.top_logprobs) == len(c.logprobs) > 0
        for drawn, best in zip(c.logprobs, c.top_logprobs, strict=True):
            assert 0 < len(best) <= 3
            assert list(best) == sorted(best, reverse=True)
            assert drawn <= best[0] + 1e-4
            assert temperature > 0 or math.isclose(drawn, best[0], abs_tol=1e-4)
        # Beside others, quantised kernels round otherwise: 0.02 nats on average, 0.4 at most.
        assert c.top_logprobs[0] == pytest.approx(first[0].top_logprobs[0], abs=0.5)


async def test_without_being_asked_no_best_log_probs(served: Engine) -> None:
    [completion], _ = await served.generate(Generate(QUESTION, sampling=SAMPLING, logprobs=True), seed=4)
    assert completion.top_logprobs == ()


async def test_equal_seeds_give_equal_replies(served: Engine) -> None:
    if "seed" not in served.capabilities:
        pytest.skip("draws by seeds of its own")
    asked = Generate(QUESTION, n=2, sampling=SAMPLING)
    first, _ = await served.generate(asked, seed=5)
    await served.generate(Generate(Prompt.user("Something else."), sampling=SAMPLING), seed=6)
    again, _ = await served.generate(asked, seed=5)
    assert [c.text for c in first] == [c.text for c in again]


async def test_a_continuation_by_ids_is_one_by_text(served: Engine) -> None:
    if "token_ids" not in served.capabilities or isinstance(served, Scripted):
        pytest.skip("no ids that mean anything")
    [begun], _ = await served.generate(
        Generate(QUESTION, sampling=Sampling(temperature=1, max_tokens=4)), seed=7
    )
    by_ids = Prompt(QUESTION.messages, prefix=begun.text, prefix_ids=begun.ids)
    assert served.count_tokens(by_ids) == served.count_tokens(QUESTION) + len(begun.ids)


async def test_scores_what_it_drew_as_it_drew_it(served: Engine) -> None:
    if not {"logprob", "token_ids"} <= served.capabilities or isinstance(served, Scripted):
        pytest.skip("cannot score")
    asked = Generate(QUESTION, sampling=SAMPLING, logprobs=True)
    [completion], _ = await served.generate(asked, seed=8)
    likelihood, usage = await served.logprob(LogProb(QUESTION, continuation_ids=completion.ids))
    # Quantised kernels round by the shape of the batch: measured 0.02 nats a token on average, 0.4 at most.
    gaps = [abs(x - y) for x, y in zip(likelihood.logprobs, completion.logprobs, strict=True)]
    assert sum(gaps) / len(gaps) < 0.1
    assert max(gaps) < 0.6
    assert usage.input_tokens == served.count_tokens(QUESTION) + len(completion.ids) - 1
    assert usage.output_tokens == 0


async def test_does_what_it_can_and_refuses_the_rest(served: Engine) -> None:
    if "logprob" in served.capabilities:
        likelihood, _ = await served.logprob(LogProb(QUESTION, "a\n\n"))
        assert likelihood.total <= 0
        assert math.isclose(likelihood.total, sum(likelihood.logprobs))
    else:
        with pytest.raises(EngineError, match="cannot score"):
            await served.logprob(LogProb(QUESTION, "a\n\n"))
    if "hidden" in served.capabilities:
        state, _ = await served.hidden(Hidden(QUESTION))
        assert len(state) > 0
        assert all(isinstance(x, float) for x in state)
    else:
        with pytest.raises(EngineError, match="cannot return hidden"):
            await served.hidden(Hidden(QUESTION))
    if isinstance(served, Sglang):
        with pytest.raises(EngineError):  # a server has one model: this one has no reward head
            await served.rate(Rate(QUESTION))
    elif "rate" in served.capabilities:
        score, usage = await served.rate(Rate(QUESTION))
        assert isinstance(score, float)
        assert usage.calls == 1
    else:
        with pytest.raises(EngineError, match="cannot rate"):
            await served.rate(Rate(QUESTION))


def test_a_longer_prompt_has_more_tokens(served: Engine) -> None:
    assert 0 < served.count_tokens(QUESTION) < served.count_tokens(Prompt(QUESTION.messages, "abcabcabc"))


async def test_fewer_samples_are_the_first_of_more(served: Engine) -> None:
    """A budget may cut a request down."""
    if isinstance(served, Embedded) or "seed" not in served.capabilities:
        pytest.skip("what is batched together changes the rounding")
    four, _ = await served.generate(Generate(QUESTION, n=4, sampling=SAMPLING), seed=9)
    two, _ = await served.generate(Generate(QUESTION, n=2, sampling=SAMPLING), seed=9)
    assert two == four[:2]


async def test_getting_ready_twice_is_getting_ready_once(served: Engine) -> None:
    await served.ready()
    await served.ready()


async def test_closing_twice_is_closing_once(served: Engine, request: pytest.FixtureRequest) -> None:
    shared = isinstance(served, Embedded | Transformers) or "in-process" in request.node.name
    if not shared:  # by the session
        await served.close()
        await served.close()


def test_an_engine_by_its_name() -> None:
    assert engine("synthetic").name == "synthetic"

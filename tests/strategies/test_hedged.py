"""Laws of hedged pools: one greedy sample, which bounds the loss; temperatures by language."""

from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.errors import UsageError
from abduce.serving.flow import Fork, Generate, Note, Sampling
from abduce.serving.scripted import Scripted
from abduce.serving.seeds import derive
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import Policy, State, Step, Task
from abduce.strategies.glimp_router import GlimpRouter
from abduce.strategies.hedged import Hedged, likeliest, spread, tempered
from abduce.strategies.policy import POLICIES, StepPolicy
from abduce.strategies.search import Search
from abduce.strategies.toys import drain

from .baselines import Runner, Says, notes

TEXT = StepPolicy(prompt="plain", answer_kind="text", delimiter=None)
SWAHILI = Task("Je, ni matufaha mangapi yamebaki mwishoni mwa siku?")
ENGLISH = Task("How many apples are left in the end?")


class Listening(Synthetic):
    """A model that remembers what it was asked."""

    def __init__(self, **parameters):
        super().__init__(**parameters)
        self.asked = []

    async def generate(self, request, *, seed):
        self.asked.append(request)
        return await super().generate(request, seed=seed)


def drawn(task=ENGLISH, *, seed=0, **parameters):
    """The result, and temperature and size of each request."""
    model = Listening(seed=3)
    result = Runner(model).run(Hedged(policy=TEXT, **parameters).solve(task, seed=seed))
    return result, [(r.sampling.temperature, r.n) for r in model.asked]


def answered(texts, task=ENGLISH, **parameters):
    """The result over a pool of given texts, the greedy one first."""
    said = iter(texts)

    def reply(request, seed):
        return [next(said) for _ in range(request.n)]

    return Runner(Scripted(reply)).run(Hedged(policy=TEXT, n=len(texts), **parameters).solve(task, seed=0))


# ---------------------------------------------------------------- the pool


@pytest.mark.parametrize("seed", range(10))
def test_exactly_one_sample_is_greedy_and_it_is_what_a_greedy_call_says(seed):
    result, asked = drawn(seed=seed, n=5)
    assert asked == [(0.0, 1), (0.9, 4)]
    _, [(temperature, n)] = alone = drawn(seed=seed + 100, n=1)
    assert (temperature, n) == (0.0, 1)
    assert result.candidates[0].text == alone[0].text


SURE = Task("5 x 5 =")  # no two tokens so near that a batch could swap them


async def test_on_the_small_model_the_greedy_sample_is_a_greedy_call(embedded):
    policy = POLICIES["product"]
    driver = Driver(Services({"policy": embedded}), seed=0)
    result = await driver.run(Hedged(policy=policy, n=3).solve(SURE, seed=0))
    greedy = replace(policy.sampling, temperature=0.0)
    request = Generate(policy.prompt_for(State(SURE)), 1, replace(greedy, stop=policy.stop))
    [alone], _ = await embedded.generate(request, seed=9)
    assert result.candidates[0].text == alone.content


def test_the_pool_is_the_same_for_a_seed_and_another_for_another():
    texts = [tuple(c.text for c in drawn(seed=seed, n=6)[0].candidates) for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("task", "parameters", "asked"),
    [
        (ENGLISH, {}, [(0.0, 1), (0.9, 4)]),
        (SWAHILI, {}, [(0.0, 1), (0.7, 4)]),
        (SWAHILI, {"languages": ("en", "fr")}, [(0.0, 1), (0.5, 4)]),
        (SWAHILI, {"languages": ("en", "sw")}, [(0.0, 1), (0.7, 4)]),
        (SWAHILI, {"temperatures": {"sw": 0.6, "*": 1.0}, "languages": ("en",)}, [(0.0, 1), (0.6, 4)]),
        (SWAHILI, {"language": "en"}, [(0.0, 1), (0.9, 4)]),
        (replace(SWAHILI, metadata={"language": "en"}), {}, [(0.0, 1), (0.9, 4)]),
        (Task("7 x 8 ="), {"languages": ("en",)}, [(0.0, 1), (0.7, 4)]),
        (ENGLISH, {"greedy": False}, [(0.9, 5)]),
        (ENGLISH, {"greedy": False, "ladder": (1.1, 0.3)}, [(0.3, 3), (1.1, 2)]),
        (
            ENGLISH,
            {"n": 10, "ladder": (0.3, 0.7, 0.9, 1.1)},
            [(0.0, 1), (0.3, 3), (0.7, 2), (0.9, 2), (1.1, 2)],
        ),
        (ENGLISH, {"n": 1}, [(0.0, 1)]),
    ],
)
def test_the_temperature_is_that_of_the_language_or_the_ladder(task, parameters, asked):
    assert drawn(task, **parameters)[1] == asked


def test_the_parts_of_the_pool_are_drawn_at_once():
    flow = Hedged(policy=TEXT).solve(ENGLISH, seed=0)
    [asked] = next(flow)
    assert isinstance(asked, Fork)
    assert [branch.send(None)[0].n for branch in asked.flows] == [1, 4]
    flow.close()


def test_min_p_reaches_every_request():
    model = Listening(seed=1)
    Runner(model).run(Hedged(policy=TEXT, min_p=0.25).solve(ENGLISH, seed=0))
    assert {request.sampling.min_p for request in model.asked} == {0.25}


def test_a_policy_around_another_passes_its_temperature_on():
    router = tempered(GlimpRouter(policy=TEXT), 0.3)
    assert router.policy.sampling.temperature == 0.3


def test_a_policy_without_a_temperature_is_refused():
    with pytest.raises(UsageError, match="Says has no sampling"):
        drain(Hedged(policy=Says(["a"])).solve(ENGLISH, seed=0))


# ---------------------------------------------------------------- the vote


def test_the_most_frequent_answer_wins_and_the_greedy_one_among_equals():
    assert answered(["a", "b", "b", "c"]).answer == "b"
    tied = answered(["c", "b", "b", "c"])
    assert (tied.answer, tied.diagnostics["tied"], tied.diagnostics["chosen"]) == ("c", 2, 0)


def test_the_choice_comes_with_its_place_and_temperature():
    result = answered(["a", "b", "b"])
    assert (result.diagnostics["chosen"], result.diagnostics["temperature"]) == (1, 0.9)
    assert answered(["a", "a", "b"]).diagnostics["temperature"] == 0.0


def test_a_pool_without_answers_gives_its_greedy_text():
    result = answered(["", "", ""])
    assert (result.answer, result.text, result.complete) == (None, "", True)


def test_what_was_chosen_is_told_to_the_trace():
    flow = Hedged(policy=TEXT, n=3).solve(ENGLISH, seed=0)
    [told] = notes(flow, "chosen", Scripted("a"))
    assert (told["node"], told["votes"], told["wrong_language"]) == (1, {"a": 3}, 0)


# ---------------------------------------------------------------- the wrong language

ES = "Quedan tres manzanas para cada uno de los niños."
EN = "There are three apples left for each of the children."


def test_answers_in_another_language_are_left_out():
    result = answered([EN, ES, EN + " ", ES, ES], Task("¿Cuántas manzanas quedan al final del día?"))
    assert result.text == ES
    assert result.diagnostics["wrong_language"] == 2


@pytest.mark.parametrize("texts", [[EN] * 4, [EN, EN, ES, EN], [EN, EN, ES, ES]])
def test_a_pool_that_is_mostly_in_another_language_was_asked_for_it(texts):
    result = answered(texts, Task("Traduce la frase siguiente al inglés para los niños de la escuela."))
    assert result.text == EN
    assert result.diagnostics["wrong_language"] == 0


def test_what_language_it_was_thought_in_does_not_matter():
    thought = f"<think>{EN}</think>{ES}"
    result = answered([thought, ES, ES], Task("¿Cuántas manzanas quedan al final del día?"))
    assert result.diagnostics["wrong_language"] == 0


@pytest.mark.parametrize("text", ["7", "Bamako", "The Three"])
def test_numbers_and_names_are_in_no_wrong_language(text):
    result = answered(["Dar es Salaam ni mji", text, text], SWAHILI)
    assert (result.answer, result.diagnostics["wrong_language"]) == (text, 0)


# ---------------------------------------------------------------- hope and risk


WARM = Sampling()


@dataclass(frozen=True)
class Quality(Policy):
    """The specification's temperature model: a solution is its quality, clip(mu − c τ² + σ τ ε)."""

    c: float
    sampling: Sampling = WARM
    mu: float = 0.6
    sigma: float = 0.3

    requires = {}  # noqa: RUF012

    def propose(self, states, counts, seeds):
        yield [Note("quality")]
        tau = self.sampling.temperature
        rows = []
        for n, seed in zip(counts, seeds, strict=True):
            rng = [Random(derive(seed, i)) for i in range(n)]
            q = [self.mu - self.c * tau**2 + self.sigma * tau * r.gauss(0, 1) for r in rng]
            rows.append([Step(repr(min(1.0, max(0.0, x))), n_tokens=1, last=True) for x in q])
        return rows

    def terminal(self, state):
        return state.step is not None

    def answer(self, state):
        return state.text


def pools(c, tau, *, greedy, n=5, tasks=250):
    """Qualities of pools, each greedy sample first where there is one."""
    method = Hedged(policy=Quality(c), n=n, greedy=greedy, temperatures={"*": tau})
    return [[float(x.text) for x in drain(method.solve(ENGLISH, seed=s)).candidates] for s in range(tasks)]


def hope_and_risk(c, tau):
    found = [spread(0.6, pool) for pool in pools(c, tau, greedy=False)]
    return fmean(s.hope for s in found), fmean(s.risk for s in found)


def test_hope_and_risk_grow_with_the_temperature_and_risk_faster_where_quality_falls_faster():
    taus = (0.1, 0.3, 0.5, 0.7, 0.9)
    english, other = ([hope_and_risk(c, tau) for tau in taus] for c in (0.05, 0.3))
    for rows in (english, other):
        risks = [-risk for _, risk in rows]
        assert risks == sorted(risks)
        assert rows[-1][0] > rows[0][0]
    assert [hope for hope, _ in english] == sorted(hope for hope, _ in english)
    growth = [rows[-1][1] / rows[0][1] for rows in (english, other)]
    assert growth[1] > growth[0]


@pytest.mark.parametrize("c", [0.05, 0.3, 0.6])
def test_a_hedged_pool_holds_at_least_the_greedy_quality(c):
    for pool in pools(c, 0.9, greedy=True, tasks=100):
        assert pool[0] == 0.6
        assert max(pool) >= 0.6


def test_hedging_raises_what_a_noisy_choice_finds_where_quality_falls_fast():
    def chosen(c, greedy):
        rng = Random(5)
        rows = pools(c, 0.9, greedy=greedy)
        return fmean(max(pool, key=lambda q: q + rng.gauss(0, 0.15)) for pool in rows)

    assert chosen(0.6, True) > chosen(0.6, False) + 0.05


def test_spread_is_of_differences_where_greedy_is_nothing():
    assert spread(0.0, [0.0, 1.0]) == (1.0, 0.0)
    assert spread(0.5, [0.5]) == (0.0, 0.0)


# ---------------------------------------------------------------- what stands in for a judge


def test_the_likeliest_is_that_of_the_highest_log_probability_per_token():
    search = Search(ENGLISH, TEXT, None, 0)
    steps = [Step("long", (1, 2), -1.0, 4, last=True), Step("short", (1,), -0.9, 1, last=True)]
    nodes = drain(search.record(search.root, steps))
    assert likeliest(nodes).state.text == "long"
    unknown = drain(search.record(search.root, [Step("unknown", n_tokens=1, last=True)]))
    assert likeliest([*unknown, *nodes]).state.text == "unknown"


def test_every_answer_may_be_drawn():
    said = Counter(drawn(seed=seed, n=5)[0].answer for seed in range(40))
    assert len(said) > 1


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"n": 0}, "at least 1, got 0"),
        ({"min_p": 2.0}, "min_p=0.1"),
        ({"temperatures": {"en": 0.9}}, r'Write {"\*": 0.7}'),
        ({"temperatures": {"*": 0.0}}, "greedy=True"),
        ({"ladder": (-1.0,)}, "above 0"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        Hedged(policy=TEXT, **wrong)

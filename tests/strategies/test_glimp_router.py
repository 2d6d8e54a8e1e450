"""GlimpRouter's laws on scripted entropies, the exact toy model and the real small one (spec §6, 1 to 6)."""

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Noted
from abduce.serving.base import Engine
from abduce.serving.embedded import Embedded
from abduce.serving.errors import EngineError, TransientError, UsageError
from abduce.serving.flow import Completion, Failure, Generate, Prompt, Sampling
from abduce.serving.scripted import Scripted
from abduce.serving.seeds import derive
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import State, Step, Task, requirements
from abduce.strategies.glimp_router import GlimpRouter, entropy, threshold
from abduce.strategies.policy import StepPolicy
from abduce.strategies.routes import RoutedStep, Tally, tally

TASK = Task("What is 2 + 2?")
INNER = StepPolicy(prompt="plain", sampling=Sampling(temperature=1.0, max_tokens=20), max_steps=30)
LOGS = st.lists(st.floats(-40, 0), min_size=2, max_size=20)


# ---------------------------------------------------------------- the entropy


def test_entropy_of_equal_and_of_certain_tokens() -> None:
    assert entropy([-7.5] * 20) == pytest.approx(math.log(20), abs=1e-9)
    assert entropy([0.0] + [-math.inf] * 19) == 0
    assert entropy([0.0]) == 0


@given(LOGS, st.floats(-100, 100))
def test_entropy_ignores_a_common_constant(logs: list[float], shift: float) -> None:
    assert entropy([x + shift for x in logs]) == pytest.approx(entropy(logs), abs=1e-9)


@given(LOGS)
def test_entropy_is_that_of_the_whole_where_the_top_is_all(logs: list[float]) -> None:
    total = math.log(math.fsum(map(math.exp, logs)))
    whole = -math.fsum(math.exp(x - total) * (x - total) for x in logs)
    assert entropy(logs) == pytest.approx(whole, abs=1e-9)
    assert 0 <= entropy(logs) <= math.log(len(logs)) + 1e-9


@given(st.lists(st.floats(0, 3), max_size=30), st.floats(0, 1))
def test_the_threshold_sends_no_more_than_the_rate(entropies: list[float], rate: float) -> None:
    tau = threshold(entropies, rate)
    sent = sum(h >= tau for h in entropies)
    ties = sum(h == tau for h in entropies)
    assert sent - ties <= rate * len(entropies) + 1e-6
    assert sent + 1 > rate * len(entropies) - 1e-6  # and as many as it can


# ---------------------------------------------------------------- scripted models


def best_of(h: float) -> tuple[float, ...]:
    """Two log-probs whose entropy is `h` ≤ ln 2, by bisection."""
    low, high = 0.0, 0.5
    for _ in range(80):
        p = (low + high) / 2
        low, high = (p, high) if entropy([math.log(1 - p), math.log(p)]) < h else (low, p)
    p = (low + high) / 2
    return (math.log(1 - p), math.log(p))


Say = Callable[[Generate, int], Completion]


def speaker(letter: str, h: Callable[[int], float] | None = None, n_steps: int = 6) -> Scripted:
    """Writes "<letter>k and on" as step k of a solution and ends it after `n_steps`; `h(k)` is the entropy
    before step k."""

    def say(asked: Generate, seed: int) -> Sequence[Completion]:
        written = asked.prompt.prefix
        done, begun = written.count("\n\n"), written.rsplit("\n\n", 1)[-1]
        words = [f"{letter}{done}", " and", " on", "\n\n" if done < n_steps - 1 else ""]
        rest = words[len(begun.split()) :]
        drawn = rest[: asked.sampling.max_tokens]
        text, whole = "".join(drawn), len(drawn) == len(rest)
        finish: Any = "length" if not whole else "stop" if text.endswith("\n\n") else "eos"
        best = (best_of(h(done)) if h else (),) * len(drawn) if asked.top_logprobs else ()
        told = Completion(text, finish=finish, stop="\n\n" if finish == "stop" else "", n_tokens=len(drawn))
        return [replace(told, top_logprobs=best)] * asked.n

    return Scripted(say, top_logprobs=lambda asked: ())


def run(
    policy: GlimpRouter | StepPolicy, engines: dict[str, Engine], seed: int = 0, task: Task = TASK
) -> tuple[State, list[Any]]:
    """One solution, step by step, and the notes of it."""

    def flow() -> Any:
        state = State(task)
        while not policy.terminal(state):
            [[step]] = yield from policy.propose([state], [1], [derive(seed, state.lineage)])
            assert isinstance(step, Step), step
            state = state.extend(step)
        return state

    notes: list[Any] = []

    def watch(event: Any) -> None:
        if isinstance(event, Noted) and event.note == "route":
            notes.append(event.data)

    driver = Driver(Services(engines), seed=seed, observers=[watch])
    return asyncio.run(driver.run(flow())), notes


def writers(state: State) -> str:
    return "".join(step.writer[0] for step in state.steps if isinstance(step, RoutedStep))


def both(h: Callable[[int], float]) -> dict[str, Engine]:
    return {"policy": speaker("s", h), "large": speaker("L")}


ENTROPIES = [0.1, 0.6, 0.3, 0.5, 0.2, 0.69]


@pytest.mark.parametrize("probe", ["fused", "two_call"])
def test_the_writers_are_those_that_the_entropies_say(probe: Any) -> None:
    router = GlimpRouter(policy=INNER, tau=0.4, probe=probe)
    state, notes = run(router, both(ENTROPIES.__getitem__))
    assert writers(state) == "slslsl"
    assert [note["entropy"] for note in notes] == pytest.approx(ENTROPIES, abs=1e-6)
    assert state.text == "s0 and on\n\nL1 and on\n\ns2 and on\n\nL3 and on\n\ns4 and on\n\nL5 and on"


@pytest.mark.parametrize("seed", range(5))
def test_raising_tau_never_adds_a_step_of_the_large_model(seed: int) -> None:
    rng = random.Random(seed)
    told = [rng.uniform(0.01, 0.68) for _ in range(6)]
    taus = sorted(rng.uniform(0, 0.7) for _ in range(6))
    routes = [writers(run(GlimpRouter(policy=INNER, tau=t), both(told.__getitem__))[0]) for t in taus]
    for lower, higher in pairwise(routes):
        assert all((a, b) != ("s", "l") for a, b in zip(lower, higher, strict=True))


def test_at_tau_zero_the_large_model_writes_all_that_it_would_write_alone() -> None:
    unable = Scripted("never asked")  # no top_logprobs, and no call
    state, notes = run(GlimpRouter(policy=INNER, tau=0.0), {"policy": unable, "large": speaker("L")})
    alone, _ = run(INNER, {"policy": speaker("L")})
    assert state.text == alone.text
    assert writers(state) == "llllll"
    assert tally(notes).probe_tokens == tally(notes).small_tokens == 0


def test_above_ln_m_the_small_model_writes_all_and_the_large_one_answers() -> None:
    engines: dict[str, Engine] = {"policy": speaker("s"), "large": Scripted(" 4")}
    router = GlimpRouter(policy=INNER, tau=3.1)
    state, notes = run(router, engines)
    alone, _ = run(INNER, {"policy": speaker("s")})
    assert state.text == alone.text
    assert tally(notes).large_steps == 0
    [forced] = asyncio.run(Driver(Services(engines), seed=0).run(router.force([state], [1])))
    assert isinstance(forced, RoutedStep)
    assert (forced.writer, forced.text) == ("large", "\nThe answer is 4")


def test_what_it_needs_of_each_role() -> None:
    told = requirements(GlimpRouter(policy=INNER))
    assert told == {"policy": {"generate", "top_logprobs"}, "large": {"generate"}}
    for tau in (0.0, 3.1):
        assert requirements(GlimpRouter(policy=INNER, tau=tau))["policy"] == {"generate"}
    logs = requirements(GlimpRouter(policy=replace(INNER, logprobs=True)))
    assert logs["large"] == {"generate", "logprobs"}


@pytest.mark.parametrize("tau", [0.2, 0.7, 1.0])
def test_both_probes_decide_alike_in_equal_contexts(tau: float) -> None:
    small, large = Synthetic(seed=3, alphabet="abcde", depth=5), Synthetic(seed=4, alphabet="abcde", depth=5)
    engines: dict[str, Engine] = {"policy": small, "large": large}
    for seed in range(20):
        state, _ = run(GlimpRouter(policy=INNER, tau=tau), engines, seed)
        for i in range(len(state.steps)):
            here = State(TASK)
            for step in state.steps[:i]:
                here = here.extend(step)
            told = [_decision(GlimpRouter(policy=INNER, tau=tau, probe=p), here, engines) for p in PROBES]
            known = [writer for writer in told if writer is not None]
            assert len(set(known)) <= 1


PROBES: tuple[Any, ...] = ("fused", "two_call")


def _decision(router: GlimpRouter, state: State, engines: dict[str, Engine]) -> str | None:
    """Who writes; None where the small model would have ended its turn and no entropy is told."""
    notes: list[Any] = []
    driver = Driver(
        Services(engines), seed=1, observers=[lambda e: notes.append(e) if isinstance(e, Noted) else None]
    )
    asyncio.run(driver.run(router.propose([state], [1], [5])))
    [note] = notes
    return None if note.data["why"] == "ended" else str(note.data["writer"])


def test_the_fused_probe_draws_steps_as_the_small_model_alone_does() -> None:
    """The first token is the step's own: what is drawn has the exact probabilities of the tree."""
    small = Synthetic(seed=1, alphabet="abc", depth=3)
    router = GlimpRouter(policy=INNER, tau=2.9)  # above any entropy of three symbols, below ln 20
    n = 4000
    driver = Driver(Services({"policy": small}), seed=0)
    [drawn] = asyncio.run(driver.run(router.propose([State(TASK)], [n], [7])))
    for text, p in small.children(""):
        share = sum(isinstance(step, Step) and step.text == text for step in drawn) / n
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert all(isinstance(step, RoutedStep) and len(step.ids) == 2 for step in drawn)


# ---------------------------------------------------------------- the rules


def test_the_first_steps_go_to_the_large_model_unasked() -> None:
    state, notes = run(GlimpRouter(policy=INNER, tau=0.69, first_large=2), both(lambda k: 0.1))
    assert writers(state) == "llssss"
    assert [note["why"] for note in notes[:3]] == ["first", "first", "entropy"]


@pytest.mark.parametrize(("h", "writer"), [(0.1, "s"), (0.6, "l")])
def test_a_step_that_was_cut_is_gone_on_with_by_its_writer(h: float, writer: str) -> None:
    short = replace(INNER, sampling=Sampling(temperature=1.0, max_tokens=2))

    def told(k: int) -> float:
        return h if k == 0 else 0.69 - h

    state, notes = run(GlimpRouter(policy=short, tau=0.4), both(told))
    assert writers(state)[:2] == writer * 2  # "x0 and", " on\n\n"
    assert notes[1]["why"] == "cut"
    assert notes[1]["probe_tokens"] == 0
    assert state.steps[0].text + state.steps[1].text in ("s0 and on\n\n", "L0 and on\n\n")
    assert writers(state)[2] != writer  # and then it is asked again


def test_the_rate_is_held_by_the_quantile_of_the_solutions_own_entropies() -> None:
    rng = random.Random(0)
    told = [rng.uniform(0.01, 0.69) for _ in range(200)]
    engines: dict[str, Engine] = {
        "policy": speaker("s", told.__getitem__, 200),
        "large": speaker("L", None, 200),
    }
    router = GlimpRouter(policy=replace(INNER, max_steps=200), intervention_rate=0.25)
    state, notes = run(router, engines)
    assert writers(state).count("l") / 200 == pytest.approx(0.25, abs=0.08)
    again, _ = run(router, engines, seed=9)
    assert writers(again) == writers(state)  # nothing but the replies decides
    assert [note["tau"] for note in notes[:8]] == [1.0] * 8


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (("a\n\n", "b\n\n", "b\n\n"), True),
        (("b\n\n", "b\n\n"), False),  # more than two steps
        (("a\n\n", "b\n\n", "c\n\n"), False),
        (("a\n\n", "\n\n"), False),
        (("\n\n", "\n\n"), True),
    ],
)
def test_repetition_and_emptiness_end_a_solution(texts: tuple[str, ...], ends: bool) -> None:
    state = State(TASK)
    for text in texts:
        state = state.extend(RoutedStep(text, n_tokens=2))
    assert GlimpRouter(policy=INNER).terminal(state) is ends
    assert GlimpRouter(policy=INNER, budget_tokens=2 * len(texts)).terminal(state)


def test_without_log_probs_the_large_model_writes_and_errors_are_counted() -> None:
    state, notes = run(GlimpRouter(policy=INNER), both(lambda k: 0.1) | {"policy": speaker("s")})
    assert writers(state) == "llllll"
    assert tally(notes).errors == 6


def test_where_the_probe_fails_the_large_model_writes() -> None:
    def fail(asked: Generate, seed: int) -> str:
        raise EngineError("no log-probs today")

    broken = Scripted(fail, top_logprobs=lambda asked: ())
    state, notes = run(GlimpRouter(policy=INNER), {"policy": broken, "large": speaker("L")})
    assert writers(state) == "llllll"
    assert {note["why"] for note in notes} == {"failed"}


def test_a_stop_mark_across_the_seam_ends_the_step() -> None:
    def say(asked: Generate, seed: int) -> Sequence[Completion]:
        text = "\n" if asked.sampling.max_tokens == 1 else "\nrest of another step"
        return [Completion(text, (1,), finish="length", n_tokens=1, top_logprobs=((0.0, -9.0),))]

    driver = Driver(Services({"policy": Scripted(say, top_logprobs=lambda asked: ())}), seed=0)
    [[step]] = asyncio.run(driver.run(GlimpRouter(policy=INNER).propose([State(TASK)], [1], [0])))
    assert isinstance(step, Step)
    assert (step.text, step.ids, step.last) == ("\n\n", (), False)


def test_half_a_character_is_not_kept() -> None:
    def say(asked: Generate, seed: int) -> Sequence[Completion]:
        half = asked.sampling.max_tokens == 1
        assert "\ufffd" not in asked.prompt.prefix
        return [
            Completion(
                "\ufffd" if half else "🦜\n\n", (1,), finish="length", n_tokens=1, top_logprobs=((0.0,),)
            )
        ]

    driver = Driver(Services({"policy": Scripted(say, top_logprobs=lambda asked: ())}), seed=0)
    [[step]] = asyncio.run(driver.run(GlimpRouter(policy=INNER).propose([State(TASK)], [1], [0])))
    assert isinstance(step, Step)
    assert step.text == "🦜\n\n"


def test_draws_that_fail_after_the_glimpse_are_failures_with_their_reason() -> None:
    def say(asked: Generate, seed: int) -> Sequence[Completion]:
        if asked.sampling.max_tokens > 1 and asked.prompt.prefix == "b":
            raise TransientError("gone")
        one = [Completion(x, finish="length", n_tokens=1, top_logprobs=((0.0,),)) for x in "ab"]
        return (
            one
            if asked.sampling.max_tokens == 1
            else [Completion("!\n\n", finish="stop", stop="\n\n", n_tokens=2)]
        )

    driver = Driver(Services({"policy": Scripted(say, top_logprobs=lambda asked: ())}), seed=0)
    [drawn] = asyncio.run(driver.run(GlimpRouter(policy=INNER).propose([State(TASK)], [4], [0])))
    assert sorted(x.text if isinstance(x, Step) else x.kind for x in drawn) == ["a!\n\n"] * 2 + ["engine"] * 2
    assert all("gone" in x.message for x in drawn if isinstance(x, Failure))


def test_tokens_are_accounted_for() -> None:
    state, notes = run(GlimpRouter(policy=INNER, tau=0.4), both(ENTROPIES.__getitem__))
    told = tally(notes)
    assert told.small_tokens + told.large_tokens == state.n_tokens
    assert told.probe_tokens == told.large_steps == 3  # a glimpse is kept where the small model goes on
    assert told.switches == 5
    # The large model reads s0, s2 and s4; the small one L1 and L3.
    assert told.refilled_tokens == 5 * 4
    twice, notes = run(GlimpRouter(policy=INNER, tau=0.4, probe="two_call"), both(ENTROPIES.__getitem__))
    assert tally(notes) == replace(told, probe_tokens=6)
    assert twice.n_tokens == state.n_tokens


def test_ids_never_go_from_one_model_to_the_other() -> None:
    small, large = Synthetic(seed=3, alphabet="abcde", depth=6), Synthetic(seed=4, alphabet="abcde", depth=6)
    heard: list[Prompt] = []

    class Listening(Synthetic):
        async def generate(self, request: Generate, *, seed: int) -> Any:
            heard.append(request.prompt)
            return await super().generate(request, seed=seed)

    listening = Listening(seed=3, alphabet="abcde", depth=6)
    for seed in range(10):
        run(
            GlimpRouter(policy=INNER, tau=1.0),
            {"policy": small, "large": Listening(seed=4, alphabet="abcde", depth=6)},
            seed,
        )
    assert heard
    assert not any(prompt.prefix_ids for prompt in heard)
    heard.clear()
    state, _ = run(GlimpRouter(policy=INNER, tau=2.9), {"policy": listening, "large": large})
    assert all(bool(prompt.prefix_ids) == bool(prompt.prefix) for prompt in heard)  # its own, by id
    assert state.ids


def test_what_cannot_be() -> None:
    wrong: list[dict[str, Any]] = [
        {"intervention_rate": 2.0},
        {"top": 1},
        {"probe": "third"},
        {"first_large": -1},
        {"budget_tokens": 0},
        {"tau": math.nan},
    ]
    for words in wrong:
        with pytest.raises(UsageError, match=next(iter(words))):
            GlimpRouter(**words)


def test_an_empty_tally() -> None:
    assert tally([]) == Tally()


# ---------------------------------------------------------------- the real small model


@pytest.fixture(scope="module")
def embedded(small_model: str) -> Iterator[Embedded]:
    """One of this file's own: what is cancelled here leaves prompts in the slots, which round otherwise."""
    engine = Embedded(small_model, slots=8, context=1024, threads=1)
    yield engine
    asyncio.run(engine.close())


async def test_cancelled_probes_leave_no_slot_taken(embedded: Embedded) -> None:
    server = await embedded._loaded()
    asked = Generate(Prompt.user("Count to one hundred."), sampling=Sampling(max_tokens=200), top_logprobs=20)
    for i in range(40):
        call = asyncio.ensure_future(embedded.generate(asked, seed=i))
        await asyncio.sleep(0.002 * (i % 8))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    for _ in range(200):
        if not await asyncio.to_thread(server.ask_slots()):
            break
        await asyncio.sleep(0.02)
    assert not await asyncio.to_thread(server.ask_slots())
    [c], _ = await embedded.generate(replace(asked, sampling=Sampling(max_tokens=3)), seed=0)
    assert len(c.top_logprobs[0]) == 20


def test_on_the_real_model_both_writers_take_turns(embedded: Embedded) -> None:
    inner = replace(INNER, delimiter=".", max_steps=8, answer_kind="text")
    router = GlimpRouter(policy=inner, tau=2.0)
    notes: list[Any] = []
    for seed in range(3):
        state, told = run(router, {"policy": embedded}, seed, Task("Write a story about the sea."))
        notes += told
        assert state.text
    assert {note["writer"] for note in notes} == {"small", "large"}
    assert all(0 <= note["entropy"] <= math.log(20) for note in notes if note["entropy"] is not None)
    assert tally(notes).errors == 0

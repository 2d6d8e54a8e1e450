"""SPaR's search: the order and count of what is judged, confirming, and how it ends."""

from dataclasses import replace
from math import sqrt
from random import Random

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import comparable, row
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Check, State, Step
from abduce.strategies.spar import SPaR
from abduce.strategies.spar.refiner import END, START

from .noise import expected, false_accepts
from .world import ACTOR, NO, TASK, YES, World

# ---------------------------------------------------------------- the search


async def test_level_by_level_in_order_with_all_fifteen_judged_if_nothing_passes():
    world = World()
    result = await world.play()
    level1, level2 = ["r0", "r1", "r2"], [f"r{i}{j}" for i in (0, 1) for j in range(3)]
    level3 = [f"r00{j}" for j in range(3)] + [f"r01{j}" for j in range(3)]
    assert world.judged == ["r", *level1, *level2, *level3]
    assert (result.diagnostics["judged"], result.diagnostics["stop"]) == (15, "depth")
    assert result.complete and result.diagnostics["valid"] is False


async def test_depth_first_in_order_with_all_twenty_one_judged_if_nothing_passes():
    world = World()
    result = await world.play(algorithm="dfs")
    below = [name for top in ("r0", "r1") for name in _dfs(top, 2)]
    assert world.judged == ["r", "r0", "r1", "r2", *below]
    assert (result.diagnostics["judged"], result.diagnostics["stop"]) == (21, "depth")


def _dfs(node, left):
    children = [f"{node}{i}" for i in range(3)]
    return [] if not left else children + [name for child in children[:2] for name in _dfs(child, left - 1)]


async def test_a_level_is_finished_before_its_best_is_accepted():
    world = World({"r0": 3, "r2": 4})
    result = await world.play()
    assert world.judged == ["r", "r0", "r1", "r2"]
    assert (result.text, result.diagnostics["value"], result.diagnostics["stop"]) == ("r2", 0.8, "accepted")


async def test_the_frontier_is_the_best_of_the_whole_level():
    world = World({"r1": 2, "r2": 1, "r10": 2, "r21": 2, "r20": 1})
    await world.play(max_depth=3)
    assert world.judged[4:10] == ["r10", "r11", "r12", "r20", "r21", "r22"]
    assert world.judged[10:] == [f"r10{i}" for i in range(3)] + [f"r21{i}" for i in range(3)]


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
@pytest.mark.parametrize("k", [0, 1, 2, 4, 7, 14])
async def test_a_budget_of_nodes_ends_it_exactly_there(algorithm, k):
    world = World()
    result = await world.play(algorithm=algorithm, max_nodes=k)
    assert (result.diagnostics["judged"], result.diagnostics["stop"]) == (k, "budget")
    assert len(world.refined) == k  # nothing is written that will not be judged


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
async def test_a_failed_rewrite_costs_nothing(algorithm):
    world = World(unmarked={"r0"}, tied={"r10"})
    result = await world.play(algorithm=algorithm, max_nodes=8)
    assert result.diagnostics["judged"] == 8
    told = [row["answer"] for row in result.diagnostics["versions"]]
    assert "r0" not in told and "r10" not in told
    assert result.diagnostics["failed_proposals"] == 1 and result.diagnostics["failed_scores"] == 1


async def test_half_of_the_votes_is_not_enough():
    """V = ½ does not stop: 2 of 4 valid votes are a tie, and a gate is passed only from above."""
    result = await World({"r0": 3}).play(gate=0.6, max_depth=1)
    assert (result.diagnostics["stop"], result.diagnostics["value"]) == ("depth", 0.6)
    checks = (Check("punctuation:no_comma"), Check("detectable_format:title"))
    half = await World(drafts=("r",)).play(judge="checks", task=replace(TASK, checks=checks), max_depth=1)
    assert (half.diagnostics["value"], half.diagnostics["stop"]) == (0.5, "depth")


async def test_if_no_rewrite_can_be_had_the_draft_stands():
    world = World(unmarked={f"r{i}" for i in range(27)})
    result = await world.play(attempts=9)
    assert len(world.refined) == 27
    assert (result.text, result.diagnostics["stop"], result.complete) == ("r", "no_candidates", True)


async def test_only_what_lacks_its_marks_is_asked_for_again():
    world = World(unmarked={"r1"})
    await world.play(attempts=9, max_depth=1)
    assert world.judged == ["r", "r0", "r2", "r3"]


async def test_a_valid_draft_is_returned_at_once():
    world = World({"r": 5})
    result = await world.play()
    assert (world.judged, world.refined) == (["r"], [])
    assert (result.text, result.diagnostics["stop"], result.diagnostics["root"]) == ("r", "accepted", None)


async def test_the_search_starts_from_the_best_of_several_drafts():
    world = World({"a": 1, "b": 2}, drafts=("a", "b", "c"))
    result = await world.play(drafts=3, max_depth=1)
    assert world.judged == ["a", "b", "c", "b0", "b1", "b2"]
    assert result.diagnostics["versions"][1]["node"] == result.diagnostics["root"]


async def test_for_records_a_failing_draft_is_drawn_even_where_another_passes():
    roots = set()
    for seed in range(12):
        world = World({"a": 5}, drafts=("a", "b", "c"))
        result = await world.play(drafts=3, start="failing", seed=seed, max_depth=1)
        roots.add(world.judged[3][0])
        assert result.text == "a" and result.diagnostics["valid"]  # still the best answer
    assert roots == {"b", "c"}


async def test_among_equals_the_one_most_like_the_draft_wins():
    result = await World().play()
    assert result.text == "r"  # all have V = 0
    result = await World({"r000": 1, "r10": 1, "r11": 1}).play()
    assert result.text == "r10"


async def test_drawing_the_frontier_keeps_the_seed_and_goes_by_value():
    values = {"r0": 1, "r2": 2}
    firsts = set()
    for seed in range(20):
        world, again = World(values), World(values)
        await world.play(selection="sample", seed=seed)
        await again.play(selection="sample", seed=seed)
        assert world.judged == again.judged
        firsts.add(world.judged[4][:2])
    assert firsts == {"r0", "r2"}  # never r1, whose V is 0
    tops = {(await _first_drawn(seed)) for seed in range(20)}
    assert tops == {"r0", "r1", "r2"}  # all zero: any


async def _first_drawn(seed):
    world = World()
    await world.play(selection="sample", seed=seed)
    return world.judged[4][:2]


async def test_the_same_text_is_judged_once_but_counts():
    world = World()
    world.rewrite = lambda parent, n: [f"{START}same{END}"] * n
    result = await world.play(max_depth=1)
    assert world.judged == ["r", "same"]
    assert (result.diagnostics["judged"], result.diagnostics["reward_passes"]) == (3, 2)


async def test_the_baselines_are_settings():
    world = World({"c": 2}, drafts=("a", "b", "c"))
    result = await world.play(drafts=3, max_depth=0)
    assert (result.text, world.refined) == ("c", [])
    world = World()
    await world.play(branch=1, select_branch=1, max_depth=4)
    assert world.judged == ["r", "r0", "r00", "r000", "r0000"]


# ---------------------------------------------------------------- confirming


async def test_what_fresh_votes_refuse_is_not_accepted_and_the_search_goes_on():
    world = World({"r0": 4, "r1": 3, "r10": 5})
    real, fresh = world.vote, []

    def vote(answer, n):
        if n == 7:
            fresh.append(answer)
            return [NO] * n if answer in ("r0", "r1") else [YES] * n
        return real(answer, n)

    world.vote = vote
    result = await world.play(confirm_votes=7)
    assert fresh == ["r0", "r1", "r10"]
    assert (result.text, result.diagnostics["stop"]) == ("r10", "accepted")
    told = {row["answer"]: (row["value"], row["confirmed"]) for row in result.diagnostics["versions"]}
    assert told["r0"] == (0.0, 0.0) and told["r10"] == (1.0, 1.0) and told["r2"] == (0.0, None)
    assert [(note["before"], note["value"]) for note in world.notes("confirm")] == [
        (0.8, 0),
        (0.6, 0),
        (1, 1),
    ]


@pytest.mark.parametrize(("shape", "m"), [((3, 2, 1), 3), ((3, 2, 3), 15)])
@pytest.mark.parametrize("confirm_votes", [0, 5])
def test_a_noisy_judge_is_fooled_as_often_as_the_formula_says(shape, m, confirm_votes):
    branch, keep, depth = shape
    runs = 400
    found = false_accepts(
        0.7, runs, branch=branch, select_branch=keep, max_depth=depth, confirm_votes=confirm_votes, rounds=1
    )
    wanted = expected(0.7, m, confirm_votes=confirm_votes)
    assert abs(found - wanted) < 4 * sqrt(wanted * (1 - wanted) / runs)
    assert expected(0.7, m, confirm_votes=5) < 0.5 * expected(0.7, m)


# ---------------------------------------------------------------- the end, and the trace


async def test_a_judge_that_cannot_decide_leaves_the_draft():
    world = World(tied={"r"})
    result = await world.play()
    assert len(world.judged) == 3
    assert (result.text, result.complete, result.diagnostics["stop"]) == ("r", True, "no_judgement")
    assert result.diagnostics["valid"] is None


@pytest.mark.parametrize("calls", range(1, 9))
async def test_a_budget_ends_it_with_the_best_so_far(calls):
    world = World({"r1": 2})
    whole = 1 + 1 + 1 + 3  # draft, judgement, rewrites, judgements
    result = await world.play(max_depth=1, budget=Budget(calls=calls))
    assert result.complete is (calls >= whole)
    assert result.text == ("r1" if calls >= whole - 1 else "r")  # as soon as it is judged
    if not result.complete:
        assert "calls" in result.diagnostics["stopped"] and result.diagnostics["stop"] == "budget"


async def test_an_engine_that_dies_is_told():
    world, alive = World(), [4]

    def dying(request, seed):
        alive[0] -= 1
        if alive[0] < 0:
            raise EngineError("the engine has died")
        return world(request, seed)

    result = await Driver(Services({"policy": Scripted(dying)})).run(
        SPaR(policy=ACTOR, attempts=1).solve(TASK, seed=0)
    )
    assert not result.complete and "died" in result.diagnostics["stopped"] and result.text == "r"


async def test_another_model_may_judge_and_rewrite():
    actor, refiner = World(), World({"r0": 5})
    services = Services({"policy": Scripted(actor), "refiner": Scripted(refiner)})
    result = await Driver(services).run(SPaR(policy=ACTOR).solve(TASK, seed=0))
    assert result.text == "r0" and actor.judged == [] and refiner.judged[0] == "r"


async def test_the_trace_tells_the_tree():
    world = World({"r0": 2, "r01": 5})
    result = await world.play()
    rows = [row for note in world.notes("nodes") for row in note["nodes"]]
    names = {row["id"]: row["text"] for row in rows}
    parents = {row["text"]: names.get(row["parent"]) for row in rows}
    assert parents["r0"] == "r" and parents["r01"] == "r0"
    assert [note["value"] for note in world.notes("judgement")][:2] == [0.0, 0.4]
    assert [note["reason"] for note in world.notes("stop")] == ["accepted"]
    assert [names[i] for i in result.diagnostics["path"][1:]] == ["r", "r0", "r01"]
    assert result.text == "r01"  # a version stands for itself, not after its parent


def test_a_version_stands_for_all_steps_before_it():
    draft = State(TASK).extend(Step("a ", (1,), -1.0, 1)).extend(Step("b", (2,), -1.0, 1))
    version = draft.extend(Step("c", (3,), -0.5, 1, kind="version"))
    after = version.extend(Step("d", (4,), -0.5, 1))
    assert (draft.text, version.text, after.text) == ("a b", "c", "cd")
    assert (version.ids, after.ids, after.n_tokens, after.logp) == ((3,), (3, 4), 2, -1.0)
    assert version.depth == 3 and [step.text for step in after.steps] == ["c", "d"]


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
async def test_same_seed_same_tree_for_any_concurrency_and_order_of_replies(algorithm):
    async def traced(concurrency, latency):
        world, events = World({"r1": 2, "r12": 1, "r120": 4}), []
        services = Services({"policy": Scripted(world, latency_s=latency)})
        driver = Driver(services, seed=5, observers=[events.append], concurrency=concurrency)
        await driver.run(SPaR(policy=ACTOR, algorithm=algorithm).solve(TASK, seed=5))
        return comparable(map(row, events))

    first = await traced(None, 0.0)
    assert len(first) > 20
    for concurrency in (1, 3, None):
        delays = Random(concurrency or 0)
        assert await traced(concurrency, lambda _, delays=delays: delays.random() * 0.002) == first


async def test_plain_rewrites_have_no_marks_and_no_conversation():
    asked_for = []

    def reply(request, seed):
        asked_for.append([message.content for message in request.prompt.messages])
        if "What is wrong with it" in asked_for[-1][0]:
            return "no comma here"
        return "a, b"

    task = replace(TASK, checks=(Check("punctuation:no_comma"),))
    spar = SPaR(policy=ACTOR, judge="checks", reflect=False)
    result = await Driver(Services({"policy": Scripted(reply)})).run(spar.solve(task, seed=0))
    assert result.text == "no comma here"
    [question] = asked_for[1]
    assert "a, b" in question and "required: no comma; found: 1" in question
    assert "Judgement" not in question


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"branch": 0}, "branch must be at least 1"),
        ({"max_depth": -1}, "max_depth must not be below 0"),
        ({"gate": 1.0}, "gate must be"),
        ({"judge": "vote"}, "judge must be one of votes, checks, hybrid"),
        ({"algorithm": "a_star"}, "algorithm must be one of"),
    ],
)
def test_bad_parameters_are_told(parameters, told):
    with pytest.raises(UsageError, match=told):
        SPaR(policy=ACTOR, **parameters)

"""The toys are what they say: enumerable, drawn as told, with truths that can be checked by hand."""

import math
from collections import Counter, deque
from random import Random
from statistics import mean, stdev

import pytest

from abduce.serving.flow import Fork, Generate, Note, Prompt
from abduce.strategies.base import State, Step
from abduce.strategies.search import Search
from abduce.strategies.toys import Exhaustive, GridGoal, NoisyTask, ToyTree, TrapTree, drain

from .laws import TASK, chi2_p

TREE = ToyTree(3, 5, seed=0)


def at(text: str) -> State:
    state = State(TASK)
    for letter in text:
        state = state.extend(Step(letter))
    return state


def draws(policy, state: State, n: int, seed: int = 0) -> list[str]:
    [row] = drain(policy.propose([state], [n], [seed]))
    return [step.text for step in row]


def fits(counts: Counter, expected: dict[str, float]) -> bool:
    """χ² at 0.1 %."""
    return chi2_p(counts, list(expected), list(expected.values())) > 1e-3


# ---------------------------------------------------------------- trees


@pytest.mark.parametrize(("b", "depth", "leaves"), [(3, 5, 360), (2, 4, 28)])
@pytest.mark.parametrize("seed", range(3))
def test_all_leaves_are_known_and_their_probabilities_sum_to_one(b, depth, leaves, seed):
    tree = ToyTree(b, depth, seed=seed)
    found = tree.leaves()
    assert len(found) == len({state.text for state, _ in found}) == leaves
    assert sum(p for _, p in found) == pytest.approx(1)
    for state, p in found:
        assert tree.terminal(state)
        assert math.exp(state.logp) == pytest.approx(p)
        assert tree.answer(state) == state.text[-3:-1]
        assert 0.1 <= tree.value(state) <= 0.9


@pytest.mark.parametrize("prefix", ["", "a", "ab", "cab", "abca"])
def test_steps_are_drawn_as_often_as_the_children_say(prefix):
    expected = {step.text: p for step, p in TREE.children(at(prefix))}
    assert sum(expected.values()) == pytest.approx(1)
    assert fits(Counter(draws(TREE, at(prefix), 5000)), expected)


def test_whole_solutions_are_drawn_as_often_as_the_leaves_say():
    tree = ToyTree(2, 4, seed=0)
    outcomes = drain(tree.complete(State(TASK), 5000, seed=1))
    assert fits(Counter(o.text for o in outcomes), {state.text: p for state, p in tree.leaves()})


@pytest.mark.parametrize("policy", [TREE, NoisyTask(0.5, seed=1)])
def test_a_draw_depends_on_its_seed_and_number_alone(policy):
    alone = draws(policy, at("a"), 3, seed=7)
    assert draws(policy, at("a"), 9, seed=7)[:3] == alone
    rows = drain(policy.propose([at("b"), at("a")], [5, 3], [8, 7]))
    assert [step.text for step in rows[1]] == alone


def test_a_tree_is_a_function_of_its_seed():
    first, same, other = (ToyTree(3, 5, seed=s).leaves() for s in (0, 0, 1))
    assert [p for _, p in first] == [p for _, p in same] != [p for _, p in other]


def test_a_trap_promises_most_and_holds_least():
    trap, plain = TrapTree(3, 5, seed=0), {state.text: p for state, p in TREE.leaves()}
    assert trap.value(at("a")) == 0.95 > max(trap.value(at(step)) for step in "bc")
    for state, p in trap.leaves():
        assert trap.value(state) == (0.05 if state.text[0] == "a" else TREE.value(state))
        assert p == plain[state.text]


def test_exhaustive_proposes_every_child_once_whatever_is_asked_for():
    for n in (1, 7):
        for prefix in ("", "a", "ab", "abcab"):
            expected = [step.text for step, _ in TREE.children(at(prefix))]
            assert draws(Exhaustive(TREE), at(prefix), n) == expected
    policy = Exhaustive(TREE)
    leaf = TREE.leaves()[0][0]
    assert policy.terminal(leaf) and policy.answer(leaf) == TREE.answer(leaf)


# ---------------------------------------------------------------- the noisy task


def test_errors_are_as_frequent_as_the_task_says():
    for seed in range(6):
        task = NoisyTask(0.0, seed=seed)
        assert task.error in (0.1, 0.3, 0.5)
        right = Counter(text[0] for text in draws(task, State(TASK), 4000))
        assert fits(right, {"+": 1 - task.error, "-": task.error})
    assert {NoisyTask(0.0, seed=seed).error for seed in range(20)} == {0.1, 0.3, 0.5}


def test_without_noise_the_score_is_the_chance_of_success():
    task = NoisyTask(0.0, seed=2)
    search = Search(TASK, task, task, 0)
    drain(search.complete(search.root, 3000))
    for node in search.nodes[1:50]:
        [score] = drain(task.score([node.state]))
        left = task.steps - node.depth
        chance = 0.02 if "-" in node.state.text else 0.98 * (1 - task.error) ** left
        assert score == pytest.approx(chance)
    share = mean(task.answer(node.state) for node in search.terminals)
    p = (1 - task.error) ** task.steps
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 3000)


def test_noise_blurs_the_logit_and_the_same_text_gets_the_same_score():
    task, exact = NoisyTask(1.5, seed=2), NoisyTask(0.0, seed=2)
    states = [State(TASK).extend(Step(text)) for text in draws(task, State(TASK), 2000)]
    blurred, again, true = drain(task.score(states)), drain(task.score(states)), drain(exact.score(states))
    assert blurred == again
    errors = [math.log(a / (1 - a)) - math.log(b / (1 - b)) for a, b in zip(blurred, true, strict=True)]
    assert abs(mean(errors)) < 4 * 1.5 / math.sqrt(2000)
    assert stdev(errors) == pytest.approx(1.5, rel=0.07)


# ---------------------------------------------------------------- the grid


def steps_to_goal(grid: GridGoal) -> dict[tuple[int, int], int]:
    """True distances, by breadth-first search from the goal."""
    known, queue = {grid.goal: 0}, deque([grid.goal])
    while queue:
        x, y = queue.popleft()
        for _, dx, dy in grid.moves:
            near = x + dx, y + dy
            if near not in known and near not in grid.walls and min(near) >= 0 and max(near) < grid.size:
                known[near] = known[x, y] + 1
                queue.append(near)
    return known


@pytest.mark.parametrize("seed", range(5))
def test_the_manhattan_distance_never_overestimates_and_falls_by_at_most_a_step(seed):
    rng = Random(seed)
    walls = frozenset((rng.randrange(5), rng.randrange(5)) for _ in range(6)) - {(0, 0), (4, 3)}
    grid = GridGoal(5, (4, 3), walls)
    true = steps_to_goal(grid)
    for _ in range(60):
        state = State(TASK)
        while not grid.terminal(state) and state.depth < 15:
            cell, children = grid.cell(state), grid.children(state)
            assert cell not in walls and min(cell) >= 0 and max(cell) < 5
            assert grid.distance(state) <= true.get(cell, math.inf)
            if not children:
                break
            assert sum(p for _, p in children) == pytest.approx(1)
            after = state.extend(rng.choice(children)[0])
            assert abs(grid.distance(after) - grid.distance(state)) == 1
            assert after.logp == -after.depth
            state = after
        assert grid.answer(state) == (state.depth if grid.cell(state) == (4, 3) else None)


# ---------------------------------------------------------------- draining


def test_drain_runs_notes_and_forks_and_nothing_else():
    def leaf(n):
        yield [Note("x"), Note("y")]
        return n

    def flow():
        [results] = yield [Fork((leaf(1), leaf(2)))]
        return results

    assert drain(flow()) == (1, 2)

    def asks():
        yield [Generate(Prompt.user("?"))]

    def races():
        yield [Fork((leaf(1),), until=bool)]

    for other in (asks, races):
        with pytest.raises(TypeError, match="no answer"):
            drain(other())

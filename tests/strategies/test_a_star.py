"""Laws of A*-decoding: what each edge cost guarantees on enumerated trees; exact accounts; edges."""

import heapq
import math
from itertools import pairwise
from statistics import mean

import pytest

from abduce.orchestrator.background import wait_for
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called
from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, Generate, Note
from abduce.serving.scripted import Scripted
from abduce.serving.synthetic import Synthetic
from abduce.strategies.a_star import AStar, Progress
from abduce.strategies.base import Policy, Step
from abduce.strategies.best_of_n import BestOfN
from abduce.strategies.frontier import Frontier, key
from abduce.strategies.policy import StepPolicy
from abduce.strategies.rewards.rate import RateReward
from abduce.strategies.search import Search
from abduce.strategies.toys import Exhaustive, GridGoal, NoisyTask, ToyTree, TrapTree, drain

from .laws import TASK, Constant, interrupted

TREES = [ToyTree(3, 5, seed=seed) for seed in range(40)]


def a_star(tree, **parameters):
    return AStar(**{"policy": tree, "reward": tree, **parameters})


def explored(method, seed=0, reward=...):
    """The store and the progress of a finished search."""
    search = Search(TASK, method.policy, method.reward if reward is ... else reward, seed)
    progress = Progress(Frontier(method.max_open))
    drain(method.explore(search, progress))
    return search, progress


def exhaustive(tree, **parameters):
    return a_star(Exhaustive(tree), reward=tree, **parameters)


def falls(node):
    """The total fall of the reward along the path."""
    scores = [n.score for n in node.path()]
    return sum(max(0.0, a - b) for a, b in pairwise(scores))


def falls_to(tree, leaf):
    scores = [1.0] + [tree.value(prefix) for prefix in lineage(leaf)]
    return sum(max(0.0, a - b) for a, b in pairwise(scores))


def lineage(leaf):
    """Every prefix but the empty one, shortest first."""
    found = []
    while leaf.parent is not None:
        found.append(leaf)
        leaf = leaf.parent
    return found[::-1]


def surprise_to(tree, leaf):
    return -sum(math.log(tree.value(prefix)) for prefix in lineage(leaf))


# ---------------------------------------------------------------- P1, P2: the cost "drop"


def test_drop_finds_the_least_total_fall_of_the_whole_tree():
    for tree in TREES:
        method = exhaustive(tree)
        search, progress = explored(method)
        [goal] = progress.goals
        assert method.f(goal) == pytest.approx(falls(goal))
        assert falls(goal) == pytest.approx(min(falls_to(tree, leaf) for leaf, _ in tree.leaves()))
        for node in search.nodes[1:]:
            assert method.f(node) >= method.f(node.parent) - 1e-12
        for f, *_ in progress.popped:
            assert f <= method.f(goal) + 1e-9


def uniform_cost_order(tree):
    """Texts in the order in which plain uniform-cost search on the falls expands them, the goal last."""
    search = Search(TASK, Exhaustive(tree), tree, 0)
    queue = [(key(search.root, 0.0), search.root)]
    order = []
    while True:
        _, node = heapq.heappop(queue)
        order.append(node.state.text)
        if node.terminal:
            return order
        [children] = drain(search.expand([node], [1]))
        for child in children:
            heapq.heappush(queue, (key(child, falls(child)), child))


def test_drop_is_uniform_cost_search_on_the_falls_expansion_by_expansion():
    for tree in TREES:
        search, progress = explored(exhaustive(tree))
        assert [search.nodes[name].state.text for *_, name in progress.popped] == uniform_cost_order(tree)


def test_the_same_holds_on_the_tree_that_was_sampled():
    """Every finished solution of the sampled tree falls at least as much, and so does every open prefix."""
    for seed, tree in enumerate(TREES):
        method = a_star(tree, k=3)
        search, progress = explored(method, seed)
        [goal] = progress.goals
        others = [node for node in search.nodes if node.terminal or not node.children]
        assert falls(goal) <= min(map(falls, others)) + 1e-12
        recorded = brute_force(search)
        assert [n.id for n in recorded] == [name for *_, name in progress.popped]


def brute_force(search):
    """Search the recorded tree again, the least (f, −r, −depth, id) by a linear scan."""
    fringe, order = [search.root], []
    while not order or not order[-1].terminal:
        node = min(fringe, key=lambda n: (round(falls(n), 9), -n.score, -n.depth, n.id))
        fringe.remove(node)
        fringe += node.children
        order.append(node)
    return order


# ---------------------------------------------------------------- P3 to P5


def cost_to_go(tree, state, known={}):  # noqa: B006  one memory for all trees
    """h*: the least −log product of scores from a state to a leaf."""
    name = tree.seed, state.text
    if name not in known and not tree.terminal(state):
        children = [state.extend(step) for step, _ in tree.children(state)]
        known[name] = min(cost_to_go(tree, child) - math.log(tree.value(child)) for child in children)
    return known.get(name, 0.0)


def test_nll_finds_the_largest_product_with_fewer_expansions_the_better_the_estimate():
    expansions = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        counts = []
        for tree in TREES:
            method = exhaustive(tree, cost="nll", heuristic=lambda s, t=tree, x=share: x * cost_to_go(t, s))
            search, progress = explored(method)
            best = min(surprise_to(tree, leaf) for leaf, _ in tree.leaves())
            assert progress.goals[0].g == pytest.approx(best)
            counts.append(search.counts.expansions)
        expansions[share] = mean(counts)
    figures = list(expansions.values())
    assert figures == sorted(figures, reverse=True)
    assert figures[-1] < figures[0] / 2


def test_weighted_a_star_costs_at_most_w_times_the_optimum():
    excess = []
    for tree in TREES:
        best = min(surprise_to(tree, leaf) for leaf, _ in tree.leaves())
        for w in (1.5, 2.0, 4.0):
            method = exhaustive(tree, cost="nll", weight=w, heuristic=lambda s, t=tree: cost_to_go(t, s))
            _, progress = explored(method)
            assert best - 1e-9 <= progress.goals[0].g <= w * best + 1e-9
            excess.append(progress.goals[0].g / best)
    for tree in TREES[:5]:  # an estimate of half the truth leaves room for the weight to do harm
        best = min(surprise_to(tree, leaf) for leaf, _ in tree.leaves())
        method = exhaustive(tree, cost="nll", weight=4.0, heuristic=lambda s, t=tree: cost_to_go(t, s) / 2)
        _, progress = explored(method)
        assert progress.goals[0].g <= 4.0 * best + 1e-9
    assert min(excess) >= 1.0 - 1e-12


def test_control_rise_is_not_optimal_for_its_own_cost():
    """The test of `drop`, put to `rise`, must fail on many trees."""
    optimal = 0
    for tree in TREES:
        method = exhaustive(tree, cost="rise")
        _, progress = explored(method)
        goal = progress.goals[0]
        best = min(falls_to(tree, leaf) + 1.0 - tree.value(leaf) for leaf, _ in tree.leaves())
        optimal += method.f(goal) <= best + 1e-9
        assert drain(method.solve(TASK, seed=0)).diagnostics["optimal"] is False
    assert 0 < optimal < 36


def test_logp_finds_the_most_probable_leaf():
    for tree in TREES:
        _, progress = explored(exhaustive(tree, cost="logp"), reward=None)
        assert math.exp(-progress.goals[0].g) == pytest.approx(max(p for _, p in tree.leaves()))


def test_greedy_follows_the_last_score_and_the_trap_holds_it_for_one_step_only():
    tree = TrapTree(3, 4, seed=2)
    search, progress = explored(exhaustive(tree, cost="greedy"))
    order = [search.nodes[name].state.text for *_, name in progress.popped]
    assert order[1] == "a"  # into the trap
    assert not progress.goals[0].state.text.startswith("a")  # and out again


def test_a_length_price_prefers_the_shorter_path():
    tree = TREES[0]
    lengths = [explored(exhaustive(tree, length_price=price))[1].goals[0].depth for price in (0.0, 0.05, 1.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 3  # two letters and the stop


# ---------------------------------------------------------------- classical A* on a grid


def grid(**parameters):
    walls = frozenset((3, y) for y in range(1, 6)) | {(1, 1), (1, 2)}
    maze = GridGoal(6, (5, 4), walls)
    return maze, AStar(policy=Exhaustive(maze), reward=None, cost="logp", merge=maze.cell, **parameters)


def shortest(maze):
    distance = {(0, 0): 0}
    queue = [(0, 0)]
    for x, y in queue:
        for _, dx, dy in maze.moves:
            cell = (x + dx, y + dy)
            inside = all(0 <= c < maze.size for c in cell)
            if inside and cell not in maze.walls and cell not in distance:
                distance[cell] = distance[x, y] + 1
                queue.append(cell)
    return distance[maze.goal]


def test_the_shortest_path_is_found_and_the_distance_saves_expansions():
    maze, blind = grid()
    _, informed = grid(heuristic=maze.distance)
    counts = []
    for method in (blind, informed):
        result = drain(method.solve(TASK, seed=0))
        assert result.answer == shortest(maze)
        assert result.diagnostics["optimal"]
        counts.append(result.diagnostics["expansions"])
    assert counts[1] < counts[0] <= 36 + 4


# ---------------------------------------------------------------- accounts


def test_passes_are_distinct_texts_and_tokens_those_of_all_proposals():
    for seed, tree in enumerate(TREES[:10]):
        search, _ = explored(a_star(tree, k=4), seed)
        texts = {node.state.text for node in search.nodes[1:]}
        counts = search.counts
        assert counts.reward_passes == len(texts)
        assert counts.tokens == counts.proposals == 4 * counts.expansions
        assert counts.duplicates + len(search.nodes) - 1 == counts.proposals


def test_nothing_is_asked_for_after_the_goal_is_popped():
    method = a_star(TREES[1])
    flow = method.solve(TASK, seed=1)
    batch, asked = next(flow), []
    with pytest.raises(StopIteration) as end:
        while True:
            asked.append(batch)
            batch = flow.send([None] * len(batch))
    result = end.value.value
    goal = result.diagnostics["path"][-1]
    scored = [n for b in asked for n in b if isinstance(n, Note) and n.kind == "scores"]
    last_expanded = max(name for *_, name in explored(method, seed=1)[1].popped)
    assert str(goal) in {name for note in scored for name in note.data["scores"]}
    assert last_expanded <= max(int(name) for name in scored[-1].data["scores"])


@pytest.mark.parametrize("calls", [0, 1, 2, 5, 9, 20])
def test_a_budget_of_calls_holds(calls):
    engine = Synthetic(seed=3)
    method = AStar(policy=StepPolicy(prompt="plain", answer_kind="text"), reward=RateReward(squash="none"))
    driver = Driver(Services({"policy": engine}), budget=Budget(calls=calls, finish=0.0))
    result = wait_for(driver.run(method.solve(TASK, seed=0)))
    assert driver.ledger.usage.calls <= calls
    assert result.complete or "calls" in result.diagnostics["stopped"]


def test_every_token_of_the_trace_is_in_the_usage():
    events = []
    driver = Driver(Services({"policy": Synthetic(seed=3)}), observers=[events.append])
    method = AStar(policy=StepPolicy(prompt="plain", answer_kind="text"), reward=RateReward(squash="none"))
    result = wait_for(driver.run(method.solve(TASK, seed=0)))
    called = [event for event in events if isinstance(event, Called)]
    drawn = [completion for e in called if isinstance(e.request, Generate) for completion in e.reply]
    assert sum(c.n_tokens for c in drawn) == driver.ledger.usage.output_tokens == result.diagnostics["tokens"]


# ---------------------------------------------------------------- compared with best-of-n (NoisyTask)


def noisy(make, sigma, tasks):
    """Accuracy and mean steps over tasks of their own noise."""
    right = steps = 0
    for seed in range(tasks):
        task = NoisyTask(sigma, seed=seed)
        result = drain(make(task).solve(TASK, seed=seed))
        right += result.answer is True
        steps += result.diagnostics["proposals"]
    return right / tasks, steps / tasks


def test_with_a_good_reward_it_matches_best_of_n_at_sixty_percent_of_the_steps():
    """95 % interval of the difference above zero; the whole table is in benchmarks/noisy_task.py."""
    tasks, n = 1500, 8
    ours, steps = noisy(lambda task: a_star(task, k=2), 0.5, tasks)
    theirs, cost = noisy(lambda task: BestOfN(policy=task, reward=task, n=n, attempts=1), 0.5, tasks)
    error = math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / tasks)
    assert cost == 6 * n
    assert steps <= 0.6 * cost
    assert ours - theirs > 1.96 * error


# ---------------------------------------------------------------- edges


def test_a_constant_reward_makes_it_dive():
    tree = ToyTree(3, 5, seed=7)
    method = a_star(tree, reward=Constant(0.7), k=4)
    search, progress = explored(method)
    assert search.counts.expansions == progress.goals[0].depth
    wide, _ = explored(a_star(tree, reward=Constant(0.7), k=4, cost="nll"))
    assert wide.counts.expansions > search.counts.expansions


def test_one_draw_a_step_is_a_chain_and_says_so():
    result = drain(a_star(TREES[0], k=1).solve(TASK, seed=0))
    assert result.complete
    assert "k=4" in result.diagnostics["warnings"][0]
    assert result.diagnostics["proposals"] == result.diagnostics["expansions"] == len(result.text)


class Mute(Policy):
    """Proposes nothing but failures from depth `depth` on."""

    requires = {}  # noqa: RUF012

    def __init__(self, depth):
        self.depth = depth

    def propose(self, states, counts, seeds):
        yield []
        return [
            [Step(f"{i}") if s.depth < self.depth else Failure("engine", "down")] * n
            for i, (s, n) in enumerate(zip(states, counts, strict=True))
        ]

    def terminal(self, state):
        return False

    def answer(self, state):
        return None


@pytest.mark.parametrize("depth", [0, 2])
def test_when_proposals_run_out_the_reason_is_told(depth):
    result = drain(a_star(Mute(depth), reward=Constant(0.5), reexpand=0.1).solve(TASK, seed=0))
    assert not result.complete
    assert "down" in result.diagnostics["failures"]
    assert len(result.diagnostics["path"]) == depth + 1


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("stop", ["first", "budget", "vote:3"])
def test_a_budget_may_end_it_at_any_moment(times, stop):
    for at in range(40):
        result = interrupted(a_star(TREES[2], stop=stop).solve(TASK, seed=2), at, times)
        assert result.complete or "budget" in result.diagnostics["stopped"]
        if times == 1 and at > 3:
            assert result.answer is not None


def test_evictions_are_counted_and_cost_the_claim_of_optimality():
    whole, cut = (drain(a_star(TREES[3], k=6, max_open=limit).solve(TASK, seed=0)) for limit in (None, 2))
    assert whole.diagnostics["optimal"] and not whole.diagnostics["evicted"]
    assert cut.diagnostics["evicted"] and not cut.diagnostics["optimal"]
    assert cut.answer is not None


def test_larger_batches_report_what_they_expanded_beyond_the_exact_order():
    exact = [drain(a_star(tree, pop_batch=1).solve(TASK, seed=1)).diagnostics for tree in TREES]
    batched = [drain(a_star(tree, pop_batch=4).solve(TASK, seed=1)).diagnostics for tree in TREES]
    assert all(facts["expanded_beyond"] == 0 for facts in exact)
    assert sum(facts["expanded_beyond"] for facts in batched) > 0
    assert mean(f["batches"] for f in batched) < mean(f["batches"] for f in exact)
    assert not any(facts["optimal"] for facts in batched)


def test_budget_goes_on_and_returns_the_least_f_of_all():
    for tree in TREES[:10]:
        result = drain(exhaustive(tree, stop="budget").solve(TASK, seed=0))
        assert result.complete
        assert result.diagnostics["goals"] == len(tree.leaves())
        assert result.diagnostics["f"] == pytest.approx(
            min(falls_to(tree, leaf) for leaf, _ in tree.leaves())
        )


def test_a_vote_collects_goals_and_weighs_them_by_score():
    for tree in TREES[:10]:
        method = exhaustive(tree, stop="vote:9")
        _, progress = explored(method)
        votes = {}
        for goal in progress.goals:
            votes[tree.answer(goal.state)] = votes.get(tree.answer(goal.state), 0) + goal.score
        result = drain(method.solve(TASK, seed=0))
        assert len(progress.goals) == 9
        assert votes[result.answer] == pytest.approx(max(votes.values()))


def test_a_local_frontier_never_goes_back():
    for tree in TREES[:10]:
        search, progress = explored(exhaustive(tree, frontier="local"))
        path = [search.nodes[name] for *_, name in progress.popped]
        assert [node.parent for node in path[1:]] == path[:-1]


def test_reexpansion_draws_again_from_where_it_has_been():
    class Late(ToyTree):
        """Nothing good is found among the first draws of the root."""

        def value(self, state):
            return 0.9 if state.text.startswith("b") else 0.2

    once, again = (a_star(Late(2, 3, seed=1), k=1, cost="nll", reexpand=rho) for rho in (None, 0.1))
    found = [drain(again.solve(TASK, seed=seed)).text.startswith("b") for seed in range(20)]
    plain = [drain(once.solve(TASK, seed=seed)).text.startswith("b") for seed in range(20)]
    assert sum(found) > sum(plain)


def test_at_its_last_step_a_solution_is_asked_for_an_answer():
    engine = Scripted(lambda request, seed: " 7" if request.prompt.prefix.endswith("is") else "Hm.\n\n")
    policy = StepPolicy(prompt="{question}", max_steps=2)
    for method in (a_star(policy, reward=Constant()), a_star(StepPolicy(), reward=Constant(), max_depth=2)):
        result = wait_for(Driver(Services({"policy": engine})).run(method.solve(TASK, seed=0)))
        assert (result.answer, result.complete) == ("7", True)


def test_without_a_reward_it_goes_on_by_log_probs_if_that_is_wanted():
    class Broken:
        def score(self, states):
            yield []
            return [Failure("reward", "no reward today") for _ in states]

    tree = TREES[0]
    strict = drain(a_star(tree, reward=Broken()).solve(TASK, seed=0))
    assert not strict.complete and "no reward today" in strict.diagnostics["stopped"]
    lenient = drain(a_star(tree, reward=Broken(), fallback="logp").solve(TASK, seed=0))
    assert lenient.complete and "no reward today" in lenient.diagnostics["fell_back"]


def test_a_root_that_is_finished_is_returned():
    class Done(ToyTree):
        def terminal(self, state):
            return True

        def answer(self, state):
            return None

    result = drain(a_star(Done(2, 3, seed=0)).solve(TASK, seed=0))
    assert result.complete and result.text == ""


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"k": 0}, "at least 1"),
        ({"cost": "fall"}, "rise"),
        ({"stop": "never"}, "vote:<number>"),
        ({"stop": "vote:0"}, "vote:<number>"),
        ({"weight": 0.5}, "at least 1"),
        ({"weight": math.nan}, "at least 1"),
        ({"length_price": -1.0}, "below 0"),
        ({"frontier": "globl"}, "global"),
        ({"pop_batch": 0}, "at least 1"),
        ({"max_open": 0}, "at least 1"),
        ({"heuristic": lambda state: 0.0}, "'nll' or 'logp'"),
        ({"reward": None}, "needs a reward"),
        ({"policy": StepPolicy(), "cost": "logp"}, "logprobs: true"),
        ({"fallback": "random"}, "logp"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        a_star(TREES[0], **wrong)

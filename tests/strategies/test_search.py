"""Laws of the node store: exact accounts, seeds that never repeat, an end that never raises."""

import json
import math
from random import Random

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.serving.errors import BudgetExhausted, RewardUnavailable
from abduce.serving.flow import Failure, Generate, Note
from abduce.strategies.base import State, Step
from abduce.strategies.policy import StepPolicy
from abduce.strategies.search import Counts, Search
from abduce.strategies.toys import Exhaustive, ToyTree, drain

from .baselines import TASK, Runner, Says, Table, notes, said

TREE = ToyTree(3, 5, seed=0)
LOST = Failure("engine", "lost")


def search(policy=TREE, reward=None, seed=0, first_id=0) -> Search:
    return Search(TASK, policy, reward, seed, first_id=first_id)


def grown(found: Search, rounds: int = 4, unique: bool = False) -> list[int]:
    """Expand random open nodes, twice each; how many proposals were asked for in each round."""
    rng, asked = Random(found.seed), []
    for _ in range(rounds):
        nodes = rng.sample(found.open, min(3, len(found.open)))
        counts = [rng.randint(1, 4) for _ in nodes]
        for _ in range(2):
            drain(found.expand(nodes, counts, unique=unique))
            asked.append(sum(counts))
    return asked


# ---------------------------------------------------------------- accounts


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_every_proposal_and_token_is_counted_and_each_text_scored_once(seed, unique):
    reward = Table(lambda text: len(text) / 10)
    found = search(reward=reward, seed=seed)
    asked = grown(found, unique=unique)
    counts = found.counts
    assert counts.proposals == counts.tokens == sum(asked)  # a step of a toy is one token
    assert counts.batches == len(asked)
    assert len(found.nodes) == 1 + counts.proposals - counts.duplicates
    assert counts.duplicates == 0 or unique
    assert sorted(reward.asked) == sorted({node.state.text for node in found.nodes[1:]})
    assert counts.reward_passes == len(reward.asked)
    assert all(node.score == len(node.state.text) / 10 for node in found.nodes[1:])


def test_a_child_that_repeats_a_sibling_is_dropped_also_if_the_sibling_is_older():
    found = search(Says(["a", "b", "a", "b", "c", "c"]))
    first = drain(found.expand([found.root], [3], unique=True))
    again = drain(found.expand([found.root], [3], unique=True))
    assert [[n.state.text for n in row] for row in (*first, *again)] == [["a", "b"], ["c"]]
    assert (found.counts.duplicates, found.counts.proposals, found.counts.tokens) == (3, 6, 6)


def test_cousins_may_say_the_same_but_are_scored_once():
    class Same(ToyTree):
        def children(self, state):
            return [(Step("x", n_tokens=1), 1.0)]

    reward = Table(lambda text: 0.5)
    found = search(Same(2, 5, seed=0), reward)
    [pair] = drain(found.expand([found.root], [2]))
    drain(found.expand(pair, [2, 2], unique=True))
    assert [n.state.text for n in found.nodes] == ["", "x", "x", "xx", "xx"]
    assert reward.asked == ["x", "xx"]


def test_reward_passes_are_told_to_the_budget_as_they_happen():
    found = search(reward=TREE)
    told: list[Note] = []

    class Listener(Runner):
        def reply(self, request):
            told.extend([request] if isinstance(request, Note) else [])
            return super().reply(request)

    Listener().run(found.complete(found.root, 30))
    assert sum(note.reward_passes for note in told) == found.counts.reward_passes > 0


def test_failed_draws_are_counted_and_left_out_wherever_they_happen():
    for draw in (
        lambda found: found.expand([found.root], [3]),
        lambda found: found.complete(found.root, 3),
        lambda found: found.record(found.root, [LOST, Step("a", n_tokens=1, last=True), LOST]),
    ):
        found = search(Says([LOST, "a", LOST]))
        drain(draw(found))
        assert [n.state.text for n in found.nodes] == ["", "a"]
        assert (found.counts.proposals, found.counts.failed_proposals, found.counts.tokens) == (3, 2, 1)
        assert found.failures == ["lost"]  # each reason once


def test_a_refused_draw_or_score_cuts_the_search_short():
    """What the budget refused of a batch is a reply, not an exception: the result must not hide it."""
    refused = Failure("budget", "budget of 9 calls is used up")
    for policy, reward in ((Says(["a", refused]), None), (Says(["a", "b"]), Table({"a": 1.0, "b": refused}))):
        found = search(policy, reward)
        [pool] = drain(found.expand([found.root], [2]))
        result = found.result(found.best(pool))
        assert result.text == "a"
        assert (result.complete, result.diagnostics["stopped"]) == (False, refused.message)


@pytest.mark.parametrize("bad", [math.nan, Failure("reward", "no verdict")])
def test_a_state_that_cannot_be_scored_gets_zero_and_is_counted(bad):
    found = search(Says(["a", "b"]), Table({"a": bad, "b": 0.7}))
    drain(found.expand([found.root], [2]))
    assert [n.score for n in found.nodes[1:]] == [0.0, 0.7]
    assert (found.counts.failed_scores, found.counts.failed_proposals) == (1, 0)
    assert found.failures == ["the reward returned NaN" if isinstance(bad, float) else "no verdict"]
    assert found.result(found.nodes[2]).complete  # one bad score does not spoil a search


def test_a_reward_that_can_score_nothing_ends_the_search():
    found = search(Says(["a", "b"]), Table(lambda text: Failure("reward", "no checks")))
    with pytest.raises(RewardUnavailable, match="no state could be scored: no checks"):
        drain(found.expand([found.root], [2]))
    assert [n.score for n in found.nodes[1:]] == [0.0, 0.0]


@pytest.mark.parametrize(("score", "kept"), [(1.5, 1.0), (-0.1, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_scores_are_clipped_to_the_unit_interval_and_counted(score, kept):
    found = search(Says(["a"]), Table({"a": score}))
    [[node]] = drain(found.expand([found.root], [1]))
    assert node.score == kept
    assert found.counts.clipped_scores == (score != kept)


def test_scoring_again_is_free():
    reward = Table(lambda text: 0.5)
    found = search(reward=reward)
    grown(found)
    passes = found.counts.reward_passes
    drain(found.score(found.nodes))
    assert found.counts.reward_passes == passes == len(reward.asked)


def test_recorded_steps_count_as_drawn_and_grafted_ones_do_not():
    found = search(reward=TREE)
    drain(found.record(found.root, [Step("a", n_tokens=3), Step("b", n_tokens=4)]))
    assert (found.counts.proposals, found.counts.tokens) == (2, 7)
    path = drain(found.graft(found.root, [Step("a"), Step("b"), Step(".")]))
    assert [n.state.text for n in path] == ["a", "ab", "ab."]
    assert path[-1].terminal and path[-1].path() == [found.root, *path]
    assert (found.counts.proposals, found.counts.tokens) == (2, 7)
    assert [n.score for n in path] == [TREE.value(n.state) for n in path]


def test_absorbing_a_search_adds_nodes_and_accounts():
    parts = [search(reward=TREE, seed=s, first_id=1000 * s) for s in (1, 2)]
    for part in parts:
        grown(part, unique=True)
        part.failures += ["lost", f"only {part.seed}"]
    parts[0].ended = BudgetExhausted("calls", 9)
    expected = [n.state.text for part in parts for n in part.nodes[1:]]
    sums = {f: sum(getattr(p.counts, f) for p in parts) for f in Counts.__slots__}
    whole = search(reward=TREE)
    for part in parts:
        whole.absorb(part)
    assert [n.state.text for n in whole.nodes[1:]] == expected
    assert [n.id for n in whole.nodes] == [0, *(n.id for part in parts for n in part.nodes[1:])]
    assert {f: getattr(whole.counts, f) for f in Counts.__slots__} == sums
    assert whole.failures == ["lost", "only 1", "only 2"]
    assert whole.result(whole.best(whole.nodes)).diagnostics["stopped"] == "budget of 9 calls is used up"
    assert networkx.is_arborescence(whole.to_networkx())


# ---------------------------------------------------------------- seeds


class Witness(ToyTree):
    """Remembers the seeds it was asked to draw with."""

    def __init__(self):
        super().__init__(3, 5, seed=0)
        self.seeds: list[int] = []

    def propose(self, states, counts, seeds):
        self.seeds += seeds
        return (yield from super().propose(states, counts, seeds))


@settings(deadline=None)
@given(st.lists(st.sampled_from(["expand", "twice", "complete", "force", "inner"]), max_size=8))
def test_no_two_draws_of_a_search_share_a_seed(moves):
    policy = Witness()
    found = search(policy)
    for move in moves:
        if move == "expand":
            drain(found.expand(found.open[-2:], [2] * len(found.open[-2:])))
        elif move == "twice":
            drain(found.expand([found.root, found.root], [1, 2]))
        elif move == "complete":
            drain(found.complete(found.nodes[len(found.nodes) // 2], 2))
        elif move == "force":
            drain(found.force(found.open[-1:]))
        else:
            inner = [node for node in found.nodes if node.children][-2:]
            drain(found.expand(inner, [1] * len(inner)))
    assert len(set(policy.seeds)) == len(policy.seeds)
    lineages = [node.state.lineage for node in found.nodes]
    assert len(set(lineages)) == len(lineages)


def test_what_is_drawn_from_a_node_does_not_depend_on_what_is_drawn_with_it():
    alone, together = search(), search()
    for found in (alone, together):
        drain(found.expand([found.root], [3]))
    [expected] = drain(alone.expand([alone.nodes[2]], [4]))
    _, same, _ = drain(together.expand(together.nodes[1:4], [4, 4, 4]))
    assert [n.state.text for n in same] == [n.state.text for n in expected]


def test_draws_in_flight_are_numbered_before_they_arrive():
    """Two flows in lockstep ask from the same node before either is answered."""
    policy = Witness()
    found = search(policy)
    first, second = found.expand([found.root], [2]), found.expand([found.root], [2])
    next(first), next(second)
    assert len(set(policy.seeds)) == 2


# ---------------------------------------------------------------- the store


def test_pruned_nodes_stay_and_are_told_once():
    found = search(reward=TREE)
    drain(found.expand([found.root], [3]))
    given_up = found.nodes[2:]
    assert notes(found.prune(given_up), "prune") == [{"nodes": [2, 3]}]
    assert notes(found.prune(given_up), "prune") == []
    assert found.open == [found.nodes[1]]
    assert len(found.nodes) == 4


def test_open_nodes_are_those_a_search_could_still_go_on_from():
    found = search(Exhaustive(TREE))
    while found.open:
        drain(found.expand(found.open, [1] * len(found.open)))
    assert sorted(n.state.text for n in found.terminals) == sorted(s.text for s, _ in TREE.leaves())


def test_json_and_networkx_tell_the_same_tree():
    found = search(reward=TREE)
    grown(found, unique=True)
    told, graph = json.loads(json.dumps(found.to_json(), allow_nan=False)), found.to_networkx()
    assert [row["id"] for row in told["nodes"]] == list(graph) == [n.id for n in found.nodes]
    assert {(row["parent"], row["id"]) for row in told["nodes"][1:]} == set(graph.edges)
    assert all(graph.nodes[row["id"]] == row for row in told["nodes"])
    assert networkx.is_arborescence(graph)
    assert told["counts"]["proposals"] == found.counts.proposals
    for node in found.nodes:
        path = networkx.shortest_path(graph, 0, node.id)
        assert "".join(graph.nodes[i]["text"] for i in path) == node.state.text


def test_the_notes_of_a_search_tell_its_whole_tree():
    def flow(found):
        yield from found.expand([found.root], [4], unique=True)
        yield from found.complete(found.nodes[1], 2)
        yield from found.force([found.nodes[2]])
        yield from found.graft(found.root, [Step("c"), Step("c")])

    found, same = search(reward=TREE), search(reward=TREE)
    rows = [row for data in notes(flow(found), "nodes") for row in data["nodes"]]
    scores = {k: v for data in notes(flow(same), "scores") for k, v in data["scores"].items()}
    told = [{**row, "score": scores.get(str(row["id"]))} for row in rows]
    assert told == found.to_json()["nodes"][1:]


# ---------------------------------------------------------------- the end


def test_the_best_has_an_answer_then_the_highest_value_then_came_first():
    found = search(Says([" ", "a", "b", "c"]), Table({" ": 1.0, "a": 0.3, "b": 0.5, "c": 0.5}))
    drain(found.expand([found.root], [4]))
    assert found.best(found.nodes).state.text == "b"
    assert found.best(found.nodes, lambda n: None).state.text == "a"
    assert found.best([found.root, found.nodes[1]]).state.text == ""
    assert found.best([]) is None


def throwing(flow, at):
    """Run a flow of a toy; from yield `at` on the budget is used up."""
    return Runner(at=at, times=10**6).run(flow)


def test_finalise_takes_the_best_of_what_is_finished_and_asks_for_nothing():
    found = search(reward=TREE)
    drain(found.complete(found.root, 5))
    proposals = found.counts.proposals
    best = drain(found.finalise(found.open[0] if found.open else found.root))
    assert best.score == max(n.score for n in found.terminals)
    assert found.counts.proposals == proposals


def test_finalise_completes_then_forces_then_gives_up():
    def found():
        policy = Says(["a"])
        return search(policy)

    whole = found()
    assert drain(whole.finalise(whole.root)).state.text == "a"
    assert whole.result(whole.nodes[-1]).complete
    mute = search(Says([LOST]))
    assert drain(mute.finalise(mute.root)).state.text == "forced"
    short = found()
    best = Runner(at=0, times=1).run(short.finalise(short.root))
    assert best.state.text == "forced"
    nothing = found()
    assert throwing(nothing.finalise(nothing.root), 0) is nothing.root
    for ended, node in ((short, best), (nothing, nothing.root)):
        result = ended.result(node)
        assert (result.complete, result.diagnostics["stopped"]) == (False, "budget of 9 tokens is used up")
    assert drain(whole.finalise(None)).state.text == "a"
    assert drain(found().finalise(None)) is None


def test_what_a_prefix_seems_to_answer_is_no_answer():
    """A number on the way is extracted like any other; an unfinished solution must be ended all the same."""
    found = search(StepPolicy(answer_kind="number"))
    drain(found.graft(found.root, [Step("6 x 5 = 30\n\n")]))
    flow = found.finalise(found.nodes[1])
    next(flow)
    [asked] = flow.throw(BudgetExhausted("tokens", 9))
    assert isinstance(asked, Generate) and asked.prompt.prefix.endswith("The answer is")
    [note] = flow.send([said(" 42.")])
    assert note.kind == "nodes"
    with pytest.raises(StopIteration) as end:
        flow.send([None])
    assert found.result(end.value.value).answer == "42"


def test_a_result_without_a_finished_solution_says_so():
    found = search(reward=TREE)
    empty = found.result(None)
    assert (empty.answer, empty.text, empty.complete) == (None, "", False)
    assert empty.diagnostics["stopped"] == "no solution was found"
    [[node]] = drain(found.expand([found.root], [1]))
    partial = found.result(node)
    assert (partial.complete, partial.text) == (False, node.state.text)
    assert partial.diagnostics["stopped"] == "no finished solution was found"
    assert partial.diagnostics["path"] == [0, 1]
    assert found.result(node, stopped=BudgetExhausted("calls", 3)).diagnostics["stopped"] == (
        "budget of 3 calls is used up"
    )


def test_the_root_is_beyond_doubt_and_may_be_the_end():
    class Nothing(Says):
        def terminal(self, state: State) -> bool:
            return True

    found = search(Nothing([]))
    assert found.root.score == 1.0
    assert found.terminals == [found.root]


def test_a_finished_solution_is_not_judged_as_its_prefix_was():
    """Where the model says nothing more and ends its turn both have one text."""

    class Ends(Says):
        def terminal(self, state):
            return state.step is not None and state.step.last

    class Picky:
        def score(self, states):
            yield []
            return [0.0 if state.step.last else 1.0 for state in states]

    found = search(Ends(["54"]), Picky())
    [node] = drain(found.record(found.root, [Step("54")]))
    [leaf] = drain(found.record(node, [Step("", last=True)]))
    assert (node.state.text, node.score, leaf.score) == (leaf.state.text, 1.0, 0.0)
    assert found.counts.reward_passes == 2
    twins = drain(found.record(found.root, [Step("9"), Step("9", last=True)]))
    assert [twin.terminal for twin in twins] == [False, True]

"""What a page is told of a run: every node with its call, its fate, and nothing twice."""

import json
from dataclasses import dataclass
from operator import itemgetter

import orjson
import pytest

from abduce.orchestrator import search_view
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import read
from abduce.orchestrator.viewer import picture
from abduce.orchestrator.viewer.picture import BEST, OPEN, PRUNED, SPECULATIVE, Picture
from abduce.serving.errors import UsageError
from abduce.serving.flow import Fork, Generate, Prompt
from abduce.serving.scripted import Scripted
from abduce.strategies import STRATEGIES
from abduce.strategies.base import Step
from abduce.strategies.policy import StepPolicy
from abduce.strategies.search import Search

NAMES = sorted(STRATEGIES)
POLICY = StepPolicy(prompt="plain", answer_kind="text")


def plain(value):
    return orjson.loads(orjson.dumps(value))


def whole(told, change):
    """What a page holds after a change: as its script takes it in."""
    for name in ("nodes", "calls", "texts", "resamplings", "notes", "stops"):
        told.setdefault(name, []).extend(change.get(name, ()))
    for i, *mark in change.get("marks", ()):
        told.setdefault("marks", {})[i] = mark
    for i, *link in change.get("links", ()):
        told.setdefault("links", {})[i] = link
    told.update({key: change[key] for key in ("run", "visits", "end", "t") if key in change})
    return told


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_told_with_the_reply_it_was_drawn_in(run_of, name):
    run = run_of(name)
    seen, told = search_view.load(run.trace), picture.load(run.trace)
    assert len(told.nodes) == len(seen.nodes) > 0
    claimed = set()
    for node in told.nodes:
        if name == "iterdrag" and node.call < 0:  # a line that was begun for the model
            continue
        sample = told.calls.rows[node.call]["samples"][node.sample]
        assert node.call >= 0 and node.seen.text.strip() in sample["text"]
        assert node.call not in claimed or (node.call, node.sample) not in claimed
        claimed.add((node.call, node.sample))
        assert told.calls.rows[node.call]["t"] <= node.t


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_put_together_again_from_what_calls_share(run_of, name):
    run = run_of(name)
    told = picture.load(run.trace)
    called = {tuple(row["path"]): row for row in read(run.trace) if row["event"] == "called"}
    for call in told.calls.rows:
        request = called[tuple(map(int, call["path"].split(".")))]["request"]
        if (prompt := request.get("prompt")) is None:  # of a memory
            continue
        written = told.nodes[call["node"]].text if call["node"] >= 0 else ""
        assert told.calls.texts[call["head"]] + written == prompt["prefix"]
        if call["messages"] >= 0:
            assert json.loads(told.calls.texts[call["messages"]]) == prompt["messages"]


@pytest.mark.parametrize("name", NAMES)
def test_changes_add_up_to_the_whole_however_often_they_are_asked_for(run_of, name):
    rows = sorted(read(run_of(name).trace), key=picture._when)
    once, often = Picture(), Picture()
    told = {}
    for i, row in enumerate(rows):
        once(row)
        often(row)
        if i % 3 == 0:
            whole(told, plain(often.changes()))
    whole(told, plain(often.changes()))
    assert often.changes() == {}
    everything = whole({}, plain(once.changes()))
    shared = [
        dict(call, samples=[without_use(s) for s in call.get("samples", ())], scores=0)
        for call in told["calls"]
    ]
    at_once = [
        dict(call, samples=[without_use(s) for s in call.get("samples", ())], scores=0)
        for call in everything["calls"]
    ]
    assert shared == at_once
    for key in everything.keys() - {"calls"}:
        assert told[key] == everything[key], key


def without_use(sample):
    return {key: value for key, value in sample.items() if key != "used"}


def test_the_best_path_leads_to_the_chosen_solution(run_of):
    run = run_of("a_star", k=3)
    told = picture.load(run.trace)
    path = [node for node, fate in zip(told.nodes, told.fates(), strict=True) if fate == BEST]
    assert path[-1].text == run.result["text"]
    assert [told.nodes.index(node) for node in path][:-1] == [node.parent for node in path][1:]


def test_what_was_drawn_for_nothing_is_speculative_once_the_search_is_over(run_of):
    rows = sorted(read(run_of("a_star", k=3).trace), key=picture._when)
    told = Picture()
    for row in rows[:-1]:
        told(row)
    assert SPECULATIVE not in told.fates()
    told(rows[-1])
    for node, fate in zip(told.nodes, told.fates(), strict=True):
        if fate == SPECULATIVE:
            assert not node.seen.terminal and not node.seen.children and not node.seen.pruned
    assert SPECULATIVE in told.fates()


def test_particles_without_offspring_are_pruned_and_so_is_what_is_below(run_of):
    told = picture.load(run_of("particle_gibbs").trace)
    fates = told.fates()
    assert {OPEN, BEST, PRUNED} <= set(fates)
    for node, fate in zip(told.nodes, fates, strict=True):
        if node.parent >= 0 and fates[node.parent] == PRUNED:
            assert fate in (PRUNED, BEST)


def test_scores_are_credited_to_the_calls_that_gave_them(run_of):
    told = picture.load(run_of("a_star", k=3).trace)
    rated = [call for call in told.calls.rows if call["kind"] == "Rate"]
    assert rated
    for call in rated:
        [number] = call["scores"]
        assert told.nodes[number].seen.score == pytest.approx(call["value"])


@dataclass(frozen=True)
class Race:
    """Two branches; the first that ends is kept, the other has drawn one step by then."""

    def solve(self, task, *, seed):
        search = Search(task, POLICY, None, seed)
        branches = (self.branch("slow"), self.branch("quick", "stuck"))
        [ended] = yield [Fork(branches, until=lambda done: True)]
        kept = [Step(text, last=True) for text in ended if isinstance(text, str)]
        leaves = yield from search.record(search.root, kept)
        return search.result(leaves[0])

    def branch(self, *names):
        text = ""
        for name in names:
            [reply] = yield [Generate(Prompt.user(name))]
            text += reply[0].text
        return text


def test_what_a_branch_drew_that_lost_its_race_is_speculative(store):
    wait = {"slow": 0.1, "quick": 0.0, "stuck": 30.0}
    model = Scripted(
        lambda request, seed: request.prompt.messages[0].content,
        latency_s=lambda request: wait[request.prompt.messages[0].content],
    )
    pipeline = build(strategy=Race(), model=model)
    assert pipeline.solve("who wins?", store=store).text == "slow"
    told = picture.load(store.open("last").trace)
    said = {call["samples"][0]["text"]: i for i, call in enumerate(told.calls.rows)}
    wasted = {i: wasted for i, _, _, wasted in told.changes()["links"]}
    assert (wasted[said["slow"]], wasted[said["quick"]]) == (False, True)
    assert "stuck" not in said  # what was cancelled has no reply to show


@pytest.mark.parametrize(
    ("name", "populations"), [("particle_filter", 1), ("entropic_filter", 1), ("particle_gibbs", 4)]
)
def test_each_population_has_a_line_of_its_own(run_of, name, populations):
    told = picture.load(run_of(name).trace)
    assert {row["population"] for row in told.resamplings} == set(range(populations))
    for row in told.resamplings:
        assert 0 < row["ess"] <= row["n"] + 1e-9 and 1 <= row["kept"] <= row["n"]


def test_chains_in_lockstep_are_told_apart(run_of):
    told = picture.load(run_of("parallel_tempering").trace)
    strategy_runs = {}
    for row in told.resamplings:
        strategy_runs.setdefault(row["population"], []).append(row)
    assert len(strategy_runs) > 4
    for rows in strategy_runs.values():
        assert [row["t"] for row in rows] == sorted(row["t"] for row in rows)
        assert len({row["n"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("budget", "limits"),
    [("900 tokens, 60 s", {"tokens": 900, "seconds": 60}), ({"calls": 9}, {"calls": 9}), (None, {})],
)
def test_the_limits_are_those_of_the_budget(run_of, budget, limits):
    assert picture.load(run_of("best_of_n", n=2, budget=budget).trace).run["limits"] == limits


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "noted", "path": [0, 0], "note": "nodes", "data": {"nodes": [{"id": 1}]}, "t": 0}',
        '{"event": "noted", "path": [0, 0], "note": "resample", "data": {}, "t": 0}',
        '{"event": "called", "path": [0, 0], "t": "soon"}',
        '{"event": "called", "call": "Rate", "path": [0, 0], "request": [], "t": 0, "seconds": 0}',
        '{"event": "run_started", "path": []}',
        "no event",
    ],
)
def test_a_damaged_trace_is_refused_with_file_and_line(run_of, tmp_path, line):
    file = tmp_path / "trace.jsonl"
    lines = run_of("best_of_n", n=2).trace.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, *lines[1:]]))
    with pytest.raises(UsageError, match=r"trace\.jsonl:2 is not a trace event"):
        picture.load(file)


def test_a_file_sorted_by_path_is_read_in_the_order_of_time(run_of):
    told = picture.load(run_of("parallel_tempering").trace)
    ends = [call["t"] + call["s"] for call in told.calls.rows]
    assert ends == sorted(ends)
    assert [node.t for node in told.nodes] == sorted(node.t for node in told.nodes)
    assert [row["t"] for row in told.resamplings] == sorted(map(itemgetter("t"), told.resamplings))


def test_each_visit_of_a_node_has_a_tree_of_its_own(several):
    told = picture.load(several.trace)
    assert [(visit["node"], visit["visit"]) for visit in told.visits] == [
        ("solve", 0),
        ("verify", 1),
        ("revise", 2),
    ]
    assert all(visit["t"] <= visit["end"] for visit in told.visits)
    assert told.visits[0]["update"]["answer"]
    assert {node.visit for node in told.nodes} == {0, 2}
    for node in told.nodes:
        assert node.call >= 0 and told.calls.rows[node.call]["visit"] == node.visit
        assert node.parent < 0 or told.nodes[node.parent].visit == node.visit
    best = {
        v: [n for n, f in zip(told.nodes, told.fates(), strict=True) if f == BEST and n.visit == v]
        for v in (0, 2)
    }
    assert best[0][-1].text == told.visits[0]["update"]["text"]
    assert best[2][-1].text == several.result["text"]
    assert told.run["limits"] == {"tokens": 20000}
    assert {row["visit"] for row in told.resamplings} == {0, 2}

"""The trace: equal runs leave equal files, whatever was concurrent and however they ended."""

import asyncio
import random
from itertools import pairwise
from math import inf, nan
from typing import get_args

import pytest
from flows import Echo, garden

from abduce.orchestrator.codec import dumps
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import (
    LAST,
    Called,
    Event,
    Exhausted,
    JsonLines,
    NodeEnded,
    NodeStarted,
    Noted,
    RunEnded,
    RunStarted,
    canonical,
    comparable,
    read,
    row,
)
from abduce.serving.errors import UsageError
from abduce.serving.flow import CallTool, Completion, Failure, Generate, Prompt, Recall, Usage
from abduce.serving.synthetic import Synthetic

STRATEGIES = ["particle_filter", "a_star", "mcts", "dvts", "beam", "best_of_n", "self_consistency"]


class Restless(Synthetic):
    """An exact model whose replies come in random order."""

    def __init__(self, shuffle: int = 0) -> None:
        super().__init__(seed=1, alphabet="abcdefgh", depth=4)
        self.random = random.Random(shuffle)
        self.delay_s = 0.003 if shuffle else 0.0

    async def generate(self, request, *, seed):
        await asyncio.sleep(self.random.random() * self.delay_s)
        return await super().generate(request, seed=seed)

    async def rate(self, request):
        await asyncio.sleep(self.random.random() * self.delay_s)
        return await super().rate(request)


async def trace(folder, strategy, *, seed=7, shuffle=0, limit=None, budget=None):
    pipeline = build(
        strategy=strategy,
        model=Restless(shuffle),
        policy={"preset": "cot", "answer_kind": "text", "sampling": {"max_tokens": 12}},
        reward=None if strategy == "self_consistency" else "rate",
        concurrency=limit,
        budget=budget,
    )
    runs = Runs(folder)
    await pipeline.asolve("Which?", seed=seed, store=runs)
    return comparable(read(runs.open("last").trace))


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_same_seed_same_trace_whatever_the_order_of_replies(tmp_path, strategy):
    expected = await trace(tmp_path, strategy)
    for shuffle, limit in enumerate([None, 1, 2, 7], 1):
        assert await trace(tmp_path, strategy, shuffle=shuffle, limit=limit) == expected
    assert await trace(tmp_path, strategy, seed=8) != expected


@pytest.mark.parametrize("strategy", ["particle_filter", "a_star", "mcts", "beam"])
async def test_same_seed_same_trace_up_to_the_end_of_the_budget(tmp_path, strategy):
    budget = {"tokens": 260}
    expected = await trace(tmp_path, strategy, budget=budget)
    assert '"exhausted"' in expected
    for shuffle, limit in enumerate([None, 2, 7], 1):
        assert await trace(tmp_path, strategy, shuffle=shuffle, limit=limit, budget=budget) == expected


def test_a_run_is_told_from_another_by_what_happened_not_by_when(tmp_path):
    def note(data, t):
        return row(Noted((1, 0), "scores", data, t))

    assert comparable([note({"a": 1}, 0.5)]) == comparable([note({"a": 1}, 9.5)])
    assert comparable([note({"a": 1}, 0.5)]) != comparable([note({"a": 2}, 0.5)])


EVENTS = [
    RunStarted("run", "ä?", 3, {"budget": {"tokens": 9}}),
    NodeStarted((0,), "solve", "solve", 0.25),
    Called((0, 1), Generate(Prompt.user("?\n")), (Completion("a", (1,), (-inf,)),), Usage(calls=1), 0.5, 1.5),
    Called((0, 2), CallTool("t", {1: "\ud800", "n": 1 << 70}), Failure("tool", "no"), Usage(), 1.0, 0.5, 2),
    Called((0, 3), Recall("q"), (), Usage(), 1.0, 0.5, replayed=True),
    Noted((0, 4), "scores", {"best": nan, "of": frozenset({2, 1})}, 2.0),
    Exhausted((0, 5), "tokens", 2.5),
    NodeEnded((0, LAST), "solve", "solve", {"answer": "a"}, 3.0),
    RunEnded("a", True, Usage(calls=1), 3.5),
]


def test_the_file_holds_the_rows_of_all_kinds_of_events(tmp_path):
    out = JsonLines(tmp_path / "trace.jsonl")
    for event in EVENTS:
        out(event)
    out.close()
    lines = (tmp_path / "trace.jsonl").read_bytes().splitlines()
    assert lines == [dumps(row(event)) for event in EVENTS]
    assert {type(event) for event in EVENTS} == set(get_args(Event))


async def test_the_file_is_sorted_by_path_once_it_is_closed(tmp_path):
    out = JsonLines(tmp_path / "trace.jsonl")
    await Driver(Services({"policy": Echo(delay_s=0.003)}), observers=[out]).run(garden(6, 5))
    out.flush()
    arrived = read(tmp_path / "trace.jsonl")
    assert arrived != canonical(arrived)
    out.close()
    out.close()
    kept = read(tmp_path / "trace.jsonl")
    assert kept == canonical(arrived)
    assert all(a["path"] <= b["path"] for a, b in pairwise(kept))
    assert [file.name for file in tmp_path.iterdir()] == ["trace.jsonl"]


async def test_any_beginning_of_a_file_can_be_read(tmp_path):
    file = tmp_path / "trace.jsonl"
    out = JsonLines(file)
    await Driver(Services({"policy": Echo(lambda request, seed: "ä⟨\n⟩")}), observers=[out]).run(garden(2, 2))
    out.close()
    whole, content = read(file), file.read_bytes()
    for end in range(0, len(content), 7):
        file.write_bytes(content[:end])
        events = read(file)
        assert events == whole[: len(events)]
        assert len(events) >= content[:end].count(b"\n")


@pytest.mark.parametrize("line", ["name: recipe", "12", '{"path": []}', '{"event": "noted"}', "null"])
def test_a_file_that_is_no_trace_is_named_with_the_line(tmp_path, line):
    file = tmp_path / "trace.jsonl"
    file.write_text('{"event": "noted", "path": [0]}\n' + line + "\n")
    with pytest.raises(UsageError, match=r"trace\.jsonl:2 is not a trace event"):
        read(file)


def test_a_trace_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"trace\.jsonl.*No such file"):
        read(tmp_path / "trace.jsonl")

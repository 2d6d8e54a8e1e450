"""Laws of the batcher on a model that needs no torch: its log-probs are a function of the tokens held."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from abduce.serving.errors import EngineError
from abduce.serving.flow import Sampling
from abduce.serving.transformers.batching import Batcher
from abduce.serving.transformers.decoding import Feed, Turn, sample, score

SIZE = 11


def law(ids):
    """log p of the next token, a function of the whole text."""
    x = np.random.default_rng([len(ids), *ids]).normal(size=SIZE)
    return x - np.log(np.exp(x).sum())


class Table:
    """`Memory` that keeps the tokens themselves, so that a wrong slot, copy or start shows at once."""

    def __init__(self, n_slots):
        self.held = [[] for _ in range(n_slots)]
        self.rounds = []
        self.n_fed = 0
        self.gate = None

    def forward(self, rows):
        if self.gate:
            self.gate.wait(5)
        assert len({row.slot for row in rows}) == len(rows)
        self.rounds.append(len(rows))
        replies = []
        for row in rows:
            assert row.tokens
            assert len(self.held[row.slot]) >= row.start
            self.n_fed += len(row.tokens)
            self.held[row.slot] = [*self.held[row.slot][: row.start], *row.tokens]
            ids = self.held[row.slot]
            if row.scored:
                first = len(ids) - len(row.scored) + 1
                assert row.start < first  # the first scored token needs the one before it
                assert (*ids[first:],) == row.scored[:-1]
                replies.append(np.array([law(ids[: first + i])[x] for i, x in enumerate(row.scored)]))
            else:
                replies.append(law(ids))
        return replies

    def copy(self, source, target, length):
        assert len(self.held[source]) >= length
        self.held[target] = self.held[source][:length]


def fan(prompt, branches, depth):
    """Feeds every text of `depth` tokens out of `branches`, and checks each reply against the law."""
    texts = [prompt]
    feeds = [Feed(None, prompt)]
    for _ in range(depth):
        told = yield feeds
        for text, log_p in zip(texts, told, strict=True):
            assert log_p == pytest.approx(law(text), abs=1e-4)
        feeds = [Feed(i, (b,)) for i in range(len(texts)) for b in branches]
        texts = [(*text, b) for text in texts for b in branches]
    return len(texts)


def cross(prompt, n):
    """Rows that swap parents, all of them copies of the last, then of the first."""
    texts = [prompt]
    told = yield [Feed(None, prompt)]
    for step in range(6):
        parents = (
            [(len(texts) - 1) * (step % 2)] * n if step % 3 else [(i + step) % len(texts) for i in range(n)]
        )
        texts = [texts[p] + (i,) for i, p in enumerate(parents)]
        told = yield [Feed(p, (i,)) for i, p in enumerate(parents)]
        for text, log_p in zip(texts, told, strict=True):
            assert log_p == pytest.approx(law(text), abs=1e-4)
    return len(told)


@pytest.fixture
def table():
    return Table(9)


@pytest.fixture
def batcher(table):
    batcher = Batcher(table, 9)
    yield batcher
    batcher.close()


def test_rows_go_on_with_their_parents_however_they_branch(batcher):
    assert batcher.submit(fan((1, 2, 3), (4, 5), 3), 8).result(5).value == 8
    assert batcher.submit(cross((1, 2, 9), 5), 5).result(5).value == 5


def test_programs_that_run_at_once_do_not_disturb_each_other(batcher, table):
    jobs = [batcher.submit(cross((1, 2, seed), 3), 3) for seed in range(12)]
    jobs += [batcher.submit(fan((1, seed, 2), (4, 5), 2), 4) for seed in range(12)]
    assert [job.result(5).value for job in jobs] == [3] * 12 + [4] * 12
    assert max(table.rounds) > 5  # they shared rounds


def test_a_prefix_is_found_again_and_no_more_than_it(batcher, table):
    first = batcher.submit(score((1, 2, 3, 4), (5, 6)), 1).result(5)
    assert first.n_cached == 0
    n_fed = table.n_fed
    again = batcher.submit(score((1, 2, 3, 4), (7, 8)), 1).result(5)
    assert again.n_cached == 3  # the last prompt token is fed again: it tells log p of the first scored one
    assert table.n_fed - n_fed == 2  # it and 7; nothing follows 8
    assert again.value == pytest.approx([law((1, 2, 3, 4))[7], law((1, 2, 3, 4, 7))[8]])
    assert batcher.submit(score((1, 9), (2,)), 1).result(5).n_cached == 1


def test_without_reuse_every_prompt_is_read_anew(table):
    batcher = Batcher(table, 9, reuse=False)
    for _ in range(2):
        assert batcher.submit(score((1, 2, 3), (4,)), 1).result(5).n_cached == 0
    batcher.close()


def test_programs_wait_for_room_in_order(table):
    batcher = Batcher(table, 9)
    ended = []
    jobs = [batcher.submit(cross((seed,), 6), 6) for seed in range(5)]
    for i, job in enumerate(jobs):
        job.add_done_callback(lambda _, i=i: ended.append(i))
    for job in jobs:
        job.result(5)
    assert ended == sorted(ended)
    with pytest.raises(EngineError, match="slots=10"):
        batcher.submit(cross((1,), 10), 10)
    batcher.close()


def test_a_program_that_fails_fails_alone(batcher):
    def broken():
        yield [Feed(None, (1, 2))]
        raise EngineError("no more")

    bad, good = batcher.submit(broken(), 1), batcher.submit(cross((1, 2), 3), 3)
    with pytest.raises(EngineError, match="no more"):
        bad.result(5)
    assert good.result(5).value == 3


def test_a_model_that_fails_fails_its_round_and_forgets(table):
    batcher = Batcher(table, 9)
    batcher.submit(score((1, 2, 3), (4,)), 1).result(5)
    forward, table.forward = table.forward, lambda rows: 1 / 0
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        batcher.submit(score((1, 2, 3), (4,)), 1).result(5)
    table.forward = forward
    assert batcher.submit(score((1, 2, 3), (4,)), 1).result(5).n_cached == 0
    batcher.close()


def test_a_cancelled_program_gives_its_slots_back(table):
    batcher = Batcher(table, 9)
    table.gate = threading.Event()

    def endless():
        yield [Feed(None, (1, 2))]
        while True:
            yield [Feed(0, (3,))]

    job = batcher.submit(endless(), 9)
    waiting = batcher.submit(cross((5,), 9), 9)
    assert job.cancel()
    table.gate.set()
    assert waiting.result(5).value == 9
    with pytest.raises(CancelledError):
        job.result(5)
    batcher.close()


def test_closing_fails_what_is_in_flight(table):
    table.gate = threading.Event()
    batcher = Batcher(table, 9)
    job = batcher.submit(cross((5,), 9), 9)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    table.gate.set()
    closer.join(5)
    assert not closer.is_alive()
    if job.exception(5) is not None:
        assert isinstance(job.exception(), EngineError)
    with pytest.raises(EngineError, match="closed"):
        batcher.submit(cross((5,), 9), 9)


def test_samples_do_not_depend_on_what_runs_beside_them(batcher):
    turn = Turn((1, 2), tuple(bytes([97 + i]) for i in range(SIZE)), (10,), Sampling(max_tokens=8))
    alone = batcher.submit(sample(turn, [1, 2, 3]), 3).result(5).value
    jobs = [batcher.submit(sample(turn, [seed, seed + 1]), 2) for seed in (1, 2)]
    beside = [job.result(5).value for job in jobs]
    assert beside == [alone[:2], alone[1:]]

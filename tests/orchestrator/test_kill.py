"""Killed at any moment, a run ends as if it had never been, and no call whose reply was stored is made again.

In a folder and in PostgreSQL; over a recipe that routes, solves, verifies and revises.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import killable
import pytest

from abduce.orchestrator.journal import Row
from abduce.orchestrator.runs import Run
from abduce.orchestrator.store.folder import FolderStore
from abduce.orchestrator.store.postgres import PostgresStore
from abduce.orchestrator.trace import comparable, read

KILLS = 20
LATENCY_S = 0.01

ENGINE = '''\
"""An engine of someone else: the synthetic one, that takes its time and writes down each call it served."""

import asyncio
import os
from zlib import crc32

from abduce.orchestrator.codec import dumps
from abduce.serving.synthetic import Synthetic


class Witness(Synthetic):
    name = "witness"

    def __init__(self, *, file: str, latency_s: float, alphabet: str, depth: int) -> None:
        super().__init__(alphabet=alphabet, depth=depth)
        self.file, self.latency_s = file, latency_s

    async def generate(self, request, *, seed):
        return await self.serve(request, super().generate(request, seed=seed))

    async def logprob(self, request):
        return await self.serve(request, super().logprob(request))

    async def rate(self, request):
        return await self.serve(request, super().rate(request))

    async def serve(self, request, reply):
        fingerprint = crc32(dumps(request))  # what the journal knows the request by
        await asyncio.sleep(self.latency_s * (0.5 + fingerprint % 101 / 100))
        out = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(out, b"%d\\n" % fingerprint)
        os.close(out)
        return await reply
'''
RECIPE = f"""\
name: killed
model: {{engine: witness, file: served, latency_s: {LATENCY_S}, alphabet: abcdefgh, depth: 5}}
reward: rate
policy: {{preset: cot, answer_kind: text}}
budget: {{tokens: 100000}}
solvers:
  wide: {{strategy: {{name: particle_filter, particles: 4}}}}
  again: {{strategy: {{name: best_of_n, n: 3}}}}
nodes:
  route: {{route: {{by: model, ways: {{short: {{about: one word}}, long: {{about: a proof}}}}}}}}
  solve: {{solve: wide}}
  think: {{solve: again}}
  verify: {{verify: {{by: reward, at_least: 1}}}}
  revise: {{revise: again}}
edges:
  - {{from: route, to: think, when: {{route: short}}}}
  - route -> solve
  - solve -> verify
  - think -> verify
  - {{from: verify, to: revise, when: {{verified: false}}, at_most: 2}}
  - revise -> verify
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with the engine above, installed as a third party's."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "witness.py").write_text(ENGINE)
    about = folder / "witness-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: witness\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[abduce.engines]\nwitness = witness:Witness\n")
    return folder


class Killed:
    """A run in a folder of its own, worked on by processes that get killed."""

    def __init__(self, folder: Path, packages: Path, database: str | None) -> None:
        folder.mkdir()
        (folder / "r.yaml").write_text(RECIPE)
        self.folder, self.packages, self.database = folder, packages, database
        self.traces = folder / "state" / "runs"
        self.store = FolderStore(self.traces) if database is None else PostgresStore(self.traces, database)
        self.environment = {**os.environ, "ABDUCE_HOME": "state", "ABDUCE_STORE": database or ""}

    @property
    def run(self) -> Run:
        """The run, once it is there."""
        [folder] = self.traces.iterdir()
        return Run(self.store, folder.name)

    def undisturbed(self) -> None:
        """The whole run, by the command itself."""
        path = os.pathsep.join(filter(None, (str(self.packages), os.environ.get("PYTHONPATH"))))
        subprocess.run(
            [sys.executable, "-m", "abduce", "solve", "Which?", "--recipe", "r.yaml", "--no-trace"],
            cwd=self.folder,
            env={**self.environment, "PYTHONPATH": path},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )

    def solve(self) -> BaseProcess:
        """Start the run; returns once it has begun."""
        process = self._start("solve", "Which?", "--recipe", "r.yaml")
        while not list(self.traces.glob("*/trace.jsonl")) and process.is_alive():
            time.sleep(0.004)
        return process

    def resume(self) -> BaseProcess:
        """Go on with the run; returns once it has begun."""
        was = self.run.trace.stat().st_mtime_ns
        process = self._start("resume", self.run.id)
        while self.run.trace.stat().st_mtime_ns == was and process.is_alive():
            time.sleep(0.004)
        return process

    def end(self, process: BaseProcess) -> None:
        """Wait for a process that is to end well."""
        process.join(60)
        assert process.exitcode == 0, (self.folder / "told").read_text()

    def kill(self, process: BaseProcess, n: int, after_s: float) -> None:
        """Kill -9, a moment after the n-th call was answered."""
        while self.served().total() < n and process.is_alive():
            time.sleep(0.004)
        time.sleep(after_s)
        process.kill()
        process.join(60)

    def served(self) -> Counter[int]:
        """The calls that the engine answered, in all processes."""
        log = self.folder / "served"
        return Counter(map(int, log.read_bytes().split())) if log.exists() else Counter()

    def stored(self) -> list[Row]:
        """What the journal holds now. Of a file, read from a copy: the next process must find what the last
        one left."""
        if self.database is not None:
            return sorted(self.store.replies(self.run.id)[1])
        copy = self.folder / "copy"
        shutil.copytree(self.traces, copy)
        rows = FolderStore(copy).replies(self.run.id)[1]
        shutil.rmtree(copy)
        return sorted(rows)

    def left(self) -> tuple[object, ...]:
        """What a run leaves, times aside."""
        rows = [row[:4] for row in self.stored()]
        return rows, self.store.result(self.run.id), comparable(read(self.run.trace))

    def _start(self, *words: str) -> BaseProcess:
        return killable.start([*words, "--no-trace"], self.folder, self.environment, self.packages)


@pytest.fixture(params=["folder", "postgres"])
def killed(request, tmp_path, packages):
    """Makes runs, each in a folder of its own, all in one store."""
    url = request.getfixturevalue("database") if request.param == "postgres" else None
    number = count()
    return lambda: Killed(tmp_path / str(next(number)), packages, url)


def test_killed_at_any_moment_a_run_ends_the_same_and_repeats_no_call(killed):
    whole = killed()
    whole.undisturbed()
    expected, replies = whole.left(), whole.stored()
    calls = Counter(row[1] for row in replies)  # the same request may stand at several places of a flow
    assert whole.served() == calls
    moments = random.Random(20)

    def disturb(i: int) -> list[float]:
        """Kill once, every fifth time twice, and go on; how much was stored at each kill."""
        run, shares = killed(), []
        process, safe, before = run.solve(), Counter[int](), Counter[int]()
        for k in sorted(moments.sample(range(len(replies)), 2 if i % 5 == 0 else 1)):
            run.kill(process, k, moments.random() * LATENCY_S)
            assert not (run.served() - before) - (calls - safe)
            safe, before = Counter(row[1] for row in run.stored()), run.served()
            shares.append(safe.total() / len(replies))
            process = run.resume()
        run.end(process)
        assert not (run.served() - before) - (calls - safe)
        assert run.left() == expected
        return shares

    with ThreadPoolExecutor(3) as pool:
        shares = [share for shares in pool.map(disturb, range(KILLS)) for share in shares]
    assert sum(0 < share < 1 for share in shares) >= KILLS // 2  # most kills hit in the middle

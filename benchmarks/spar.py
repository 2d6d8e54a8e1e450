"""What rewriting in a tree gains over drawing anew, and what a noisy judge does to it.

    python benchmarks/spar.py ifeval FILE [--prompts 100] [--rows FILE] [--pairs FOLDER]
    python benchmarks/spar.py noise

`ifeval`: prompts of IFEval's `input_data.jsonl`, judged by their own checks, on the small model: greedy, SPaR
from the greedy answer, and independent samples, of which best-of-N takes as many as the search wrote, or as
its tokens pay for. Only prompts that few words can meet are taken, since the small model is slow and loses
its way. `--pairs` also writes training records of the searches. `noise` needs no model: every rewrite is bad,
and the judge is right 70 % of the time.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import command, keeps_rows
from intervals import paired
from printing import met
from rows import Row, Rows, json_lines
from solving import solved

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.services import Services
from abduce.serving.embedded import Embedded
from abduce.serving.flow import Flow, Sampling
from abduce.serving.seeds import derive
from abduce.strategies.base import Check, Policy, State, Task
from abduce.strategies.policy import policy
from abduce.strategies.rewards import ifeval
from abduce.strategies.spar import SPaR
from abduce.strategies.spar.records import Played, records
from abduce.strategies.spar.similarity import similarity
from tests.strategies.spar.noise import error, expected, false_accepts

BRANCH, KEEP, DEPTH = 3, 1, 2  # 6 rewrites at most
POOL = 20  # the most; drawn are as many as the search's tokens, those of prompts included, pay for
FEW = 8


def main() -> int:
    """Run what is asked for."""
    parser = command(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("ifeval")
    run.add_argument("file", type=Path)
    run.add_argument("--prompts", type=int, default=100)
    run.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    run.add_argument("--slots", type=int, default=12, help="of the engine: how many it writes at a time")
    run.add_argument("--pairs", type=Path, metavar="FOLDER", help="for training records")
    keeps_rows(run, "build/spar.jsonl")
    verbs.add_parser("noise")
    options = parser.parse_args()
    if options.verb == "noise":
        noise()
        return 0
    rows = asyncio.run(measure(options))
    report(rows)
    if options.pairs:
        write_pairs(rows, options.pairs)
    return 0


# ---------------------------------------------------------------- IFEval on the small model


def tasks(file: Path, n: int) -> list[tuple[int, Task]]:
    """The first n prompts that few words can meet."""
    found = []
    for row in json_lines(file):
        given = zip(row["instruction_id_list"], row["kwargs"], strict=True)
        checks = tuple(Check(id, {k: v for k, v in kw.items() if v is not None}) for id, kw in given)
        if all(map(short, checks)):
            found.append((row["key"], Task(row["prompt"], checks=checks)))
    return found[:n]


_MOST = {
    "num_words": 50, "num_sentences": 4, "num_paragraphs": 2, "num_sections": 3, "num_bullets": 4,
    "num_placeholders": 4, "let_frequency": 12, "num_highlights": 3, "capital_frequency": 8,
}  # fmt: skip


def short(check: Check) -> bool:
    """Whether few words can meet a check, as far as its numbers tell."""
    if check.id in ("combination:repeat_prompt", "combination:two_responses"):
        return False
    if any(check.kwargs.get(key) == "less than" for key in ("relation", "let_relation")):
        return True
    return all(check.kwargs.get(key, 0) <= most for key, most in _MOST.items())


async def measure(options: argparse.Namespace) -> list[Row]:
    """Two prompts at a time."""
    engine = Embedded(slots=options.slots, context=1536)
    began = time.monotonic()

    async def asked(each: tuple[int, Task]) -> Row:
        key, task = each
        row = await one(engine, key, task, options.max_tokens)
        told = {name: row[name] for name in ("before", "after", "written")}
        print(key, told, [s["met"] for s in row["pool"]], f"{time.monotonic() - began:.0f} s", flush=True)
        return row

    rows: Rows = options.rows
    asked_for = tasks(options.file, options.prompts)
    found = await rows.each(asked_for, lambda each: [each[0], options.max_tokens], asked, at_once=2)
    await engine.close()
    return found


async def one(engine: Embedded, seed: int, task: Task, most: int) -> Row:
    """A prompt: greedy and the search from it; independent samples."""
    actor = policy({"preset": "plain", "sampling": {"temperature": 0.0, "max_tokens": most}})
    sampler = policy({"preset": "plain", "sampling": {"temperature": 0.7, "max_tokens": most}})
    spar = SPaR(
        policy=actor, judge="checks", branch=BRANCH, select_branch=KEEP, max_depth=DEPTH, attempts=1,
        reflect=False, refine_sampling=Sampling(temperature=0.7, max_tokens=most),
    )  # fmt: skip
    result, spent = await solved(spar, task, Services({"policy": engine}), seed=seed)
    facts = result.diagnostics
    draft = facts["versions"][0]
    written = 1 + facts["judged"]
    drawn, asked = await samples(engine, seed, sampler, task, spent.tokens, max(FEW, written))
    return {
        "question": task.question,
        "checks": [[check.id, dict(check.kwargs)] for check in task.checks],
        "before": draft["valid"],
        "before_loose": loosely(task, draft["answer"]),
        "after": facts["valid"],
        "after_loose": loosely(task, result.text),
        "written": written,
        "tokens": spent.tokens,
        "output_tokens": spent.output_tokens,
        "similarity": facts["similarity"] if facts["winner"] not in (None, draft["node"]) else None,
        "stop": facts["stop"],
        "versions": facts["versions"],
        "root": facts["root"],
        "winner": facts["winner"],
        "pool": [
            {
                "met": all(ifeval.ok(check.id, check.kwargs, state.text) for check in task.checks),
                "loose": loosely(task, state.text),
                "tokens": state.n_tokens,
            }
            for state in drawn
        ],
        "pool_input": asked,
        "pool_similarity": fmean(similarity(drawn[0].text, state.text) for state in drawn[1:]),
    }


async def samples(
    engine: Embedded, seed: int, sampler: Policy, task: Task, paid: int, least: int
) -> tuple[list[State], int]:
    """Independent answers, `least` of them and on until `paid` tokens are used up or there are `POOL`; the
    tokens of the prompt, which count once."""
    drawn: list[State] = []
    asked = 0
    while len(drawn) < least or (len(drawn) < POOL and asked + sum(s.n_tokens for s in drawn) < paid):
        n = least - len(drawn) if len(drawn) < least else min(4, POOL - len(drawn))
        at = derive(seed, "pool", len(drawn))
        driver = Driver(Services({"policy": engine}), seed=at)

        def pool(n: int = n, at: int = at) -> Flow[list[State]]:
            more = yield from sampler.complete(State(task), n, seed=at)
            return [state for state in more if isinstance(state, State)]

        drawn += await driver.run(pool())
        asked = driver.ledger.usage.input_tokens
    return drawn, asked


def loosely(task: Task, text: str) -> bool:
    """Whether all checks are met, read loosely."""
    return all(ifeval.ok(check.id, check.kwargs, text, loose=True) for check in task.checks)


# ---------------------------------------------------------------- figures


def at_equal_count(row: Row, key: str = "met") -> bool:
    """Whether one of as many samples as the search wrote answers meets all checks."""
    return any(sample[key] for sample in row["pool"][: row["written"]])


def at_equal_tokens(row: Row, *, prompts: bool) -> bool:
    """The same for as many samples as the search's tokens pay for, with or without those of prompts."""
    left = row["tokens"] - row["pool_input"] if prompts else row["output_tokens"]
    for i, sample in enumerate(row["pool"]):
        left -= sample["tokens"]
        if left < 0 and i:
            return False
        if sample["met"]:
            return True
    return False


def spare(row: Row) -> int:
    """The search's tokens, those of prompts included, that the whole pool leaves over."""
    spent: int = row["tokens"] - row["pool_input"] - sum(sample["tokens"] for sample in row["pool"])
    return spent


def report(rows: Sequence[Row]) -> None:
    """Shares with Wilson intervals, and paired differences with bootstrap intervals."""
    n = len(rows)
    print(f"{n} prompts, search b = {BRANCH}, s = {KEEP}, D = {DEPTH}, pools of {FEW} to {POOL}, small model")
    ways: dict[str, Callable[[Row], bool]] = {
        "greedy (before)": lambda row: row["before"],
        "SPaR (after)": lambda row: row["after"],
        "one sample": lambda row: row["pool"][0]["met"],
        "best of N, equal count of answers": at_equal_count,
        "best of N, equal output tokens": lambda row: at_equal_tokens(row, prompts=False),
        "best of N, equal tokens with prompts": lambda row: at_equal_tokens(row, prompts=True),
        f"best of {FEW}": lambda row: any(sample["met"] for sample in row["pool"][:FEW]),
        "greedy, loose": lambda row: row["before_loose"],
        "SPaR, loose": lambda row: row["after_loose"] or row["after"],
    }
    for name, way in ways.items():
        n_met = sum(map(way, rows))
        low, high = wilson(n_met, n)
        print(f"{name:38} {n_met / n:.3f}  {low:.3f} to {high:.3f}")
    short_of = sum(spare(row) > 0 for row in rows)
    print(f"in {short_of} of {n} prompts the search's tokens pay for more samples than the pool has")
    after = ways["SPaR (after)"]
    for name in list(ways)[:6]:
        if name != "SPaR (after)":
            gain, low, high = paired(list(map(after, rows)), list(map(ways[name], rows)))
            print(f"SPaR minus {name:38} {gain:+.3f}  {low:+.3f} to {high:+.3f}")
    failing = [row for row in rows if not row["before"]]
    mended = [row for row in failing if row["after"]]
    print(f"of {len(failing)} failing drafts {len(mended)} were mended; answers written per prompt "
          f"{fmean(row['written'] for row in rows):.2f}, tokens {fmean(row['tokens'] for row in rows):.0f}, "
          f"output {fmean(row['output_tokens'] for row in rows):.0f}")  # fmt: skip
    alike = [row["similarity"] for row in mended if row["similarity"] is not None]
    if alike:
        apart = [row["pool_similarity"] for row in rows]
        print(f"similarity draft to winner {fmean(alike):.3f} (n = {len(alike)}), independent samples "
              f"{fmean(apart):.3f}, of the same prompts "
              f"{fmean(row['pool_similarity'] for row in mended):.3f}")  # fmt: skip


def write_pairs(rows: Sequence[Row], folder: Path) -> None:
    """Records of the searches of a file."""
    facts = [{**row, "judge": "checks"} for row in rows]
    played = [Played(task=Task(row["question"]), facts=row, id=str(row["run"][0])) for row in facts]
    made = records(played)
    made.write(folder)
    print(f"{len(made.dpo)} pairs, {len(made.refiner_sft)} refinements in {folder}")


# ---------------------------------------------------------------- noise


def noise() -> None:
    """False accepts among m bad rewrites, against 1 - (1 - e)^m."""
    p, runs = 0.7, 2000
    print(f"a judge right {p:.0%} of the time, 5 votes: e = {error(5, p):.3f}; {runs} searches each")
    for m, shape in ((3, (3, 2, 1)), (15, (3, 2, 3))):
        for confirm in (0, 5, 15):
            branch, keep, depth = shape
            found = false_accepts(
                p, runs, branch=branch, select_branch=keep, max_depth=depth, confirm_votes=confirm, rounds=1
            )
            low, high = wilson(round(found * runs), runs)
            wanted = expected(p, m, confirm_votes=confirm)
            told = met(abs(found - wanted) < 4 * (wanted * (1 - wanted) / runs) ** 0.5)
            print(f"{m:2} rewrites, {confirm:2} confirming votes: {found:.3f} ({low:.3f} to {high:.3f}), "
                  f"formula {wanted:.3f}: {told}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

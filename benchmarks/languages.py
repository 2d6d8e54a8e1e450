"""What do a greedy sample in the pool, selectors of open answers, and votes by length and hedging bring?

    python benchmarks/languages.py votes
    python benchmarks/languages.py products [--problems 60] [--rows FILE]
    python benchmarks/languages.py mgsm FOLDER [--problems 20] [--model ENGINE] [--rows FILE]
    python benchmarks/languages.py open FILE [--prompts 20] [--model ENGINE] [--rows FILE]

`votes` needs no model: a synthetic pool with known signals. `products` asks for products in digits, `mgsm`
for the word problems of `mgsm_<language>.tsv`: one greedy sample and five at each temperature, of which the
pools are put together. `open` takes prompts of IFEval's `input_data.jsonl` and measures by their checks what
CHOPS, X-MBR and MBR by likeness pick from the same pool, judged by the model itself. The model is the small
one, or an engine as recipes write it: --model '{engine: sglang, url: "http://127.0.0.1:30000"}'.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import command, keeps_rows
from printing import met, table_head, table_row
from rows import Row, Rows, json_lines
from solving import solved
from spar import tasks

from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.services import Services
from abduce.serving import engine as abduce_engine
from abduce.serving.base import Engine
from abduce.serving.flow import Sampling
from abduce.serving.seeds import derive
from abduce.strategies.base import Task
from abduce.strategies.chops import CHOPS
from abduce.strategies.hedged import Hedged, spread
from abduce.strategies.policy import POLICIES
from abduce.strategies.rewards import ifeval
from abduce.strategies.voting import poll
from abduce.strategies.x_mbr import XMBR
from tests.strategies.vote_pools import ORDER, measured, pools

N = 5
SMALL = "{engine: embedded, slots: 12, context: 1536}"
ARMS = {"0.7": (0.7, 0.0), "1.0": (1.0, 0.0), "1.3": (1.3, 0.0), "1.3 min-p": (1.3, 0.1)}
"""Temperature and min-p of the samples."""


def main() -> int:
    """Run what is asked for."""
    parser = command(__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("votes").add_argument("--questions", type=int, default=20_000)
    for name in ("products", "mgsm"):
        run = verbs.add_parser(name)
        if name == "mgsm":
            run.add_argument("folder", type=Path)
        run.add_argument("--problems", type=int, default=20 if name == "mgsm" else 60)
    run = verbs.add_parser("open")
    run.add_argument("file", type=Path)
    run.add_argument("--prompts", type=int, default=20)
    for name in ("products", "mgsm", "open"):
        verbs.choices[name].add_argument("--model", default=SMALL)
        keeps_rows(verbs.choices[name], "build/languages.jsonl")
    options = parser.parse_args()
    if options.verb == "votes":
        votes(options.questions)
    else:
        rows = asyncio.run(measure(options))
        (report_open if options.verb == "open" else report_pools)(rows)
    return 0


# ---------------------------------------------------------------- votes on a synthetic pool


def votes(questions: int) -> None:
    """The specification's table beside ours."""
    print(f"{questions} questions, N = 8, seed 0; in brackets the specification's, one draw of 2,000")
    held = True
    for r, want in ORDER.items():
        found, share = measured(pools(r, questions=questions))
        told = [f"{name} {value:.3f} ({want[name]:.3f})" for name, value in found.items()]
        print(
            f"r = {r}:",
            ", ".join(told),
            f"; short-3@8 at {share:.0%} of the tokens ({want.get('share', 1):.0%})",
        )
        held &= all(abs(value - want[name]) <= 0.025 for name, value in found.items())
        held &= all(found[a] > found[b] for a in found for b in found if want[a] > want[b] + 0.02)
    print("same order, figures within 2.5 points:", met(held))


# ---------------------------------------------------------------- pools on the small model


def products(n: int) -> list[Row]:
    """Products in digits, the only language in which the small model can calculate."""
    file = Path(__file__).parent / "data" / "products.jsonl"
    return [{"key": f"digits-{i}", "language": "digits", "question": row["question"], "gold": row["answer"],
             "policy": POLICIES["product"]} for i, row in enumerate(json_lines(file)[:n])]  # fmt: skip


def mgsm(folder: Path, n: int) -> list[Row]:
    """The first n word problems of every language that is there, with worked examples in English."""
    policy = replace(POLICIES["few_shot"], delimiter=None, sampling=Sampling(max_tokens=96))
    rows = []
    for file in sorted(folder.glob("mgsm_*.tsv")):
        language = file.stem.removeprefix("mgsm_")
        lines = [line.split("\t") for line in file.read_text("utf-8").splitlines() if "\t" in line]
        rows += [{"key": f"{language}-{i}", "language": language, "question": question, "gold": gold,
                  "policy": policy} for i, (question, gold) in enumerate(lines[:n])]  # fmt: skip
    return rows


async def measure(options: argparse.Namespace) -> list[Row]:
    """Four problems at a time."""
    if options.verb == "open":
        asked = [{"key": key, "task": task} for key, task in tasks(options.file, options.prompts)]
    elif options.verb == "mgsm":
        asked = mgsm(options.folder, options.problems)
    else:
        asked = products(options.problems)
    engine = abduce_engine(yaml.safe_load(options.model))
    answer = partial(selected if options.verb == "open" else sampled, engine)
    rows: Rows = options.rows
    found = await rows.each(asked, lambda row: [options.verb, options.model, row["key"]], answer, at_once=4)
    await engine.close()
    return found


def services(engine: Engine) -> Services:
    """The model judges itself."""
    return Services({"policy": engine, "judge": engine})


async def sampled(engine: Engine, row: Row) -> Row:
    """One greedy sample and N at each temperature: answer, whether it is right."""
    found: Row = {key: row[key] for key in ("language", "question", "gold")}
    task, policy = Task(row["question"]), row["policy"]
    methods = {"greedy": Hedged(policy=policy, n=1)}
    for name, (tau, min_p) in ARMS.items():
        methods[name] = Hedged(policy=policy, n=N, greedy=False, temperatures={"*": tau}, min_p=min_p)
    for name, method in methods.items():
        result, _ = await solved(method, task, services(engine), seed=derive(0, row["question"]))
        found[name] = [
            [None if c.answer is None else str(c.answer), same_answer(c.answer, row["gold"])]
            for c in result.candidates
        ]
    return found


def vote_of(pool: Sequence[Sequence[Any]]) -> float:
    """Whether the most frequent answer is right; the first of equals, which may be the greedy one."""
    winner = poll([answer for answer, _ in pool]).winner
    return float(winner is not None and any(right for answer, right in pool if answer == winner))


def report_pools(rows: Sequence[Row]) -> None:
    """Accuracy of greedy, and of majorities over five; hope and risk of the pools at each temperature."""
    languages = sorted({row["language"] for row in rows})
    names = ["greedy", *(f"{kind} {arm}" for arm in ARMS for kind in ("single", "hedged"))]
    print(f"{len(rows)} problems, N = {N}, majority; accuracy by language")
    table_head("", *names)
    ahead = dict.fromkeys(ARMS, 0)
    above_greedy = dict.fromkeys(ARMS, 0)
    for language in [*languages, "all"]:
        mine = [row for row in rows if language in (row["language"], "all")]
        figures = [fmean(float(row["greedy"][0][1]) for row in mine)]
        for arm in ARMS:
            single = fmean(vote_of(row[arm]) for row in mine)
            hedged = fmean(vote_of([*row["greedy"], *row[arm][: N - 1]]) for row in mine)
            figures += [single, hedged]
            if language != "all":
                ahead[arm] += hedged > single
                above_greedy[arm] += hedged > figures[0]
        table_row(language, *(f"{x:.3f}" for x in figures))
    n = len(rows)
    for arm in ARMS:
        gained = sum(vote_of([*row["greedy"], *row[arm][: N - 1]]) for row in rows)
        low, high = wilson(round(gained), n)
        spreads = [
            spread(float(row["greedy"][0][1]), [float(x) for _, x in row[arm]], relative=False)
            for row in rows
        ]
        print(
            f"τ = {arm}: hedged {gained / n:.3f} ({low:.3f} – {high:.3f}); above single in {ahead[arm]}, "
            f"above greedy in {above_greedy[arm]} of {len(languages)} languages; hope "
            f"{fmean(s.hope for s in spreads):+.3f}, risk {fmean(s.risk for s in spreads):+.3f}"
        )


# ---------------------------------------------------------------- selection of open-ended answers


async def selected(engine: Engine, row: Row) -> Row:
    """What each selector picks from one pool, by the checks of the prompt."""
    task: Task = row["task"]
    policy = replace(POLICIES["plain"], sampling=Sampling(max_tokens=64))
    brief = Sampling(temperature=0.0, max_tokens=96)
    shared: dict[str, Any] = {"policy": policy, "n": N, "language": "en", "temperatures": {"*": 0.7}}
    methods = {
        "chops": CHOPS(**shared, sampling=brief),
        "mbr chrf": XMBR(**shared, foreign=0, utility="chrf"),
        "mbr judge": XMBR(**shared, foreign=0, sampling=replace(brief, max_tokens=24)),
        "x_mbr": XMBR(**shared, foreign=3, sampling=replace(brief, max_tokens=24)),
    }
    found: Row = {"picks": {}}
    for name, method in methods.items():
        # the same seed: the same pool
        result, usage = await solved(method, task, services(engine), seed=row["key"])
        facts = result.diagnostics
        found["pool"] = [share_met(task, c.text) for c in result.candidates]
        found["picks"][name] = {"met": share_met(task, result.text), "tokens": usage.tokens,
                                "chosen": facts.get("chosen"), "fallback": facts.get("fallback"),
                                "unread": facts.get("unread"), "calls": facts.get("judge_calls")}  # fmt: skip
    return found


def share_met(task: Task, text: str) -> float:
    """Share of the checks that a text meets."""
    return fmean(float(ifeval.ok(check.id, check.kwargs, text)) for check in task.checks)


def report_open(rows: Sequence[Row]) -> None:
    """Mean share of checks met by each selector."""
    print(f"{len(rows)} prompts, pools of {N}, share of checks met")
    found = [row["pool"] for row in rows]
    told = [fmean(pool[0] for pool in found), fmean(map(fmean, found)), fmean(map(max, found))]
    print("greedy {:.3f}, mean of the pool {:.3f}, best of the pool {:.3f}".format(*told))
    for name in rows[0]["picks"]:
        picks = [row["picks"][name] for row in rows]
        facts = {
            "tokens": round(fmean(p["tokens"] for p in picks)),
            "fell back": sum(p["fallback"] is not None for p in picks),
            "calls": sum(p["calls"] or 0 for p in picks),
            "unread": sum(p["unread"] or 0 for p in picks),
            "greedy chosen": sum(p["chosen"] == 0 for p in picks),
        }
        print(f"{name}: {fmean(p['met'] for p in picks):.3f}", facts)


if __name__ == "__main__":
    raise SystemExit(main())

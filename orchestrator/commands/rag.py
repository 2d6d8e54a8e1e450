"""`abduce rag fit`: what documents, demonstrations and iterations are worth to a model.

`abduce rag demos`: demonstrations for it.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from ...serving import redact
from ...serving.errors import UsageError
from ...serving.gather import gather
from ...serving.seeds import derive
from ...strategies.base import Result
from ...strategies.rag.allocation import Allocation, Point, fit, frontier, line, normalised
from ...strategies.rag.auto import RAG, reader
from ...strategies.rag.demonstrations import Demonstration
from ...strategies.rag.forecast import Costs, Sent, Theta, Tokens, calibrated
from ...strategies.rag.metrics import METRICS, contained, exact_match
from ...strategies.rag.reading import Reading
from ..background import wait_for
from ..evaluate import Problem, read_problems
from ..solve import Pipeline
from .options import recipe_of
from .rag_log import Log, Row
from .solve import fetch_models

BUDGETS = (1_000, 4_000, 16_000, 32_000, 128_000, 1_000_000)


# ---------------------------------------------------------------- abduce rag fit


def fitting(chosen: argparse.Namespace) -> int:
    """Read the problems at every θ of a small grid, log each reading, fit the model to what is logged."""
    grid = _grid(chosen)
    recipe = recipe_of(chosen)
    pipeline = _pipeline(recipe.pipeline())
    log = Log(Path(chosen.log), settings(pipeline))
    if not log.rows or chosen.data:
        fetch_models(pipeline)
        sets = {Path(name).stem: problems(Path(name), chosen.limit) for name in chosen.data}
        if len(sets) < len(chosen.data):
            raise UsageError("Two files of problems have the same name, by which tasks are told apart.")
        if not sets:
            raise UsageError(
                "There is nothing logged yet. Name a file of problems: abduce rag fit DATA.jsonl"
            )
        work = readings(pipeline, sets, grid, log, seed=recipe.seed, parallel=chosen.parallel)
        try:
            failed = wait_for(work)
        except KeyboardInterrupt:
            print(f"\nabduce: stopped; {log.kept}. Go on with the same command.", file=sys.stderr)
            return 130
        if failed:
            told_of = f"{len(failed)} readings failed, the first because: {failed[0]}"
            print(f"abduce: {told_of}\n{log.kept}. Go on with the same command.", file=sys.stderr)
            return 1
    model = fitted(log.rows, chosen.metric, json.dumps(log.settings.get("model"), default=str))
    out = Path(chosen.out)
    try:
        out.write_text(json.dumps(model.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {out}: {error.strerror}. Name another with --out.") from None
    print("\n".join(told(model, log.rows, chosen.metric)))
    print(f"abduce: the model is in {out}, the readings are in {log.file}", file=sys.stderr)
    return 0


def problems(file: Path, limit: int | None) -> list[tuple[Problem, tuple[str, ...]]]:
    """The problems of a file, each with all its right answers (`answer`, and `answers` or
    `answer_aliases`)."""
    lines = file.read_text(encoding="utf-8-sig").split("\n") if file.is_file() else []
    found = []
    for problem in read_problems(file, limit):
        row = json.loads(lines[problem.line - 1])
        more = [*row.get("answers", ()), *row.get("answer_aliases", ())]
        golds = tuple(dict.fromkeys(gold for gold in (problem.answer, *map(str, more)) if gold))
        found.append((problem, golds))
    return found


async def readings(
    pipeline: Pipeline,
    sets: Mapping[str, Sequence[tuple[Problem, tuple[str, ...]]]],
    grid: Iterable[Theta],
    log: "Log",
    *,
    seed: int,
    parallel: int,
) -> list[str]:
    """Every problem of every task at every θ, those that are logged left out. Why some failed, which are not
    logged: a model that did not answer is not wrong."""
    like = pipeline.strategy
    assert isinstance(like, Reading)
    strategies = {
        theta: reader(like, theta) for theta in grid
    }  # refuses what cannot be, before anything is read
    gate = asyncio.Semaphore(parallel)
    done = 0
    failed: list[str] = []

    async def one(task: str, theta: Theta, problem: Problem, golds: Sequence[str]) -> None:
        nonlocal done
        async with gate:
            at = replace(pipeline, strategy=strategies[theta])
            known = replace(problem.task, metadata={"gold_answers": golds})  # for the class of an error alone
            result = await at.asolve(known, seed=derive(seed, "eval", problem.id))
        if result.answer is None and (reasons := result.diagnostics.get("failures")):
            failed.append(str(reasons[0]))
        else:
            log.add(_row(task, theta, problem, golds, result))
        done += 1
        if sys.stderr.isatty():
            print(f"\r{done} of {len(work)} readings", end="", file=sys.stderr, flush=True)

    work = [
        (task, theta, problem, golds)
        for theta, (task, rows) in product(strategies, sets.items())
        for problem, golds in rows
        if (task, problem.id, *theta) not in log.known
    ]
    try:
        await gather([one(*each) for each in work])
    finally:
        print(f"\r{done} of {len(work)} readings", file=sys.stderr)
    return failed


def _row(task: str, theta: Theta, problem: Problem, golds: Sequence[str], result: Result) -> Row:
    answer = str(result.answer or "")
    facts = result.diagnostics
    return {
        "task": task,
        "id": problem.id,
        **theta._asdict(),
        "answer": answer,
        **{name: metric(answer, golds) for name, metric in METRICS.items()},
        "tokens": result.usage.input_tokens,
        "cached_tokens": result.usage.cached_tokens,
        "output_tokens": result.usage.output_tokens,
        "sent": facts.get("sent", {}),
        "used": facts.get("theta_used", {}),
        "error": facts.get("error_class", ""),
        "stopped": str(facts.get("stopped", "")),
    }


def settings(pipeline: Pipeline) -> dict[str, Any]:
    """What makes two logs comparable: everything but θ and budgets."""
    told = redact.settings({**pipeline.settings})
    told = told.get("recipe", told)
    free = {"policy", "k", "m", "n_max", "budget_tokens", "allocation", "like"}
    usual = {f.name: f.default for f in fields(RAG)}
    own = {
        f.name: getattr(pipeline.strategy, f.name, usual[f.name]) for f in fields(RAG) if f.name not in free
    }
    return {key: told.get(key) for key in ("model", "models", "policy", "tools")} | own


def fitted(rows: Sequence[Row], metric: str, model: str) -> Allocation:
    """The allocation model of logged readings."""
    points, gains = normalised(_means(rows, metric))
    found = fit(points, gains)
    ways: tuple[list[tuple[Sent, float]], ...] = ([], [])
    for row in rows:
        sent = Sent(*(row["sent"].get(part, 0) for part in Sent._fields))
        ways[row["n"] > 1].append((sent, float(row["tokens"])))
    single, iterated = (calibrated(runs, usual) for runs, usual in zip(ways, _usual(), strict=True))
    return replace(found, costs=Costs(single, iterated), model=model)


def _usual() -> tuple[Tokens, Tokens]:
    return Costs().single, Costs().iterated


def _means(rows: Sequence[Row], metric: str) -> list[Point]:
    by_theta: dict[tuple[str, Theta], list[float]] = {}
    for row in rows:
        by_theta.setdefault((row["task"], Theta(row["k"], row["m"], row["n"])), []).append(row[metric])
    return [Point(task, theta, sum(p) / len(p)) for (task, theta), p in by_theta.items()]


def told(model: Allocation, rows: Sequence[Row], metric: str) -> list[str]:
    """The figures, for the screen."""
    s = model.sigma
    lines = [
        f"{len(rows)} readings, {model.n_points} points of {len(model.tasks)} tasks, metric {metric}",
        "          k       m       n",
        "a   " + "".join(f"{value:8.3f}" for value in model.a),
        "b   " + "".join(f"{value:8.3f}" for value in model.b),
        f"c   {model.c:8.3f}    σ: A {s.A:.2f}, B {s.B:.2f}, C {s.C:.2f}, D {s.D:.2f}",
        f"R²  {model.r2:8.3f}    MSE {model.mse:.3f}",
        *(_tokens(way, t) for way, t in (("drag", model.costs.single), ("iterdrag", model.costs.iterated))),
    ]
    means = _means(rows, metric)
    for task, gains in model.tasks.items():
        lines.append(f"\n{task}: i_doc {gains.i_doc:.3f}, i_shot {gains.i_shot:.3f}")
        lines += _frontier([row for row in rows if row["task"] == task], metric)
        mine = [point for point in means if point.task == task]

        def residual(point: Point, task: str = task) -> float:
            gains = model.tasks[task]
            return (point.p - gains.mean) / gains.sd - model.predict(point.theta, gains)

        worst = max(mine, key=lambda point: abs(residual(point)))
        lines += _errors([row for row in rows if row["task"] == task])
        lines.append(f"  largest residual: {residual(worst):+.2f} sd at (k, m, n) = {tuple(worst.theta)}")
    most = Theta(*(max(row[name] for row in rows) for name in Theta._fields))
    for budget in BUDGETS:
        theta = model.choose(budget, most_k=most.k, most_m=most.m, most_n=most.n)
        best = f"k {theta.k}, m {theta.m}, n {theta.n}"
        lines.append(
            f"{'' if budget > BUDGETS[0] else chr(10)}{budget:>9,} tokens: {best}, "
            f"about {model.costs.forecast(theta, hard=False):,.0f}"
        )
    return lines


def _tokens(way: str, t: Tokens) -> str:
    parts = f"{t.call:.0f} a call, {t.document:.0f} a document, {t.demonstration:.0f} a demonstration"
    lines = f", {t.line:.0f} a line" if way == "iterdrag" else ""
    return f"tokens of {way}: {parts}{lines}; 95 % stay below {t.margin:.2f} × the forecast"


def _frontier(rows: Sequence[Row], metric: str) -> list[str]:
    longest: dict[Theta, int] = {}
    for row in rows:
        theta = Theta(row["k"], row["m"], row["n"])
        longest[theta] = max(longest.get(theta, 0), row["tokens"])
    runs = [(point.theta, point.p, float(longest[point.theta])) for point in _means(rows, metric)]
    best = frontier(runs, sorted({*longest.values()}))
    kept = [each for i, each in enumerate(best) if not i or each.p > best[i - 1].p]
    lines = [f"  {each.budget_tokens:>9,.0f} tokens: P* {each.p:.3f} at {tuple(each.theta)}" for each in kept]
    slope, _, r2 = line(best)
    return [*lines, f"  P* grows by {slope:.3f} with each ln L_max, R² {r2:.3f}"]


def _errors(rows: Sequence[Row]) -> list[str]:
    """Why answers were wrong, over all readings."""
    counts = Counter(row["error"] for row in rows if row.get("error"))
    told = ", ".join(f"{kind} {n}" for kind, n in counts.most_common())
    return [f"  errors of {len(rows)} readings: {told}"] if told else []


# ---------------------------------------------------------------- abduce rag demos


def demos(chosen: argparse.Namespace) -> int:
    """Answer problems by follow-up questions, and keep what was answered right, as demonstrations."""
    recipe = recipe_of(chosen)
    pipeline = _pipeline(recipe.pipeline())
    like = pipeline.strategy
    assert isinstance(like, Reading)
    m = len(like.shots) if like.m is None else like.m
    theta = Theta(like.k, m, max(2, getattr(like, "n_max", 5)))
    at = replace(pipeline, strategy=reader(like, theta))
    fetch_models(pipeline)
    asked = problems(Path(chosen.data), chosen.limit)
    out = Path(chosen.out)
    if out.exists():
        raise UsageError(f"{out} exists. Name another file with --out.")
    found = wait_for(_demonstrations(at, asked, chosen, recipe.seed))
    try:
        out.write_text("".join(json.dumps(each.row(), ensure_ascii=False) + "\n" for each in found), "utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {out}: {error.strerror}. Name another with --out.") from None
    print(f"{len(found)} demonstrations from {len(asked)} problems are in {out}")
    return 0 if found else 1


async def _demonstrations(
    pipeline: Pipeline,
    asked: Sequence[tuple[Problem, tuple[str, ...]]],
    chosen: argparse.Namespace,
    seed: int,
) -> list[Demonstration]:
    gate = asyncio.Semaphore(chosen.parallel)
    like = pipeline.strategy
    assert isinstance(like, Reading)

    async def one(problem: Problem, golds: Sequence[str]) -> Demonstration | None:
        async with gate:
            result = await pipeline.asolve(problem.task, seed=derive(seed, "demos", problem.id))
        answer = str(result.answer or "")
        if not (exact_match(answer, golds) or contained(answer, golds)):
            return None
        steps = tuple((query, said) for query, said in result.diagnostics["steps"])
        queries = dict.fromkeys([problem.task.question, *(query for query, _ in steps)])
        documents = await _documents(pipeline, like, list(queries))
        return Demonstration(problem.task.question, answer, steps, tuple(documents))

    made = await gather([one(*each) for each in asked])
    return [each for each in made if each is not None]


async def _documents(pipeline: Pipeline, like: Reading, queries: Sequence[str]) -> list[Row]:
    """What these searches find: the best of each first, then the second best, each document once."""
    tool = pipeline.services.tools.get(like.retriever)
    lists = []
    for query in queries if tool is not None and like.k else ():
        assert tool is not None
        result = await tool.call({"query": query, "k": like.k})
        lists.append(result.value if isinstance(result.value, list) else [])
    found: dict[str, Row] = {}
    for rank in range(max(map(len, lists), default=0)):
        for row in (rows[rank] for rows in lists if rank < len(rows)):
            title = row.get("title") or row.get("source", "")
            kept = {"id": str(row.get("id", "")), "title": title, "text": row["text"]}
            found.setdefault(str(row.get("id") or row["text"]), kept)
    return list(found.values())


# ---------------------------------------------------------------- what was typed


def _pipeline(pipeline: Any) -> Pipeline:
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.strategy, Reading):
        raise UsageError(
            "The recipe must have drag, iterdrag or rag as its only step. Write --recipe rag-iterative, or "
            "--strategy iterdrag."
        )
    return pipeline


def _grid(chosen: argparse.Namespace) -> list[Theta]:
    ks, ms, ns = (
        _numbers(name, getattr(chosen, name), least) for name, least in (("k", 0), ("m", 0), ("n", 1))
    )
    needed = [Theta(0, 0, 1), Theta(1, 0, 1), Theta(0, 1, 1)]  # what i is made of
    grid = [Theta(*each) for each in product(ks, ms, ns) if each[0] or each[2] == 1]
    return list(dict.fromkeys([*needed, *grid]))


def _numbers(name: str, text: str, least: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and least <= int(part) <= 1000 for part in parts):
        raise UsageError(
            f"--{name} is a list of whole numbers from {least} to 1000 such as 1,2,5, got {text!r}."
        )
    return [int(part) for part in parts]

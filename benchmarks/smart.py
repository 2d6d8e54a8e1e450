"""What a learned choice of the first strategy brings, on simulated problems and on the small model.

    python benchmarks/smart.py simulated [--seeds 100]
    python benchmarks/smart.py router [--data gsm8k/test.jsonl] [--problems 360] [--rows FILE]

`simulated`: the environments of the tests, whose chances are known. `router`: sums, word problems and
products for the small model. Each of three strategies tries each problem once; then the choice is replayed
from the table, in --orders random orders: the router learns on one half of the problems and is judged on the
other, beside each strategy always, an even draw, and the oracle that picks a right one where there is one.
With refinement the others follow until one is right, in the order of their learnt values or in a fixed one.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import command, keeps_rows
from intervals import bootstrap, paired
from printing import met
from rows import Row, Rows
from solving import solved

from abduce.orchestrator.evaluate import read_problems, wilson
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.services import Services
from abduce.serving.embedded import Embedded
from abduce.serving.seeds import derive
from abduce.strategies.base import Strategy, Task
from abduce.strategies.policy import policy
from abduce.strategies.smart.arms import arm
from abduce.strategies.smart.bandit import Chooser
from abduce.strategies.smart.features import features, signature
from abduce.strategies.smart.router import Attempt, Decision, Learn, Router
from abduce.tools import toolbox
from tests.strategies.smart.environments import Problem, hidden, planted, play, value

ARMS: dict[str, Any] = {"cot": "cot", "l2m": {"strategy": "l2m", "one_call": True}, "pot": "pot"}
POLICY = {
    "preset": "few_shot", "max_solution_tokens": 80, "sampling": {"temperature": 0.3},
    "examples": (
        ("A box holds 6 pens. How many pens are in 4 boxes?", "4 * 6 = 24 pens.\nThe answer is 24."),
        ("Mia had 20 dollars. She bought 3 books at 4 dollars each. How much is left?",
         "The books cost 3 * 4 = 12 dollars.\nMia has 20 - 12 = 8 dollars left.\nThe answer is 8."),
        ("Tom runs 5 km a day. How far does he run in 2 weeks?",
         "Two weeks are 2 * 7 = 14 days.\nIn 14 days he runs 14 * 5 = 70 km.\nThe answer is 70."),
        ("What is 14 + 25 + 8?", "14 + 25 = 39.\n39 + 8 = 47.\nThe answer is 47."),
    ),
}  # fmt: skip


def main() -> int:
    """Run one part, print its table."""
    parser = command(__doc__)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("simulated")
    part.add_argument("--seeds", type=int, default=100)
    part.set_defaults(run=simulated)
    part = parts.add_parser("router")
    part.add_argument("--data", type=Path, help="GSM8K's, for half of the word problems")
    part.add_argument("--problems", type=int, default=360)
    part.add_argument("--parallel", type=int, default=4)
    part.add_argument("--slots", type=int, default=12)
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--orders", type=int, default=10)
    keeps_rows(part, "build/smart.jsonl")
    part.set_defaults(run=router)
    options = parser.parse_args()
    options.run(options)
    return 0


# ---------------------------------------------------------------- problems


def problems(n: int, data: Path | None, seed: int) -> list[Row]:
    """A third each of sums, word problems and products; half of the word problems are GSM8K's, if given."""
    rng = Random(derive(seed, "problems"))
    words = read_problems(data, None) if data else []
    short = [(p.task.question, p.answer) for p in words if len(p.task.question.split()) <= 32]
    rows = []
    for i in range(n):
        kind = ("sum", "words", "product")[i % 3]
        if kind == "sum":
            parts = [rng.randint(3, 60) for _ in range(rng.randint(2, 4))]
            question, answer = f"What is {' + '.join(map(str, parts))}?", str(sum(parts))
        elif kind == "product":
            a, b = rng.randint(3, 40), rng.randint(3, 12)
            question, answer = f"What is {a} * {b}?", str(a * b)
        elif i // 3 % 2 and short:
            question, answer = short[i // 6 % len(short)]
        else:
            question, answer = made(rng)
        rows.append({"id": f"{kind}-{i}", "family": kind, "question": question, "answer": answer})
    return rows


def made(rng: Random) -> tuple[str, str]:
    """A word problem of one or two steps, and its answer."""
    who, thing = rng.choice(("Ben", "Lea", "Sam", "Ida")), rng.choice(("apples", "cards", "marbles", "coins"))
    a, b, c = rng.randint(8, 40), rng.randint(2, 7), rng.randint(2, 6)
    kind = rng.randrange(4)
    if kind == 0:
        return f"{who} has {a} {thing} and gives {b} of them away. How many {thing} are left?", str(a - b)
    if kind == 1:
        return f"{who} has {b} bags with {c} {thing} each. How many {thing} are there?", str(b * c)
    if kind == 2:
        question = (
            f"{who} has {a} {thing} and finds {b} more. Then {who} loses {c}. How many {thing} are left?"
        )
        return question, str(a + b - c)
    return f"{who} shares {b * c} {thing} equally among {c} friends. How many {thing} does each get?", str(b)


# ---------------------------------------------------------------- every arm on every problem


async def table(options: argparse.Namespace) -> list[Row]:
    """What came of all arms on all problems."""
    engine = Embedded(slots=options.slots, context=1024)
    arms = {name: arm(spec, policy(POLICY)) for name, spec in ARMS.items()}
    services = Services({"policy": engine}, tools=toolbox(["python"]))

    async def tried(row: Row) -> Row:
        seed = derive(options.seed, row["id"])
        each = await asyncio.gather(*(one(a, services, row, seed) for a in arms.values()))
        return {**row, "arms": dict(zip(arms, each, strict=True))}

    rows: Rows = options.rows
    asked = problems(options.problems, options.data, options.seed)
    found = await rows.each(
        asked, lambda row: [options.seed, row["id"], row["question"]], tried, at_once=options.parallel
    )
    await engine.close()
    return found


async def one(strategy: Strategy, services: Services, row: Row, seed: int) -> Row:
    """One attempt at one problem."""
    result, usage = await solved(strategy, Task(row["question"]), services, seed=seed)
    right = result.answer is not None and same_answer(str(result.answer), row["answer"])
    return {
        "y": int(right),
        "tokens": usage.output_tokens,
        "answer": result.answer,
        "text": result.text,
    }


# ---------------------------------------------------------------- the choice, replayed


def router(options: argparse.Namespace) -> None:
    """Fixed arms, the router, the oracle; then with refinement."""
    rows, names = asyncio.run(table(options)), list(ARMS)
    families = Counter(row["family"] for row in rows)
    print(
        f"{len(rows)} problems ({dict(families)}), arms {names}, {options.orders} orders, two halves each\n"
    )
    fixed = {name: [row["arms"][name]["y"] for row in rows] for name in names}
    oracle = [float(any(row["arms"][name]["y"] for name in names)) for row in rows]
    learnt = [held_out(rows, names, seed) for seed in range(options.orders)]
    mean = {key: [fmean(run[i][key] for run in learnt) for i in range(len(rows))] for key in learnt[0][0]}
    first_attempts(rows, fixed, mean, oracle)
    print(f"\n{'with refinement':22} {'Acc@T':>6} {'attempts':>9} {'tokens':>7}")
    ranked = sorted(names, key=lambda name: -sum(fixed[name]))
    for order in (names, ranked):
        n, spent = zip(*(by_order(row, order) for row in rows), strict=True)
        print(f"{', '.join(order):22} {fmean(oracle):6.3f} {fmean(n):9.2f} {fmean(spent):7.1f}")
        _, low, high = paired(n, mean["attempts"], draws=2000)
        print(f"{'':22} the router saves {low:+.2f} to {high:+.2f} attempts")
    print(f"{'router, then the rest':22} {fmean(oracle):6.3f} {fmean(mean['attempts']):9.2f} "
          f"{fmean(mean['all tokens']):7.1f}")  # fmt: skip
    for family in families:
        shown = [i for i, row in enumerate(rows) if row["family"] == family]
        told = ", ".join(f"{name} {fmean(fixed[name][i] for i in shown):.3f}" for name in names)
        print(f"{family}: {told}, router {fmean(mean['y'][i] for i in shown):.3f}, "
              f"oracle {fmean(oracle[i] for i in shown):.3f}")  # fmt: skip


def first_attempts(
    rows: Sequence[Row],
    fixed: dict[str, list[float]],
    mean: dict[str, list[float]],
    oracle: list[float],
) -> None:
    """The table of first attempts, and whether the router gains over the best arm."""
    names = list(fixed)
    best = max(names, key=lambda name: sum(fixed[name]))
    cost = {name: [float(row["arms"][name]["tokens"]) for row in rows] for name in names}
    print(f"{'first attempt':16} {'Acc@1':>6}  {'95 %':15} {'tokens':>6} {'a problem solved':>17}")
    ways = {f"always {name}": (fixed[name], cost[name]) for name in names}
    even = [fmean(fixed[name][i] for name in names) for i in range(len(rows))]
    ways["even draw"] = even, [fmean(cost[name][i] for name in names) for i in range(len(rows))]
    ways["router"] = mean["y"], mean["tokens"]
    for way, (right, tokens) in ways.items():
        share, low, high = bootstrap(right, draws=2000)
        solved = sum(tokens) / max(1e-9, sum(right))
        print(f"{way:16} {share:.3f}  {low:.3f} - {high:.3f}  {fmean(tokens):6.1f} {solved:17.1f}")
    print(f"{'oracle':16} {fmean(oracle):.3f}")
    gain, low, high = paired(mean["y"], fixed[best], draws=2000)
    saved = 1 - sum(mean["tokens"]) / sum(cost[best])
    print(f"\nrouter minus {best}: {gain:+.3f} ({low:+.3f} to {high:+.3f}), tokens saved {saved:+.1%}")
    if fmean(oracle) - fmean(fixed[best]) < 0.02:
        print("nothing to learn: the oracle is less than 2 points above the best arm")
    else:
        won = gain >= 0.01 or (gain >= -0.01 and saved >= 0.1)
        sure = "" if low > 0 else ", not beyond chance"
        print(f"a point more, or as many with a tenth fewer tokens: {met(won)}{sure}")


def held_out(rows: Sequence[Row], names: Sequence[str], seed: int) -> list[dict[str, float]]:
    """For each problem what a router does that has learnt, online, on the half it is not in."""
    rng = Random(derive(seed, "halves"))
    order = rng.sample(range(len(rows)), len(rows))
    found: dict[int, dict[str, float]] = {}
    for own, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        router = Router(signature(0), len(features("")))
        for i in own:
            phi = features(rows[i]["question"])
            chosen = router.decide(phi, names, Chooser(), rng)
            router = router.learned(observed(rows[i], phi, chosen, names))
        for i in other:
            chosen = router.decide(features(rows[i]["question"]), names, Chooser(choose="greedy"), rng)
            ranked = [chosen.arm, *sorted(set(names) - {chosen.arm}, key=lambda name: -chosen.q[name])]
            n, tokens = by_order(rows[i], ranked)
            arm = rows[i]["arms"][chosen.arm]
            found[i] = {"y": arm["y"], "tokens": arm["tokens"], "attempts": n, "all tokens": tokens}
    return [found[i] for i in range(len(rows))]


def observed(row: Row, phi: tuple[float, ...], chosen: Decision, names: Sequence[str]) -> Attempt:
    """A first attempt, looked up."""
    arm = row["arms"][chosen.arm]
    return Attempt(
        arm=chosen.arm, phi=phi, signature=signature(0), arms=tuple(names), pi=chosen.pi,
        propensity=chosen.propensity, y=arm["y"], kind="gold", c=1.0, tokens=arm["tokens"],
    )  # fmt: skip


def by_order(row: Row, names: Sequence[str]) -> tuple[int, int]:
    """Attempts and tokens until one is right, or all have been tried."""
    tokens = 0
    for n, name in enumerate(names, 1):
        tokens += row["arms"][name]["tokens"]
        if row["arms"][name]["y"]:
            return n, tokens
    return len(names), tokens


# ---------------------------------------------------------------- without a model


def simulated(options: argparse.Namespace) -> None:
    """The environments of the tests, with more seeds."""
    for told in (True, False):
        early, late, frozen, regret = [], [], [], []
        for seed in range(min(20, options.seeds)):
            rng = Random(derive(seed, "planted"))
            problems_ = planted(1500, rng, told=told)
            run = play(problems_, Chooser(), rng)
            early += run.first[:30]
            late += run.first[-300:]
            chosen = [row for row in run.rows if row.attempt == 1]
            gaps = zip(problems_, chosen, strict=True)
            regret.append(sum(max(p.chances.values()) - p.chances[row.arm] for p, row in gaps))
            fresh = planted(1500, rng, told=told)
            frozen.append(value(fresh, frozen_choice(run.router)))
        kind = "type told" if told else "type not told"
        print(f"planted, {kind}: first 30 {fmean(early):.3f}, last 300 of 1,500 {fmean(late):.3f}, frozen "
              f"{fmean(frozen):.3f} ({min(frozen):.3f} to {max(frozen):.3f}), regret {fmean(regret):.0f} of "
              f"{1500 * (0.85 - 0.583):.0f} for even draws")  # fmt: skip
    print(f"\nhidden difficulty, 3,000 problems, {options.seeds} seeds: how often the better arm is ahead")
    ways: list[tuple[Learn, float]] = [("first_only", 0.0), ("all", 0.0), ("all", 0.1), ("all", 0.5)]
    for learn, full in ways:
        right = 0
        for seed in range(options.seeds):
            rng = Random(derive(seed, "hidden"))
            router = play(hidden(3000, rng), Chooser(), rng, learn=learn, explore_full=full).router
            right += router.arm("b").q((1.0,)) > router.arm("a").q((1.0,))
        low, high = wilson(right, options.seeds)
        print(f"{learn:10} explore_full {full:.1f}: {right / options.seeds:.2f} ({low:.2f} to {high:.2f})")


def frozen_choice(router: Router) -> Callable[[Problem], dict[str, float]]:
    """What a router does that learns no more."""
    greedy = Chooser(choose="greedy")
    return lambda problem: dict(router.decide(problem.phi, "abc", greedy, Random(0)).pi)


if __name__ == "__main__":
    sys.exit(main())

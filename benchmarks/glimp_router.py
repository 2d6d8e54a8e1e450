"""What the first token's entropy says, and what routing by it costs and brings, with one model or two.

    python benchmarks/glimp_router.py [--steps 300]                   one model in both parts: mechanics only
    python benchmarks/glimp_router.py --small SPEC --large SPEC [--task words] [--routed 100] [--rows FILE]

With two engines, such as "embedded" and "sglang" or "litellm:openai/gpt-4o-mini", all is greedy and measures
four claims, numbered as in what is printed. H_init is the entropy of a step's first token.

    7    p90/p50 of H_init is above that of a step's mean entropy
    8    agreement of both models' next steps falls as H_init rises, over at least 300 steps
    9    with a quarter of the steps by the large model, accuracy is not below that model's, latency at most
         0.8 of it, and accuracy above routing by chance and by mean entropy at equal tokens of the large one
    10   latency grows in line with the share of steps by the large model, and a judge of drafted steps costs
         more at equal accuracy

One set of problems is for 7 and 8. On another each model solves alone; then both with routing, by thresholds
from the first set, on H_init, chance, the mean entropy of a step, and the large model's judgement of a
drafted step (`glimp_pair.py`). "Not below" and "equal" allow 0.05 of accuracy, and are met if the interval
does. Intervals are of 95 %; problems are drawn for them, since steps of one are not independent.

`--task` is sums, products, words, links, or a file of questions and answers; `--shots`: a JSON list of
[question, solution in lines] to show before; `--chat` shows none and instructs. `--rows` keeps all replies,
to go on with.

With one model steps are drawn at temperature 0.6, and agreement is between two samples of it.
"""

import asyncio
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean, mean, quantiles
from typing import Any

import glimp_pair as pairs
from arguments import command, keeps_rows
from glimp_pair import Bill, Pair, Points, Run, Signal, Way, at, rate_of, right, written
from glimp_tasks import MADE, Asked, problems
from intervals import Interval, paired, resampled, told
from printing import met
from scipy.stats import linregress, spearmanr

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Noted
from abduce.serving import engine
from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, Flow, Generate, Sampling
from abduce.serving.seeds import derive
from abduce.strategies.answers import stated
from abduce.strategies.base import State, Step, Task
from abduce.strategies.glimp_router import GlimpRouter, entropy, threshold
from abduce.strategies.policy import StepPolicy
from abduce.strategies.routes import RoutedStep, tally

SIGNALS: tuple[Signal, ...] = ("glimpse", "chance", "mean", "judge")
RATES: dict[Signal, tuple[float, ...]] = {
    "glimpse": (0.1, 0.25, 0.5, 0.75),
    "chance": (0.25, 0.5),
    "mean": (0.1, 0.25, 0.5),
    "judge": (0.1, 0.25, 0.5),
}
RATE = 0.25  # the one of the claims
MARGIN = 0.05  # of accuracy, that counts as equal
FEWEST_STEPS = 20  # two in each tenth
SMALL: tuple[Signal, float] = ("chance", 0.0)  # that model alone
LARGE: tuple[Signal, float] = ("chance", 1.0)
SEEDS = 3  # of routing by chance
NAMES = ("Tom", "Mia", "Ada", "Ben", "Eva")
THINGS = ("apples", "pens", "books", "coins", "stones", "cards")
INNER = StepPolicy(prompt="cot", delimiter="\n", max_steps=12, sampling=Sampling(0.6, 0.95, max_tokens=60))


def main() -> int:
    """Measure two models, or one in both parts."""
    parser = command(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--small", default="embedded", help="engine of the small model")
    parser.add_argument("--large", default="", help="engine of the large model")
    parser.add_argument("--task", default="words", help=f"{', '.join(MADE)}, or a file of problems")
    parser.add_argument("--shots", type=Path, help="JSON list of [question, solution]")
    parser.add_argument("--chat", action="store_true", help="for models that follow instructions")
    parser.add_argument("--max-tokens", type=int, default=60, help="of a step")
    parser.add_argument("--routed", type=int, default=100, help="problems to solve each way; 0: none")
    parser.add_argument("--ratio", type=float, default=2.0, help="how much faster the small model writes")
    parser.add_argument("--prefill", type=float, default=0.1, help="cost of a read token, in written ones")
    parser.add_argument("--no-judge", action="store_true", help="the large engine scores no given text")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    keeps_rows(parser)
    options = parser.parse_args()
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    if not options.large and (idle := sorted(given - {"steps", "large"})):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        parser.error(f"{names}: for two models only. Write --large SPEC as well.")
    try:
        return asyncio.run(two_models(options) if options.large else one_model(options.steps))
    except UsageError as error:
        parser.error(str(error))


# ---------------------------------------------------------------- two models


async def two_models(options: Any) -> int:
    """All points, on one task."""
    shots, asked = problems(options.task, options.steps + options.routed, options.seed)
    if options.shots:
        shots = tuple((question, solution) for question, solution in json.loads(options.shots.read_text()))
    test, rest = asked[: options.routed], asked[options.routed :]
    if not rest:
        raise UsageError(
            f"{options.task} has {len(asked)} problems: --routed {options.routed} leaves none to take "
            "thresholds from. Write a lower number."
        )
    policy = pairs.inner(shots, chat=options.chat, max_tokens=options.max_tokens)
    pair = Pair(policy, {"small": options.small, "large": options.large}, options.rows)
    engines = {"policy": engine(options.small), "large": engine(options.large)}
    run = Run(engines, pair, GlimpRouter(policy=policy), options.parallel)
    models = f"small: {options.small}, large: {options.large}"
    print(f"{models}, task: {options.task}, seed {options.seed}, greedy")
    try:
        steps = await steps_of(run, rest, options.steps, judged=bool(test) and not options.no_judge)
        told_of_steps(steps)
        if test:
            await routing(run, test, steps, options)
            await pairs.parity(run, test[:10], threshold([row["glimpse"] for row in steps], RATE))
    finally:
        for each in engines.values():
            await each.close()
    return 0


async def steps_of(run: Run, asked: Sequence[Asked], n_steps: int, *, judged: bool) -> list[dict[str, Any]]:
    """At least `n_steps` of the small model's, as far as the problems go."""
    found: list[int] = []

    def looked_at(problem: Asked) -> Flow[list[dict[str, Any]]]:
        if sum(found) >= n_steps:
            return []
        rows = yield from pairs.compared(run.pair, run.router, problem, judged)
        found.append(len(rows))
        return rows

    steps: list[dict[str, Any]] = []
    n_problems = 0
    for rows in await run.each(asked, looked_at):
        if len(steps) < n_steps:
            steps += rows
            n_problems += 1
    print(f"{len(steps)} steps of {n_problems} problems, the small model's")
    if len(steps) < FEWEST_STEPS:
        raise UsageError(
            f"{len(steps)} steps are too few: at least {FEWEST_STEPS} are needed. Give more problems, or a "
            "higher --steps."
        )
    return steps


def told_of_steps(steps: Sequence[dict[str, Any]]) -> None:
    """Points 7 and 8."""
    firsts, means = [row["glimpse"] for row in steps], [row["mean"] for row in steps]
    problem = [row["problem"] for row in steps]
    ratios = [told_spread(name, x) for name, x in (("H_init", firsts), ("mean entropy", means))]
    print(f"7  H_init more spread by p90/p50: {met(ratios[0] > ratios[1])}")
    print(f"H_init, bins of 0.3 nats   {histogram(firsts)}")
    agreed = [agreement(row["small"], row["large"]) for row in steps]
    signs = [SequenceMatcher(None, row["small"], row["large"], autojunk=False).ratio() for row in steps]
    order = sorted(range(len(steps)), key=lambda i: firsts[i])
    print("decile: H_init up to, agreement in words, in characters, equal steps")
    for k in range(10):
        part = order[k * len(order) // 10 : (k + 1) * len(order) // 10]
        equal = fmean(steps[i]["small"].strip() == steps[i]["large"].strip() for i in part)
        words, characters = fmean(agreed[i] for i in part), fmean(signs[i] for i in part)
        print(f"{k + 1:4}  {firsts[part[-1]]:.3f}  {words:.3f}  {characters:.3f}  {equal:.2f}")
    for name, values in (("words", agreed), ("characters", signs)):
        found = spearman(problem, firsts, values)
        held = found[2] < 0 and len(steps) >= 300
        print(f"8  agreement in {name} against H_init: Spearman {told(found)}: {met(held)}")
    depths = [float(row["depth"]) for row in steps]
    for name, values in (("mean entropy", means), ("depth", depths)):
        print(f"   the step's {name} instead: {spearmanr(values, agreed).statistic:+.3f} in words")
    inside = [i for i, row in enumerate(steps) if not stated("number", row["small"])]
    if 2 < len(inside) < len(steps):
        x, y = [firsts[i] for i in inside], [agreed[i] for i in inside]
        found = spearman([problem[i] for i in inside], x, y)
        print(f"   without steps that state an answer: {told(found)} in words, {len(inside)} steps")


def spearman(problem: Sequence[int], x: Sequence[float], y: Sequence[float]) -> Interval:
    """ρ of steps, and its 95 % bootstrap interval. `problem` is each step's: these are drawn, since steps of
    one are not independent. Draws whose x or y are all equal have no ρ and are left out."""
    of: dict[int, list[int]] = {}
    for i, number in enumerate(problem):
        of.setdefault(number, []).append(i)

    def rho(drawn: Sequence[Sequence[int]]) -> float:
        steps = [i for group in drawn for i in group]
        ours, theirs = [x[i] for i in steps], [y[i] for i in steps]
        if len(set(ours)) == 1 or len(set(theirs)) == 1:
            return math.nan
        return float(spearmanr(ours, theirs).statistic)

    groups = list(of.values())
    return rho(groups), *resampled(groups, rho, draws=1000)


# ---------------------------------------------------------------- routing

Ways = dict[tuple[Signal, float], list[Way]]
Bills = dict[tuple[Signal, float], list[list[Bill]]]  # of a signal at a rate, for each seed
Cost = Callable[[Sequence[Bill]], float]


async def routing(run: Run, test: Sequence[Asked], steps: Sequence[dict[str, Any]], options: Any) -> None:
    """Points 9 and 10."""

    def latency(bills: Sequence[Bill]) -> float:
        return fmean(bill.latency(options.ratio, options.prefill) for bill in bills)

    ways = all_ways(steps, SIGNALS[: 3 if options.no_judge else 4])
    drawn = iter(await run.bills(test, [way for group in ways.values() for way in group]))
    bills: Bills = {name: [next(drawn) for _ in group] for name, group in ways.items()}
    [large] = bills[LARGE]
    print(f"\n{len(test)} other problems. Latency in tokens that large writes, and as a share of its own;")
    print(f"small is {options.ratio:g} times as fast, a token read costs {options.prefill:g} of one written")
    for (signal, rate), runs in bills.items():
        each = [bill for one in runs for bill in one]
        name = {0.0: "small alone", 1.0: "large alone"}.get(rate, f"{signal} {rate:.2f}")
        share, low, high = pairs.accuracy(runs)
        print(
            f"{name:12} {share:.3f} [{low:.3f}, {high:.3f}]  {rate_of(each):4.0%} of steps by large; "
            f"tokens: small {written(each, 'small'):5.1f}, large {written(each, 'large'):5.1f}; "
            f"latency {latency(each):6.1f} = {latency(each) / latency(large):.2f}"
        )
    verdicts(bills, latency)


def all_ways(
    steps: Sequence[dict[str, Any]], signals: Sequence[Signal]
) -> dict[tuple[Signal, float], list[Way]]:
    """Both models alone, and each signal at its rates, with thresholds from `steps`."""
    ways = {SMALL: [Way("chance", math.inf)], LARGE: [Way("chance", -math.inf)]}
    for signal in signals:
        for rate in RATES[signal]:
            if signal == "chance":
                ways[signal, rate] = [Way(signal, 1 - rate, seed) for seed in range(SEEDS)]
            else:
                ways[signal, rate] = [Way(signal, threshold([row[signal] for row in steps], rate))]
    return ways


def verdicts(bills: Bills, latency: Cost) -> None:
    """Which claims hold."""
    [small], [large], [routed] = bills[SMALL], bills[LARGE], bills["glimpse", RATE]

    def large_tokens(each: Sequence[Bill]) -> float:
        return written(each, "large")

    found = paired(right(large), right(small))
    print(f"large − small: {told(found)}")
    if found[1] <= 0:
        print("   large is not shown to be better: what 9 says of accuracy means nothing")
    found = paired(right(routed), right(large))
    print(f"9  accuracy − large alone: {told(found)}: {met(found[1] > -MARGIN)}")
    print(f"9  latency at most 0.8 of large alone: {met(latency(routed) <= 0.8 * latency(large))}")
    ends: Points = [(0.0, right(small)), (large_tokens(large), right(large))]
    others: tuple[Signal, ...] = ("chance", "mean")
    for signal in others:
        found = paired(right(routed), at(curve(bills, signal, large_tokens) + ends, large_tokens(routed)))
        print(f"9  accuracy − {signal} at equal tokens of large: {told(found)}: {met(found[1] > 0)}")
    line = [(0.0, latency(small)), (1.0, latency(large))]
    line += [(rate_of(each), latency(each)) for rate in RATES["glimpse"] for each in bills["glimpse", rate]]
    fit = linregress(*zip(*line, strict=True))
    print(f"10 latency against the rate: slope {fit.slope:+.1f}, r² {fit.rvalue**2:.3f}: ", end="")
    print(met(fit.slope > 0 and fit.rvalue**2 >= 0.9))
    if points := curve(bills, "judge", latency):
        found = paired(right(routed), at(points, latency(routed)))
        least = min(cost for cost, _ in points)
        print(f"10 accuracy − judge at equal latency (its least: {least:.1f}): {told(found)}: ", end="")
        print(met(found[1] > (-MARGIN if latency(routed) < least else 0)))


def curve(bills: Bills, signal: Signal, cost: Cost) -> Points:
    """Cost and what is right, at each rate of a signal."""
    points = []
    for rate in RATES[signal]:
        if runs := bills.get((signal, rate)):
            points.append((cost([bill for each in runs for bill in each]), pairs.rights(runs)))
    return points


# ---------------------------------------------------------------- one model in both parts


async def one_model(n_steps: int) -> int:
    """Points 7 and 8 of samples, and the router at work."""
    small = engine({"engine": "embedded", "slots": 8, "context": 1024})
    engines = {"policy": small, "large": small}
    asked = boxes()
    print(f"small: {small.name}, large: the same model, so mechanics only", flush=True)
    rows: list[tuple[float, float, float]] = []
    problem: list[int] = []
    for i, task in enumerate(asked):
        if len(rows) >= n_steps:
            break
        rows += await Driver(Services(engines), seed=i).run(compared(task, i))
        problem += [i] * (len(rows) - len(problem))
    firsts, means, agreements = (list(column) for column in zip(*rows, strict=True))
    print(f"{len(rows)} steps of {problem[-1] + 1} problems")
    for name, values in (("H_init", firsts), ("mean entropy of a step", means)):
        told_spread(name, values)
    print(f"H_init, bins of 0.3 nats   {histogram(firsts)}")
    print(f"agreement against H_init: Spearman {told(spearman(problem, firsts, agreements))}")
    tau = threshold(firsts, 0.25)
    print(f"tau for a quarter of the steps: {tau:.3f}")
    for probe in ("fused", "two_call"):
        await routed(asked[:8], engines, GlimpRouter(policy=INNER, tau=tau, probe=probe))
    for each in set(engines.values()):
        await each.close()
    return 0


def compared(task: Task, seed: int) -> Flow[list[tuple[float, float, float]]]:
    """H_init, mean entropy of the step and agreement with the large model, for each step that the small
    model writes on its way."""
    rows: list[tuple[float, float, float]] = []
    state = State(task)
    router = GlimpRouter(policy=INNER, tau=9.0)
    while not router.terminal(state):
        prompt = INNER.prompt_for(state)
        sampling = replace(INNER.sampling, stop=("\n",))
        asked = Generate(prompt, 1, sampling, derive(seed, state.depth), top_logprobs=20)
        other = Generate(
            replace(prompt, prefix_ids=()), 1, sampling, derive(seed, state.depth, 1), model="large"
        )
        mine, theirs = yield [asked, other]
        if isinstance(mine, Failure) or isinstance(theirs, Failure) or not mine[0].top_logprobs:
            break
        told = [entropy(top) for top in mine[0].top_logprobs]
        rows.append((told[0], mean(told), agreement(mine[0].text, theirs[0].text)))
        ends = mine[0].finish == "eos"
        state = state.extend(Step(mine[0].text, mine[0].ids, n_tokens=mine[0].n_tokens, last=ends))
    return rows


async def routed(asked: Sequence[Task], engines: dict[str, Any], router: GlimpRouter) -> None:
    """Tokens and shares of whole solutions."""
    notes: list[Any] = []

    def solution(task: Task, seed: int) -> Flow[int]:
        state = State(task)
        while not router.terminal(state):
            [[step]] = yield from router.propose([state], [1], [derive(seed, state.depth)])
            if not isinstance(step, RoutedStep):
                break
            state = state.extend(step)
        return state.n_tokens

    for i, task in enumerate(asked):
        driver = Driver(
            Services(engines), observers=[lambda e: notes.append(e.data) if isinstance(e, Noted) else None]
        )
        await driver.run(solution(task, i))
    told = tally(notes)
    print(
        f"{router.probe:9} {told.steps} steps, {told.large_steps / max(1, told.steps):.0%} by the large "
        f"model; tokens small {told.small_tokens}, large {told.large_tokens}, probes {told.probe_tokens}, "
        f"read again {told.refilled_tokens}; switches {told.switches}, errors {told.errors}"
    )


def agreement(one: str, two: str) -> float:
    """Share of words that two steps have in common, in order: 1 for equal steps."""
    return SequenceMatcher(None, one.split(), two.split(), autojunk=False).ratio()


def told_spread(name: str, values: Sequence[float]) -> float:
    """Prints quantiles and the ratio that the claim is about, which it returns."""
    cuts = quantiles(values, n=20)
    p10, p50, p90 = cuts[1], cuts[9], cuts[17]
    ratio = p90 / p50 if p50 else math.inf
    print(f"{name:24} p10 {p10:.3f}  p50 {p50:.3f}  p90 {p90:.3f}  p90/p50 {ratio:.2f}")
    return ratio


def histogram(values: Sequence[float]) -> str:
    """Counts in bins of 0.3 nats from 0 to 3."""
    return " ".join(str(sum(low <= x / 0.3 < low + 1 for x in values)) for low in range(10))


def boxes() -> list[Task]:
    """Word problems of two steps, the same in every run."""
    rng = random.Random(0)
    return [
        Task(
            f"{rng.choice(NAMES)} has {rng.randint(2, 12)} boxes with {rng.randint(2, 12)} {thing} each "
            f"and gives {rng.randint(1, 4)} {thing} away. How many {thing} are left?"
        )
        for thing in rng.choices(THINGS, k=200)
    ]


if __name__ == "__main__":
    sys.exit(main())

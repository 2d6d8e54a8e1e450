"""Is our `potential="reference"` the filter of its_hub 1.2.0, and where does the correct form differ?

Both filter the same enumerable tree with the same scores; the leaves they select must have one
distribution, once its_hub's extra resampling after the last step is imitated by one more multinomial
draw. Then the correct form and its_hub's are measured against the exact target.

    python benchmarks/its_hub_parity.py [--runs 20000]

its_hub runs in an environment of its own, made under ~/.cache/abduce/bench on first use.
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import venv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from arguments import command
from printing import met

HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "abduce" / "bench" / "its_hub"
PACKAGE = "its_hub==1.2.0"  # needs only numpy and typing-extensions
STOP = "\x00"  # marks a last step in the dialogue with its_hub; taken off again before scoring


def main() -> int:
    """Run both sides, print the tables; 1 if the distributions differ where they must agree."""
    parser = command(__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    runs = parser.parse_args().runs
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.strategies.laws import ExactTree, FlatTree

    held = [
        compare(name, tree(3, 4, seed=5), runs) for name, tree in (("toy", ExactTree), ("flat", FlatTree))
    ]
    print("\nparity:", met(all(held)))
    return 0 if all(held) else 1


def compare(name: str, tree: Any, runs: int) -> bool:
    """Print both tables for one tree; whether the selected leaves agree at every N."""
    from abduce.strategies.smc import Potential
    from tests.strategies.laws import enumerate_target, same_distribution_p

    exact = enumerate_target(tree, Potential("product", "odds"))
    print(f"\n{name} tree, {len(exact.texts)} leaves, {runs} runs of each method, argmax_score, multinomial")
    print("p-values of a two-sample χ² test of the leaves its_hub selects against ours:")
    print(" N    reference + extra draw    reference without it    correct form")
    agree = []
    sides = {n: (published(tree, exact, n, runs), ours(tree, n, runs)) for n in (2, 4, 8, 16)}
    for n, (theirs, mine) in sides.items():
        p = {kind: same_distribution_p(theirs["selected"], found) for kind, found in mine.items()}
        agree.append(p["with extra draw"] > 1e-3)
        print(f"{n:2}    {p['with extra draw']:<22.4f}    {p['without']:<20.2g}    {p['correct']:.2g}")
    print("total variation distance to the exact target p · Π odds(r):")
    print(" N    its_hub's final population    the correct form's weighted particles")
    for n, (theirs, _) in sides.items():
        right = correct(tree, n, runs)
        print(f"{n:2}    {distance(theirs['population'], exact):<26.4f}    {distance(right, exact):.4f}")
    return all(agree)


# ---------------------------------------------------------------- our side


def ours(tree: Any, n: int, runs: int) -> dict[str, Counter[str]]:
    """Leaves selected by the reference mode, with and without one more multinomial draw, and by the
    correct form with everything else equal."""
    from abduce.strategies.particle_filter import ParticleFilter
    from abduce.strategies.resampling import multinomial
    from abduce.strategies.toys import drain
    from tests.strategies.laws import TASK

    method = ParticleFilter(
        policy=tree,
        reward=tree,
        particles=n,
        phi="odds",
        potential="reference",
        resampling="multinomial",
        select="argmax_score",
    )
    right = replace(method, potential="product")
    found: dict[str, Counter[str]] = {name: Counter() for name in ("with extra draw", "without", "correct")}
    for seed in range(runs):
        result = drain(method.solve(TASK, seed=seed))
        pool = result.candidates
        log_w = [math.log(c.weight) if c.weight else -math.inf for c in pool]
        kept = [pool[a] for a in multinomial(log_w, Random(seed), n)]
        found["with extra draw"][max(kept, key=lambda c: c.score or 0.0).text] += 1
        found["without"][result.text] += 1
        found["correct"][drain(right.solve(TASK, seed=runs + seed)).text] += 1
    return found


def correct(tree: Any, n: int, runs: int) -> Counter[str]:
    """Summed weights of the leaves in the correct form."""
    from abduce.strategies.particle_filter import ParticleFilter
    from abduce.strategies.search import Search
    from abduce.strategies.toys import drain
    from tests.strategies.laws import TASK

    method = ParticleFilter(policy=tree, reward=tree, particles=n, phi="odds", resampling="multinomial")
    found: Counter[str] = Counter()
    for seed in range(runs):
        population = drain(method.filter(Search(TASK, tree, tree, seed)))
        for node, w in population.weighted:
            found[node.state.text] += w  # type: ignore[assignment]
    return found


def distance(counts: Counter[str], exact: Any) -> float:
    """Total variation distance between relative frequencies and π."""
    total = sum(counts.values())
    return float(sum(abs(counts[x] / total - p) for x, p in zip(exact.texts, exact.pi, strict=True)) / 2)


# ---------------------------------------------------------------- their side


def published(tree: Any, exact: Any, n: int, runs: int) -> dict[str, Counter[str]]:
    """Leaves its_hub selects, and its final populations, from a run in its own environment."""
    python = environment()
    table: dict[str, list[tuple[str, float]]] = {}
    scores: dict[str, float] = {}
    for leaf in exact.leaves:
        state = leaf
        while state.parent is not None:
            scores[state.text] = tree_score(tree, state)
            state = state.parent
            if state.text not in table:
                ways = tree.children(state)
                table[state.text] = [(step.text + STOP * ends(tree, state, step), p) for step, p in ways]
    order = json.dumps({"table": table, "scores": scores, "n": n, "runs": runs})
    answer = subprocess.run(
        [python, __file__, "--worker"], input=order, capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise SystemExit(f"its_hub failed:\n{answer.stderr}")
    return {name: Counter(counts) for name, counts in json.loads(answer.stdout).items()}


def ends(tree: Any, state: Any, step: Any) -> bool:
    return bool(tree.terminal(state.extend(step)))


def tree_score(tree: Any, state: Any) -> float:
    from abduce.strategies.toys import drain

    [score] = drain(tree.score([state]))
    return float(score)


def environment(*modules: str, package: str = PACKAGE) -> str:
    """The python that has its_hub, and modules that `package` brings."""
    python = HOME / "bin" / "python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
    have = subprocess.run(
        [python, "-c", f"import {', '.join(('its_hub', *modules))}"], capture_output=True, check=False
    )
    if have.returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    return str(python)


def worker() -> None:
    """Runs under its_hub's python: reads the order from stdin, prints the counts."""
    import random

    from its_hub.api import AbstractLanguageModel, AbstractProcessRewardModel
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration

    order = json.load(sys.stdin)
    table, scores = order["table"], order["scores"]

    class TreeModel(AbstractLanguageModel):
        async def agenerate(self, messages: Any, stop: Any = None, **_: Any) -> Any:
            """One step for each conversation, drawn from the tree."""
            drawn = []
            for chat in messages:
                ways = table[chat[1].content if len(chat) > 1 else ""]
                [step] = random.choices([s for s, _ in ways], [p for _, p in ways])
                drawn.append({"role": "assistant", "content": step})
            return drawn

    class TreeReward(AbstractProcessRewardModel):
        def score(self, prompt: Any, steps: Any) -> Any:
            """The tree's scores of whole prefixes."""
            return [scores[text] for text in steps]

        async def ascore(self, prompt: Any, steps: Any) -> Any:
            """The same."""
            return self.score(prompt, steps)

    steps = StepGeneration(40, step_token=["\n"], stop_token=STOP, include_stop_str_in_output=True)
    method = ParticleFiltering(steps, TreeReward(), "argmax", "multinomial")

    async def repeat() -> dict[str, Counter[str]]:
        random.seed(order["n"])
        found: dict[str, Counter[str]] = {"selected": Counter(), "population": Counter()}
        for _ in range(order["runs"]):
            result = await method.ainfer(TreeModel(), "toy", order["n"], return_response_only=False)
            found["selected"][result.the_one["content"]] += 1
            found["population"].update(response["content"] for response in result.responses)
        return found

    print(json.dumps(asyncio.run(repeat())))


if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker()
    else:
        sys.exit(main())

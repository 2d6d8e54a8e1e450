"""What becomes of a memory that is fed with wrong concepts: does the audit see it, does decay contain it?

    python benchmarks/memory_hygiene.py [--problems 400] [--seeds 5] [--first 0]

Each problem has one of 20 hidden rules. A solver of known skill looks its problem up and follows what it
finds: it solves 40 % by itself, 90 % shown the right rule of the problem, 10 % shown a wrong one; with both,
either half the time. After each problem what was shown is credited. Stores: `right` holds a rule for each,
`wrong` false ones, `mixed` both; with `decay`, what does not help is retired after every 5 problems (base
rate 40 %).

Printed: the share solved, the lift over no memory on the same problems, what the ablation says of the store,
how many right and wrong entries the audit calls unhelpful or decay has retired, and whether the audit calls
the store harmful.
"""

import asyncio
import random
from dataclasses import dataclass, replace
from statistics import mean

from arguments import command

from abduce.memory.audit import audit, lift
from abduce.memory.decay import Decay, decay
from abduce.memory.in_memory import InMemory
from abduce.serving.entries import Entry, Evidence

RULES, ALONE, RIGHT, WRONG = 20, 0.4, 0.9, 0.1
RULE = Decay(ALONE, shown=2)
TESTS = (Evidence("", "", "tests", 1.0),)


@dataclass(frozen=True)
class Arm:
    """One way to be helped."""

    name: str
    right: bool = False
    wrong: bool = False
    decays: bool = False


ARMS = (
    Arm("right", right=True),
    Arm("wrong", wrong=True),
    Arm("wrong, decay", wrong=True, decays=True),
    Arm("mixed", right=True, wrong=True),
    Arm("mixed, decay", right=True, wrong=True, decays=True),
)


async def run(arm: Arm, n: int, seed: int) -> tuple[dict[str, float], InMemory]:
    """The problems in order, and the store after them. The luck of a problem is the same for all arms."""
    store = InMemory()
    for i in range(RULES):
        if arm.right:
            await store.write([Entry(f"right {i}", f"topic{i} shape{i}: apply rule {i}", evidence=TESTS)])
        if arm.wrong:
            await store.write([Entry(f"wrong {i}", f"topic{i} shape{i}: negate the output", evidence=TESTS)])
    solved: dict[str, float] = {}
    shown = 1
    for p in range(n):
        rng = random.Random(f"{seed}/{p}")
        topic, luck, choice = rng.randrange(RULES), rng.random(), rng.random()
        found = [match.entry.name for match in await store.search(f"topic{topic} shape{topic}", 2)]
        chances = [RIGHT if name.startswith("right") else WRONG for name in found]
        won = luck < (chances[int(choice * len(chances))] if chances else ALONE)
        solved[f"p{p}"] = float(won)
        await store.credit(dict.fromkeys(found, won))
        shown = max(shown, len(found))
        if arm.decays and p % 5 == 4:
            await decay(store, replace(RULE, shown=shown))
    return solved, store


async def called(store: InMemory) -> tuple[int, int, int]:
    """Right and wrong entries that the audit calls unhelpful, or that are retired; and whether it calls the
    store harmful."""
    entries = await store.everything()
    found = audit(entries, rule=RULE)
    names = {name for each in found if each.fault == "unhelpful" for name in each.names}
    names |= {entry.name for entry in entries if entry.status == "retired"}
    harmful = any(each.fault == "harmful" for each in found)
    return sum(name[0] == "r" for name in names), sum(name[0] == "w" for name in names), int(harmful)


async def main() -> None:
    """Print the table."""
    parser = command(__doc__)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    print(f"{options.problems} problems, {options.seeds} seeds, {RULES} rules; solved alone {ALONE:.0%}")
    head = (
        "store",
        "solved",
        "lift",
        "of the first seed",
        "ablation, by seed",
        "retired or unhelpful",
        "harmful",
    )
    print("{:>14}  {:>6}  {:>6}  {:>18}  {:<22}  {:<24}  {}".format(*head))
    for arm in ARMS:
        rates, gains, says, counts, shown = [], [], [], [], ""
        for seed in range(options.first, options.first + options.seeds):
            without, _ = await run(Arm("none"), options.problems, seed)
            solved, store = await run(arm, options.problems, seed)
            got = lift(solved, without)
            rates.append(got.with_memory)
            gains.append(got.mean)
            says.append(got.verdict)
            counts.append(await called(store))
            shown = shown or f"[{got.low:+.3f}, {got.high:+.3f}]"
        told = ", ".join(f"{says.count(each)} × {each}" for each in dict.fromkeys(says))
        right, wrong, harmful = (mean(each) for each in zip(*counts, strict=True))
        of = f"{right:.1f} right, {wrong:.1f} wrong"
        print(f"{arm.name:>14}  {mean(rates):>6.3f}  {mean(gains):>+6.3f}  {shown:>18}  {told:<22}  ", end="")
        print(f"{of:<24}  in {harmful:.0%} of seeds")


if __name__ == "__main__":
    asyncio.run(main())

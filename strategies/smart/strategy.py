"""The episode of SMART: choose a strategy, run it, check; while it is wrong, choose one not tried yet."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from random import Random
from typing import Any, Literal

from ...serving.base import Capability
from ...serving.errors import SearchEnded, UsageError, demand
from ...serving.flow import Failure, Flow, Fork, Hidden, Note, Prompt, Usage
from ...serving.seeds import derive
from ..base import Policy, Result, Strategy, Task, requirements
from ..chain_of_thought import ChainOfThought
from ..conversation import told
from ..policy import StepPolicy
from ..revision import AGAIN
from ..search import Counts
from .arms import arm
from .bandit import Chooser
from .features import features, signature
from .log import Log
from .router import Attempt, Router, rest
from .verify import Verdict, Verifier, Verify, requires

_PAPER = ("cot", "l2m", "pot")


@dataclass(frozen=True, kw_only=True)
class SMART:
    """One arm after another, the likeliest to succeed first. Cost: that of the arms that are run, one where
    nobody says whether it was right.

    `arms`: names (`arms.py`) or a mapping of names to arms. `router`: the file that `abduce smart train`
    writes; without one, and until it has seen enough, arms are chosen evenly. `version`: only its first
    rows, as they were when an earlier run was made. `choose` and its numbers: `bandit.py`. `retry`: how the
    next arm is chosen, "none" for one attempt; `with_history`: it sees the attempts before it.
    `explore_full`: with this probability all arms are run, if there is a check. `budget_tokens`: arms that
    are expected to cost more than is left are not tried. `embed`: m, the numbers that the model's hidden
    state gives φ. `keep_text`: attempts are told with question and solution, which an export needs.
    """

    policy: Policy
    arms: tuple[str, ...] | Mapping[str, Any] = _PAPER
    router: str | None = None
    version: int | None = None
    choose: str = "softmax"
    eps: float = 0.05
    tau: float = 0.05
    alpha: float = 0.5
    v: float = 0.2
    n0: int = 10
    verify: Verify = "checks"
    votes: int = 5
    retry: Literal["policy", "random", "ordered", "none"] = "policy"
    with_history: bool = False
    explore_full: float = 0.0
    budget_tokens: int | None = None
    embed: int = 0
    keep_text: bool = True

    def __post_init__(self) -> None:
        chooser, named = self.chooser, self.named
        demand(bool(named), "arms", self.arms, "name at least one, such as [cot, pot]")
        if chooser.fixed and chooser.fixed not in named:
            raise UsageError(f"choose is {self.choose!r}, and the arms are: {', '.join(named)}.")
        demand(self.votes >= 5, "votes", self.votes, "write at least 5")
        demand(0 <= self.explore_full <= 1, "explore_full", self.explore_full, "write a share, such as 0.1")
        most = self.budget_tokens
        demand(most is None or most > 0, "budget_tokens", most, "write 1 or more, or leave it out")
        demand(self.embed >= 0, "embed", self.embed, "write 0 or more, such as 32")
        demand(self.version is None or self.version >= 0, "version", self.version, "write a count of rows")
        for name, known in {"verify": _VERIFY, "retry": _RETRY}.items():
            demand(getattr(self, name) in known, name, getattr(self, name), f"write {', '.join(known)}")

    @property
    def chooser(self) -> Chooser:
        """The policy over arms."""
        return Chooser(self.choose, self.eps, self.tau, self.alpha, self.v, self.n0)

    @property
    def named(self) -> dict[str, Strategy]:
        """The arms by name. Raises UsageError for one that does not exist."""
        policy = self.policy if type(self.policy) is not Policy else StepPolicy()  # a recipe's stand-in
        given = self.arms if isinstance(self.arms, Mapping) else {name: name for name in self.arms}
        return {name: arm(spec, policy) for name, spec in given.items()}

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """What the arms and the verifier need, and hidden states for `embed`."""
        needed: dict[str, frozenset[Capability]] = dict(requires(self.verify))
        parts = [requirements(each) for each in self.named.values()]
        if self.embed:
            parts.append({"policy": frozenset({"hidden"})})
        for part in parts:
            for role, capabilities in part.items():
                needed[role] = needed.get(role, frozenset()) | capabilities
        return needed

    # ------------------------------------------------------------ the algorithm

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Choose, run, check; again while it is wrong and an arm is left.

        A call or a demanded form is answered in one piece: there is no way to choose.
        """
        if task.in_one_piece:
            return (yield from ChainOfThought(policy=self.policy).solve(task, seed=seed))
        run = Episode(self, task, seed)
        try:
            run.phi = yield from self.context(task)
            run.router = self.learnt(run.phi)
            yield [Note("smart", run.begin())]
            while (name := run.next()) is not None:
                result = yield from self.attempted(run, name)
                run.results.append(result)  # kept, should the budget not reach for its verdict
                verdict = yield from run.verifier.judge(result)
                yield [Note("attempt", run.record(name, verdict))]
        except SearchEnded as end:
            run.stopped = end
        return run.result()

    def context(self, task: Task) -> Flow[tuple[float, ...]]:
        """φ of the task; hand features alone where its hidden state cannot be had."""
        hidden: Sequence[float] = ()
        if self.embed:
            [reply] = yield [Hidden(Prompt.user(told(task)))]
            hidden = () if isinstance(reply, Failure) else reply
        return features(told(task), tag=str(task.metadata.get("tag", "")), hidden=hidden, dims=self.embed)

    def learnt(self, phi: tuple[float, ...]) -> Router:
        """The router of the file. Raises UsageError if it was learnt on other features."""
        name = signature(self.embed)
        if self.router is None or not Log(self.router).exists():
            return Router(name, len(phi))
        router = Log(self.router).router(self.version)
        if router.signature != name:
            raise UsageError(
                f"{self.router} was learnt on other features than embed: {self.embed} gives. Set embed as it "
                f"was, or learn anew from its questions: abduce smart rebuild {self.router} NEW."
            )
        return router

    def attempted(self, run: "Episode", name: str) -> Flow[Result]:
        """One arm, in a node store of its own."""
        task = run.task
        if self.with_history and run.attempts:
            task = replace(task, question=run.with_history())
        flow = run.arms[name].solve(task, seed=derive(run.seed, "arm", name))
        [[result]] = yield [Fork((flow,))]
        if isinstance(result, Failure):
            return Result(None, "", complete=False, diagnostics={"stopped": result.message})
        found: Result = result
        return found


@dataclass(slots=True)
class Episode:
    """One problem: what was chosen from, what was tried, and what came of it."""

    smart: SMART
    task: Task
    seed: int
    arms: dict[str, Strategy] = field(init=False)
    verifier: Verifier = field(init=False)
    phi: tuple[float, ...] = ()
    router: Router = field(init=False)
    pi: Mapping[str, float] = field(default_factory=dict)  # over the arms that could be had
    first: str = ""
    chance: float = 1.0  # with which the arm that is tried now was chosen
    mask: tuple[str, ...] = ()
    full: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    stopped: SearchEnded | None = None

    def __post_init__(self) -> None:
        smart = self.smart
        self.arms = smart.named
        self.verifier = Verifier(smart.verify, smart.votes, smart.policy, self.task, self.seed)

    def with_history(self) -> str:
        """The question, and what the attempts before have written."""
        rows = enumerate(self.results, 1)
        before = "\n\n".join(f"Attempt {i}:\n{result.text.strip()}" for i, result in rows)
        return AGAIN.format(question=self.task.question, attempts=before)

    @property
    def spent(self) -> int:
        """Tokens of all attempts."""
        return sum(attempt.tokens for attempt in self.attempts)

    def rng(self, use: str) -> Random:
        """Chance of one named use; other questions draw otherwise under the same seed."""
        return Random(derive(self.seed, "smart", use, self.task.question))

    def begin(self) -> dict[str, Any]:
        """Mask, and choose the first arm; the choice as the trace tells of it."""
        tools = {tool if isinstance(tool, str) else tool.name for tool in self.task.tools}
        lacking = {
            name for name, each in self.arms.items() if not tools.issuperset(getattr(each, "needs", ()))
        }
        self.mask = tuple(name for name in self.arms if name in lacking or self.dear(name))
        left = [name for name in self.arms if name not in self.mask]
        chosen = self.router.decide(self.phi, left, self.smart.chooser, self.rng("choose"))
        self.pi, self.first = chosen.pi, chosen.arm
        explored = self.rng("explore").random() < self.smart.explore_full
        self.full = explored and self.verifier.there
        told_of = {arm: {"q": chosen.q[arm], "u": chosen.u[arm], "pi": chosen.pi[arm]} for arm in left}
        facts = {"arms": told_of, "mask": list(self.mask), "cold": chosen.cold, "full": self.full}
        return {**facts, "arm": chosen.arm, "version": self.router.version}

    def next(self) -> str | None:
        """The arm to try now: the chosen one first; None at the end of the episode."""
        tried = [attempt.arm for attempt in self.attempts]
        if not tried:
            self.chance = self.pi[self.first]
            return self.first
        last, result = self.attempts[-1], self.results[-1]
        if not result.complete and not self.verifier.there:
            return None
        if not self.full and (last.y != 0 or self.smart.retry == "none"):
            return None
        left = rest({arm: share for arm, share in self.pi.items() if not self.dear(arm)}, tried)
        if not left:
            return None
        if self.smart.retry == "ordered" or self.full:
            self.chance = 1.0
            return next(arm for arm in self.arms if arm in left)
        if self.smart.retry == "random":
            left = dict.fromkeys(left, 1 / len(left))
        [arm] = self.rng(f"retry {len(tried)}").choices(list(left), list(left.values()))
        self.chance = left[arm]
        return arm

    def dear(self, arm: str) -> bool:
        """Whether an arm is expected to cost more than is left."""
        most, expected = self.smart.budget_tokens, self.router.expected_tokens(arm)
        return most is not None and (self.spent >= most or (expected or 0) > most - self.spent)

    def record(self, name: str, verdict: Verdict) -> dict[str, Any]:
        """The attempt, as it is learnt from and as the trace tells of it."""
        smart, question, result = self.smart, told(self.task), self.results[-1]
        if not result.complete and not verdict.y:
            verdict = Verdict()  # cut short: that it is wrong says nothing of the arm
        attempt = Attempt(
            arm=name,
            phi=self.phi,
            signature=signature(smart.embed),
            arms=tuple(self.arms),
            pi=dict(sorted(self.pi.items())),
            propensity=self.chance,
            question=question if smart.keep_text else "",
            prompt=blake2b(question.encode(), digest_size=8).hexdigest(),
            task=str(self.task.metadata.get("tag", "")),
            mask=self.mask,
            attempt=len(self.attempts) + 1,
            estimated=smart.chooser.estimated,
            history=smart.with_history and bool(self.attempts),
            full=self.full,
            y=verdict.y,
            kind=verdict.kind,
            c=verdict.c,
            tokens=int(result.diagnostics.get("tokens", 0)),
            answer=result.answer if smart.keep_text else None,
            text=str(result.diagnostics.get("written", result.text)) if smart.keep_text else "",
            version=self.router.version,
            seed=self.seed,
        )
        self.attempts.append(attempt)
        return asdict(attempt)

    def result(self) -> Result:
        """The first attempt that was right; else the first that has an answer."""
        pairs = list(zip(self.attempts, self.results, strict=False))
        right = next((result for attempt, result in pairs if attempt.y), None)
        answered = [result for result in self.results if result.answer is not None]
        best = right or next(iter(answered or self.results), Result(None, "", complete=False))
        facts: dict[str, Any] = {
            f.name: sum(int(result.diagnostics.get(f.name, 0)) for result in self.results)
            for f in fields(Counts)
        }
        facts["nodes"] = 1 + sum(max(0, int(r.diagnostics.get("nodes", 1)) - 1) for r in self.results)
        facts |= {"arm": next((a.arm for a, r in pairs if r is best), None), "solved": right is not None}
        facts["attempts"] = [asdict(attempt) for attempt in self.attempts]
        failures = [reason for result in self.results for reason in result.diagnostics.get("failures", ())]
        cut = [best] if right else [*self.results, best]  # what was cut short might have been right
        reasons = [r.diagnostics.get("stopped", "no arm could be tried") for r in cut if not r.complete]
        stopped = self.stopped or next(iter(reasons), None)
        if failures:
            facts["failures"] = list(dict.fromkeys(failures))
        if stopped is not None:
            facts["stopped"] = str(stopped)
        candidates = tuple(candidate for result in self.results for candidate in result.candidates)
        return Result(best.answer, best.text, candidates, stopped is None, Usage(), facts)


_VERIFY = ("checks", "consistency", "judge", "none")
_RETRY = ("policy", "random", "ordered", "none")

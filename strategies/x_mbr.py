"""X-MBR, cross-lingual minimum Bayes risk: the answer that answers in another language agree with, too.

A model's errors in two languages are not the same, so what it also says in the other language is likelier
right. Candidates stay in the language asked for; answers in another one are evidence only, and a judge
compares by content. Without foreign evidence it is plain MBR.

    y* = argmax_{y ∈ Y} 1/(|E| − 1) Σ_{e ∈ E, e ≠ y} U(y, e),   E = Y ∪ E_x,  |Y| = N,  |E_x| = M

Source: When Life Gives You Samples, arXiv 2506.20544. Deviates: the prompts are written anew; of foreign
evidence each is compared in one order, the same for all candidates, so that a judge's liking for a position
moves them all alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..serving.base import Capability
from ..serving.errors import UsageError
from ..serving.flow import Completion, Failure, Flow, Generate, Note, Prompt, Sampling
from ..serving.seeds import derive
from .base import State, Task
from .chops import filled, shown_text
from .conversation import told
from .hedged import Choice, Hedged, ask, tell_failure, tempered, unjudged
from .languages import UNKNOWN, name_of
from .mbr import chrf, expected, same
from .search import Node, Search

_SAMPLING = Sampling(temperature=0.0, max_tokens=256)


@dataclass(frozen=True, kw_only=True)
class XMBR(Hedged):
    """A hedged pool of N = `n`, and M = `foreign` answers in another language: English, or Chinese where the
    question is English. Cost: N + M generations, and with `utility: judge` N(N − 1 + M) short calls.

    `utility`: a "judge" prefers one of two texts (open-ended tasks); "exact" counts equal answers (numbers,
    choices); "chrf" compares texts letter by letter (translations; of one language only). `evidence`:
    "instruct" asks for the answer in the other language, "translate" translates the question first. Foreign
    evidence is left out where the language is unknown, for a demanded form, for code, and where the task's
    `metadata["kind"]` is "translation" or "code". `judge` is the role that compares; the policy's own model
    plays it unless the run names another.
    """

    foreign: int = 3
    utility: Literal["judge", "exact", "chrf"] = "judge"
    evidence: Literal["instruct", "translate"] = "instruct"
    judge: str = "judge"
    sampling: Sampling = _SAMPLING

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.foreign < 0:
            raise UsageError(f"foreign must not be below 0, got {self.foreign}.")
        for name, known in (("utility", ("judge", "exact", "chrf")), ("evidence", ("instruct", "translate"))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.utility == "chrf" and self.foreign:
            raise UsageError("chrf cannot compare two languages. Write foreign=0, or utility='judge'.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """The judge writes text."""
        return {self.judge: frozenset({"generate"})} if self.utility == "judge" else {}

    def choose(self, search: Search, pool: Sequence[Node], language: str) -> Flow[Choice]:
        """The candidate of largest expected utility; the first of equals, which is the greedy one."""
        answers = [self.policy.answer(node.state) for node in pool]
        if self.utility == "exact" and any(answer is not None for answer in answers):
            pool = [node for node, answer in zip(pool, answers, strict=True) if answer is not None]
        states = [node.state for node in pool]
        if len({self._content(state) for state in states}) == 1:
            return Choice(pool[0], {"foreign": 0})
        why = self.alone(search.task, states, language)
        beside = [] if why else (yield from self.abroad(search, language))
        facts = {"foreign": len(beside), **({"without_foreign": why} if why else {})}
        if self.utility == "judge":
            own, across, judged = yield from self.preferences(search, states, beside)
            if judged is None:
                choice = unjudged(search, pool)
                return Choice(choice.node, facts | choice.facts)
            facts |= judged
        else:
            own = [[self._alike(y, e) for e in states] for y in states]
            across = [[self._alike(y, e) for e in beside] for y in states]
            facts["utilities_asked"] = len(states) * (len(states) - 1) // 2 + len(states) * len(beside)
        utilities = expected(own, across if beside else ())
        facts["utilities"] = [round(u, 6) for u in utilities]
        yield [Note("mbr", {"nodes": [node.id for node in pool], **facts})]
        return Choice(pool[max(range(len(pool)), key=utilities.__getitem__)], facts)

    def _content(self, state: State) -> object:
        return self.policy.answer(state) if self.utility == "exact" else shown_text(state)

    def _alike(self, y: State, e: State) -> float:
        if self.utility == "chrf":
            return chrf(shown_text(y), shown_text(e))
        return same(self.policy.answer(y), self.policy.answer(e))

    # ------------------------------------------------------------ evidence in another language

    def alone(self, task: Task, states: Sequence[State], language: str) -> str:
        """Why there is to be no foreign evidence; "" if there is."""
        if not self.foreign:
            return "foreign is 0"
        if language == UNKNOWN:
            return "the language is not known"
        if task.in_one_piece:
            return "the task demands a form"
        if (kind := str(task.metadata.get("kind", ""))) in ("translation", "code"):
            return f"the task is {kind}"
        code = sum("```" in state.text for state in states)
        return "the answers are code" if 2 * code > len(states) else ""

    def abroad(self, search: Search, language: str) -> Flow[list[State]]:
        """M answers in the other language, at its temperature; what fails is left out."""
        other = "zh" if language == "en" else "en"
        question = search.task.question
        if self.evidence == "translate":
            prompt = Prompt.user(filled(TRANSLATE, {"language": name_of(other), "question": question}))
            seed = derive(search.seed, "translate")
            [reply] = yield from ask(
                search, [Generate(prompt, 1, self.sampling, seed, model=self.judge_role)]
            )
            if not isinstance(reply, Failure):
                question = reply[0].content.strip() or question
        asked = filled(ABROAD, {"language": name_of(other), "question": question})
        lineage = derive(search.seed, "foreign")
        root = State(replace(search.task, question=asked), lineage=lineage)
        policy = tempered(self.policy, self.temperature(other), self.min_p)
        outcomes = yield from policy.complete(root, self.foreign, seed=lineage)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                tell_failure(search, outcome)
        found = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        search.counts.tokens += sum(state.n_tokens for state in found)
        yield [Note("foreign", {"language": other, "texts": [state.text for state in found]})]
        return found

    @property
    def judge_role(self) -> str:
        """Who translates: the judge, or the policy's model where nobody judges."""
        return self.judge if self.utility == "judge" else "policy"

    # ------------------------------------------------------------ a judge's preferences

    def preferences(
        self, search: Search, states: Sequence[State], beside: Sequence[State]
    ) -> Flow[tuple[list[list[float]], list[list[float]], dict[str, int] | None]]:
        """U(y, e) against the pool, in both orders, and against foreign evidence; None for the facts if the
        judge cannot be had. Equal texts tie, and no pair of texts is asked about twice."""
        texts, foreign = list(map(shown_text, states)), list(map(shown_text, beside))
        pairs = [(a, b) for a in texts for b in texts if a != b]
        for j, e in enumerate(foreign):  # which comes first depends on the evidence, not on the candidate
            pairs += [(y, e) if j % 2 == 0 else (e, y) for y in texts if y != e]
        pairs = list(dict.fromkeys(pairs))
        replies = yield from ask(search, [self._compared(search, a, b) for a, b in pairs])
        heard = {pair: preferred(reply) for pair, reply in zip(pairs, replies, strict=True)}
        if all(isinstance(reply, Failure) for reply in replies):
            return [], [], None
        known = {pair: 0.5 if u is None else u for pair, u in heard.items()}  # what says nothing is a tie

        def u(y: str, e: str) -> float:
            said = [known[y, e]] if (y, e) in known else []
            said += [1 - known[e, y]] if (e, y) in known else []
            return sum(said) / len(said) if said else 0.5

        n, m = len(texts), len(foreign)
        facts = {
            "judge_calls": len(pairs),
            "utilities_asked": n * (n - 1 + m),
            "unread": sum(v is None for v in heard.values()),
        }
        return [[u(y, e) for e in texts] for y in texts], [[u(y, e) for e in foreign] for y in texts], facts

    def _compared(self, search: Search, a: str, b: str) -> Generate:
        prompt = Prompt.user(filled(COMPARE, {"question": told(search.task), "a": a, "b": b}))
        return Generate(prompt, 1, self.sampling, derive(search.seed, "compare", a, b), model=self.judge)


def preferred(reply: tuple[Completion, ...] | Failure) -> float | None:
    """1 if the last line says A, 0 for B, ½ for a tie; None if it says none of these."""
    if isinstance(reply, Failure):
        return None
    last = reply[0].content.rstrip().rpartition("\n")[2].strip(" *.'\"").casefold()
    last = last.removeprefix("better:").removeprefix("answer").strip(" *.:'\"()")
    return {"a": 1.0, "b": 0.0, "tie": 0.5}.get(last)


# ---------------------------------------------------------------- prompts

COMPARE = (
    "Task:\n{question}\n\n### Answer A\n{a}\n\n### Answer B\n{b}\n\n"
    "Which is the better answer, by its content? The answers may be in different languages; that alone is no "
    "reason for either. Think briefly, then write one last line: A, B or tie."
)
ABROAD = "Answer the following task in {language}, whatever language it is written in.\n\n{question}"
TRANSLATE = "Translate the following text into {language}. Write the translation only.\n\n{question}"

"""Sequential revision: let a model find the first wrong step of its solution, and write it anew.

The first version is an ordinary solution. Each round asks for feedback, which ends the revising if it
finds nothing wrong, and then for a new version in the same format. Without feedback the model is only
shown its earlier attempts and answers again.

    y_0 ~ p(· | q),   c_t ~ p(· | q, y_{t−1}),   y_t ~ p(· | q, y_{t−1}, c_t),   t = 1 … R

Source: Self-Refine, arXiv 2303.17651; Scaling LLM Test-Time Compute Optimally, arXiv 2408.03314; the form
of arXiv 2502.07191. Deviates: only a last line that says nothing but "no error" ends it, not these words
anywhere in the feedback; and versions without an answer do not win over those with one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..serving.base import Capability
from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Completion, Failure, Flow, Generate, Note, Prompt, Sampling
from ..serving.seeds import derive
from .base import Policy, Result, State, Step, Task
from .conversation import told
from .search import Node, Search
from .voting import poll

_SAMPLING = Sampling(temperature=0.7, max_tokens=256)  # temperature of the suite, arXiv 2502.07191


@dataclass(frozen=True, kw_only=True)
class Revision:
    """R = `rounds` revisions; cost: 1 + 2R calls at most, 1 + R without feedback.

    `select`: the last version, or the most frequent answer of all. `critic` is the role that gives
    feedback; the policy's own model plays it unless the run names another.
    """

    policy: Policy
    rounds: int = 3
    feedback: bool = True
    select: Literal["last", "vote"] = "last"
    critic: str = "critic"
    sampling: Sampling = _SAMPLING

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise UsageError(f"rounds must not be below 0, got {self.rounds}.")
        if self.select not in ("last", "vote"):
            raise UsageError(f"select must be 'last' or 'vote', got {self.select!r}.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """The critic writes text."""
        return {self.critic: frozenset({"generate"})} if self.feedback else {}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Write, then revise until nothing is wrong or the rounds are over."""
        search = Search(task, self.policy, None, seed)
        stopped = None
        try:
            yield from search.complete(search.root, 1)
            for t in range(1, self.rounds + 1):
                if not search.terminals or not (yield from self.revise(search, t)):
                    break
        except SearchEnded as end:
            stopped = end
        best = self.choose(search) or (yield from search.finalise(search.root if stopped else None))
        failed = next(iter(search.failures), None)  # a failed call ends the revising
        return search.result(best, stopped=stopped or failed, versions=len(search.terminals))

    def revise(self, search: Search, t: int) -> Flow[bool]:
        """One round; false if there is nothing to mend, or no new version could be had."""
        versions = [node.state.text.strip() for node in search.terminals]
        words = {"question": search.task.question, "attempt": versions[-1]}
        words["attempts"] = "\n\n".join(f"Attempt {i}:\n{text}" for i, text in enumerate(versions, 1))
        if self.feedback:
            told_all = words | {"question": told(search.task)}
            comment = yield from self.criticise(told_all, derive(search.seed, "feedback", t))
            if isinstance(comment, Failure):
                search.failures.append(comment.message)
                return False
            yield [Note("feedback", {"version": t, "text": comment})]
            if finds_nothing(comment):
                return False
            words["feedback"] = comment
        question = _filled(REVISE if self.feedback else AGAIN, words)
        asked = State(replace(search.task, question=question), lineage=derive(search.seed, "revise", t))
        outcomes = yield from self.policy.complete(asked, 1, seed=search.seed)
        children = yield from search.record(search.root, [_as_one_step(outcome) for outcome in outcomes])
        return bool(children)

    def criticise(self, words: dict[str, str], seed: int) -> Flow[str | Failure]:
        """Feedback on the last version."""
        prompt = Prompt.user(_filled(FEEDBACK, words))
        [reply] = yield [Generate(prompt, 1, self.sampling, seed, model=self.critic)]
        if isinstance(reply, Failure):
            return reply
        drawn: Completion = reply[0]
        return drawn.content.strip()

    def choose(self, search: Search) -> Node | None:
        """The last version, or the winner of the vote; one without an answer only if there is no other."""
        versions = search.terminals
        answers = [self.policy.answer(node.state) for node in versions]
        if self.select == "vote" and (winner := poll(answers).winner) is not None:
            return versions[answers.index(winner)]
        answered = [node for node, answer in zip(versions, answers, strict=True) if answer is not None]
        return (answered or versions)[-1] if versions else None


def finds_nothing(feedback: str) -> bool:
    """Whether the last line says that there is no error, and nothing else.

    >>> finds_nothing("Each step holds.\\nNo error."), finds_nothing("There is no error in step 1, but in 2.")
    (True, False)
    """
    last = feedback.rstrip().rpartition("\n")[2]
    return re.fullmatch(r"\W*no errors?\W*", last, re.IGNORECASE) is not None


def _as_one_step(outcome: State | Failure) -> Step | Failure:
    """A solution written from another prompt, as the single step of a version."""
    if isinstance(outcome, Failure):
        return outcome
    cut = outcome.step is not None and outcome.step.cut
    return Step(outcome.text, outcome.ids, n_tokens=outcome.n_tokens, last=True, cut=cut)


def _filled(template: str, words: dict[str, str]) -> str:
    """In one pass, so that a text with {braces} in it stays as it is."""
    return re.sub(r"\{(question|attempts?|feedback)\}", lambda place: words[place[1]], template)


# ---------------------------------------------------------------- prompts

FEEDBACK = (
    "Question:\n{question}\n\nProposed solution:\n{attempt}\n\n"
    "Check the solution step by step. Name the first step that is wrong and say what is wrong with it. "
    "If every step is right, write one last line that says only: No error"
)
REVISE = (
    "{question}\n\nAn earlier solution:\n{attempt}\n\nWhat a reviewer says of it:\n{feedback}\n\n"
    "Write the whole solution anew, with what is wrong put right."
)
AGAIN = "{question}\n\nEarlier attempts, which may be wrong:\n\n{attempts}\n\nAnswer the question again."

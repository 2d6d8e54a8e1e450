"""The language-model policy: one prompt, one reasoning unit at a time.

    policy("cot")                                     a named one
    policy({"preset": "cot", "max_steps": 6})         a named one, with other settings
    StepPolicy(prompt="Q: {question}\\nA:", chat=False)  one of your own

A reasoning unit ends at `delimiter`. What a step holds besides its text (ids, log-probs) is as the engine
drew it, so a continuation is sent back token by token and log-probs belong to the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from ..serving.base import Capability
from ..serving.errors import UnknownName, UsageError
from ..serving.flow import (
    Completion,
    Failure,
    Flow,
    Generate,
    LogLikelihood,
    LogProb,
    Message,
    Prompt,
    Sampling,
)
from ..serving.seeds import derive
from .answers import EXTRACTORS, canon, extract, stated
from .base import Outcome, Policy, Proposal, State, Step, Task, stalled
from .conversation import canonical, turns

PROMPTS: dict[str, str] = {
    "plain": "{question}",
    "cot": (
        "{question}\n\nSolve this step by step, with a blank line between steps. "
        "Write the last line as: The answer is <answer>."
    ),
    "reflect": (
        "{question}\n\nSolve this in numbered steps, with a blank line between steps. End every step with "
        "one line that says whether the step is correct, and if not, mend it in the next step. "
        "Write the last line as: The answer is <answer>."
    ),
    "boxed": (
        "{question}\n\nSolve this step by step, with a blank line between steps. "
        "Put the final answer within \\boxed{}."
    ),
    "choice": (
        "{question}\n\nThink step by step, with a blank line between steps. "
        "Write the last line as: The answer is (<letter>)."
    ),
    "few_shot": "Question: {question}\nAnswer:\n",
}
"""Prompt templates by name; the choices of a task, if any, stand below its question."""

_SAMPLING = Sampling()
_FORCED_TOKENS = 32  # for an answer on demand


@dataclass(frozen=True, kw_only=True)
class StepPolicy(Policy):
    r"""Draws steps from a language model.

    `prompt`: a name of `PROMPTS` or a template with `{question}`. With `chat` it is a user's message,
    after `examples` (question, solution) as earlier turns; without, `examples` and question are written one
    after the other with `separator` between them, and the model goes on from there: the better way with
    small models.

    A step ends at `delimiter` (None: one step is a whole solution, as are those of `complete`) and holds at
    most `sampling.max_tokens` tokens. A solution ends with the model's turn, at one of the marks in `stop`
    (which is left out of its text, though not of its ids), once it states its answer (`answers.stated`),
    after `max_steps` steps, or after three empty ones. `answer` is the kind of answer (`answers.extract`).

    A task with `messages` is sent as a chat, without `examples`, the prompt's words in the place of its last
    user message. One that offers tools or demands a form is solved in one step, whose answer is the call or
    the text in canonical form; a demanded form stands for the prompt's words.
    """

    prompt: str = "cot"
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    separator: str = "\n\n"
    chat: bool = True
    delimiter: str | None = "\n\n"
    stop: tuple[str, ...] = ()
    answer_kind: str = "number"
    cue: str = "\nThe answer is"
    max_steps: int = 40
    sampling: Sampling = _SAMPLING
    max_solution_tokens: int = 512
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS and "{question}" not in self.prompt:
            if "{" in self.prompt or " " in self.prompt.strip():
                raise UsageError(
                    f"The prompt {self.prompt!r} has no place for the question. Write {{question}} in it."
                )
            raise UnknownName("prompt", self.prompt, PROMPTS)
        if self.answer_kind not in EXTRACTORS:
            raise UnknownName("kind of answer", self.answer_kind, EXTRACTORS)
        if self.delimiter == "" or "" in self.stop:
            raise UsageError(
                "delimiter and stop marks must not be empty. Write delimiter=None for whole solutions."
            )
        if self.max_steps < 1 or self.max_solution_tokens < 1:
            raise UsageError(
                f"max_steps and max_solution_tokens must be at least 1, got {self.max_steps} and "
                f"{self.max_solution_tokens}."
            )
        if not self.chat and self.system is not None:
            raise UsageError(
                "A completion prompt (chat=False) has no system message. Put it into the prompt."
            )

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:  # type: ignore[override]
        """What the engine must be able to do."""
        needed: set[Capability] = {"generate", "logprobs"} if self.logprobs else {"generate"}
        return {"policy": frozenset(needed)}

    # ------------------------------------------------------------ drawing

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """`counts[i]` steps after `states[i]`: one request for each state, all in one batch."""
        stop = self.stop if self.delimiter is None else (*self.stop, self.delimiter)
        sampling = replace(self.sampling, stop=stop)
        rows = list(zip(states, counts, seeds, strict=True))
        batch = [
            self._generate(state, n, seed, self._sampled(state, sampling)) for state, n, seed in rows if n
        ]
        replies = iter((yield batch) if batch else ())
        return [
            _proposals(next(replies), n, partial(self._step, state.task)) if n else [] for state, n, _ in rows
        ]

    def complete(self, state: State, n: int, *, seed: int, first_draw: int = 0) -> Flow[list[Outcome]]:
        """`n` whole solutions in one request, each a single step after `state`."""
        here = derive(seed, state.lineage, first_draw)
        [reply] = yield [self._generate(state, n, here, self._of_a_whole(state))]
        drawn = _proposals(reply, n, partial(self._whole, state.task))
        return [p if isinstance(p, Failure) else state.extend(p, first_draw + i) for i, p in enumerate(drawn)]

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        """One last step each: the cue for an answer, and what the model says to it. Its tokens are partly
        ours, so it has no ids and no log-probability. Nothing is put behind a text that has reached the
        task's `max_tokens`, or has not the form that the task demands."""
        forced: list[Proposal] = [Failure("engine", "no answer can be put behind this text")] * len(states)
        able = [i for i, state in enumerate(states) if _can_go_on(state)]
        if able:
            ask = self._whole_each if states[able[0]].task.in_one_piece else self._cued
            drawn = yield from ask([states[i] for i in able], [seeds[i] for i in able])
            for i, proposal in zip(able, drawn, strict=True):
                forced[i] = proposal
        return forced

    def logp(
        self, states: Sequence[State], continuations: Sequence[Sequence[Step]]
    ) -> Flow[list[float | Failure]]:
        """log p(the tokens of `continuations[i]` | `states[i]`), natural log, as `propose` draws them.

        The end of the model's turn, which has no token here, is not counted. Raises UsageError unless
        steps are drawn from the model's own distribution, the only one whose log-probs engines give.
        """
        if (self.sampling.temperature, self.sampling.top_p, self.sampling.top_k) != (1.0, 1.0, 0):
            raise UsageError(
                f"The log-probability of a step is known only at temperature 1 without top-p and top-k, got "
                f"{self.sampling.temperature:g}, {self.sampling.top_p:g} and {self.sampling.top_k}. Write "
                "sampling={temperature: 1} in the policy, or leave out ancestor_sampling."
            )
        batch = [self._log_prob(*row) for row in zip(states, continuations, strict=True)]
        replies: Sequence[LogLikelihood | Failure] = (yield batch) if batch else ()
        return [reply if isinstance(reply, Failure) else reply.total for reply in replies]

    # ------------------------------------------------------------ reading

    def terminal(self, state: State) -> bool:
        """Whether the model ended its turn, stated an answer, ran out of steps or of things to say."""
        if state.step is None:
            return False
        if state.step.last or state.depth >= self.max_steps:
            return True
        if (most := state.task.max_tokens) is not None and state.n_tokens >= most:
            return True
        before = state.parent.step.text if state.parent is not None and state.parent.step is not None else ""
        told = not state.step.cut and stated(self.answer_kind, before + state.step.text)
        return told or stalled(state)

    def answer(self, state: State) -> str | None:
        """The canonical answer; of kind "text", the text as it is."""
        if state.task.in_one_piece:
            found = canonical(state.task, state.text)
            if found is not None or state.task.constraint is not None:
                return found
        found = extract(self.answer_kind, state.text, state.task.choices)
        if found is None and state.task.offers:
            return state.text.strip() or None  # an answer in words, where a call might have stood
        return found if found is None or self.answer_kind == "text" else canon(found) or None

    def prompt_for(self, state: State, prefix: str | None = None) -> Prompt:
        """What the model is sent to go on from `state`, or from `prefix` in place of the state's text."""
        ids = state.ids if prefix is None else ()
        prefix = state.text if prefix is None else prefix
        task = state.task
        if task.messages or task.in_one_piece:
            plain = _worded(task)
            said = turns(task, plain if task.constraint is not None else self._ask(plain), self.system)
            return Prompt(said, prefix, ids, task.offers)
        question = self._ask(_worded(task))
        if not self.chat:
            shots = "".join(self._ask(q) + solution + self.separator for q, solution in self.examples)
            return Prompt(prefix=shots + question + prefix)  # its ids are not known: that of the shots aren't
        shown = [Message("system", self.system)] if self.system is not None else []
        for q, solution in self.examples:
            shown += [Message("user", self._ask(q)), Message("assistant", solution)]
        return Prompt((*shown, Message("user", question)), prefix, ids)

    # ------------------------------------------------------------ parts

    def _ask(self, question: str) -> str:
        return PROMPTS.get(self.prompt, self.prompt).replace("{question}", question)

    def _generate(self, state: State, n: int, seed: int, sampling: Sampling) -> Generate:
        task = state.task
        prompt = self.prompt_for(state)
        if task.constraint is None and not task.extra:
            return Generate(prompt, n, sampling, seed, self.logprobs)
        return Generate(
            prompt, n, sampling, seed, self.logprobs, constraint=task.constraint, extra=task.extra
        )

    def _sampled(self, state: State, stepwise: Sampling) -> Sampling:
        """How the step after a state is drawn: `stepwise`, unless the task sets bounds of its own."""
        task = state.task
        if task.in_one_piece:
            return self._of_a_whole(state)
        if not task.stop and task.max_tokens is None:
            return stepwise
        left = stepwise.max_tokens if task.max_tokens is None else max(1, task.max_tokens - state.n_tokens)
        return replace(stepwise, stop=(*task.stop, *stepwise.stop), max_tokens=min(stepwise.max_tokens, left))

    def _of_a_whole(self, state: State) -> Sampling:
        """How the whole rest of a solution is drawn. Marks of the preset would cut an answer of a form."""
        task = state.task
        cap = self.sampling.max_tokens if self.delimiter is None else self.max_solution_tokens
        if task.in_one_piece:
            cap = max(cap, self.max_solution_tokens)  # a preset for short answers knows nothing of forms
        if task.max_tokens is not None:
            cap = max(1, task.max_tokens - state.n_tokens)
        stop = task.stop if task.in_one_piece else (*task.stop, *self.stop)
        return replace(self.sampling, stop=stop, max_tokens=cap)

    def _whole_each(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        drawn = yield from self.propose(states, [1] * len(states), seeds)
        return [proposals[0] for proposals in drawn]

    def _cued(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        cues = [self.cue.lstrip("\n") if not s.text or s.text.endswith("\n") else self.cue for s in states]
        batch = []
        for state, cue, seed in zip(states, cues, seeds, strict=True):
            task = state.task
            left = _FORCED_TOKENS if task.max_tokens is None else task.max_tokens - state.n_tokens
            sampling = replace(
                self.sampling,
                stop=(*task.stop, *self.stop, "\n"),
                max_tokens=min(_FORCED_TOKENS, left),
            )
            prompt = self.prompt_for(state, state.text + cue)
            batch.append(Generate(prompt, 1, sampling, seed, extra=task.extra))
        replies = yield batch
        forced: list[Proposal] = []
        for state, cue, reply in zip(states, cues, replies, strict=True):
            [drawn] = _proposals(reply, 1, partial(self._whole, state.task))
            if not isinstance(drawn, Failure):
                drawn = replace(drawn, text=cue + drawn.text, ids=(), logp=None)
            forced.append(drawn)
        return forced

    def _log_prob(self, state: State, steps: Sequence[Step]) -> LogProb:
        known = all(step.ids for step in steps)
        ids = tuple(token for step in steps for token in step.ids) if known else ()
        return LogProb(self.prompt_for(state), "".join(step.text for step in steps), ids)

    def _step(self, task: Task, drawn: Completion) -> Step:
        """A step is the last unless it ends at the delimiter, or was cut for length with something said."""
        if self.delimiter is None or task.in_one_piece or (drawn.stop and drawn.stop in task.stop):
            return self._whole(task, drawn)
        if drawn.finish == "stop" and drawn.stop in (self.delimiter, ""):
            return _as_step(drawn, drawn.text, last=False)
        if drawn.finish == "length":
            return _as_step(drawn, drawn.text, last=not drawn.text.strip(), cut=True)
        return self._whole(task, drawn)

    def _whole(self, task: Task, drawn: Completion) -> Step:
        ends = drawn.stop in self.stop or drawn.stop in task.stop
        cut = drawn.finish == "length"
        return _as_step(drawn, drawn.content if ends else drawn.text, last=True, cut=cut)


def _can_go_on(state: State) -> bool:
    task = state.task
    if task.in_one_piece and state.text:
        return False
    return task.max_tokens is None or state.n_tokens < task.max_tokens


def _proposals(reply: Any, n: int, read: Any) -> list[Proposal]:
    """`n` proposals of a reply: its samples, and failures for those that a budget had no room for."""
    if isinstance(reply, Failure):
        return [reply] * n
    drawn: list[Proposal] = [read(completion) for completion in reply[:n]]
    missing = n - len(drawn)
    return drawn + [Failure("budget", f"{n} samples were asked for, {len(drawn)} could be had")] * missing


def _as_step(drawn: Completion, text: str, *, last: bool, cut: bool = False) -> Step:
    logp = sum(drawn.logprobs) if drawn.logprobs else None
    return Step(text, drawn.ids, logp, drawn.n_tokens or len(drawn.ids), last=last, cut=cut)


def _worded(task: Task) -> str:
    """The question with its choices lettered below it."""
    letters = (f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(task.choices))
    return "\n".join((task.question.strip(), *letters))


# ---------------------------------------------------------------- by name

_WORKED = (
    (
        "A box holds 6 pens. How many pens are in 4 boxes?",
        "Each box holds 6 pens.\n4 boxes hold 4 * 6 = 24 pens.\nThe answer is 24.",
    ),
    (
        "Mia had 20 dollars. She bought 3 books at 4 dollars each. How much is left?",
        "The books cost 3 * 4 = 12 dollars.\nMia has 20 - 12 = 8 dollars left.\nThe answer is 8.",
    ),
    (
        "Tom runs 5 km a day. How far does he run in 2 weeks?",
        "Two weeks are 2 * 7 = 14 days.\nIn 14 days he runs 14 * 5 = 70 km.\nThe answer is 70.",
    ),
)
_WRITTEN_PRODUCTS = (
    ("14 x 3", "= 10 x 3 + 4 x 3\n= 30 + 12\nThe answer is 42"),
    ("27 x 6", "= 20 x 6 + 7 x 6\n= 120 + 42\nThe answer is 162"),
    ("36 x 4", "= 30 x 4 + 6 x 4\n= 120 + 24\nThe answer is 144"),
)
POLICIES: dict[str, StepPolicy] = {
    "cot": StepPolicy(),
    "plain": StepPolicy(
        prompt="plain", delimiter=None, answer_kind="text", sampling=Sampling(max_tokens=512)
    ),
    "reflect": StepPolicy(prompt="reflect"),
    "math": StepPolicy(prompt="boxed", answer_kind="boxed", cue="\nThe answer is \\boxed{"),
    "few_shot": StepPolicy(  # for small and base models: worked examples, a line is a step
        prompt="few_shot",
        examples=_WORKED,
        chat=False,
        delimiter="\n",
        stop=("Question:",),
        max_steps=10,
        sampling=Sampling(max_tokens=64),
        max_solution_tokens=192,
    ),
    "product": StepPolicy(  # "7 x 8 =": examples outside the factors 2 to 12 that are asked for
        prompt="{question}",
        examples=(("14 x 3 =", " 42"), ("13 x 6 =", " 78")),
        separator="\n",
        chat=False,
        delimiter=None,
        stop=("\n",),
        sampling=Sampling(temperature=1.2, max_tokens=8),  # diverse: what fails is drawn again
    ),
    "long_product": StepPolicy(  # "24 x 3": the written method, a line is a step
        prompt="{question}\n",
        examples=_WRITTEN_PRODUCTS,
        chat=False,
        delimiter="\n",
        max_steps=6,
        sampling=Sampling(max_tokens=24),
        max_solution_tokens=64,
    ),
    "words": StepPolicy(answer_kind="words"),
    "choice": StepPolicy(prompt="choice", answer_kind="choice", cue="\nThe answer is ("),
}
"""Presets by name."""


def policy(spec: str | Mapping[str, Any]) -> Policy:
    """A preset by name, or `{"preset": name, field: value, …}` with some of its fields replaced; a mapping
    for `sampling` replaces only what it names. "glimp_router" and "acting" are around another, `policy`, and
    have the fields of GlimpRouter and Acting. Raises UnknownName for unknown presets and fields."""
    changes: dict[str, Any] = {"preset": spec} if isinstance(spec, str) else dict(spec)
    name = changes.pop("preset", "cot")
    if name == "glimp_router":
        from .glimp_router import glimp_router

        return glimp_router(changes)
    if name == "acting":
        from .acting import acting

        return acting(changes)
    if name not in POLICIES:
        raise UnknownName("policy", name, POLICIES)
    preset = POLICIES[name]
    known = {f.name for f in fields(preset)}
    for key, value in changes.items():
        if key not in known:
            raise UnknownName(f"parameter of the policy {name}", key, known)
        if key == "sampling" and isinstance(value, Mapping):
            changes[key] = _resampled(preset.sampling, value)
        elif key == "examples":
            changes[key] = tuple((str(q), str(solution)) for q, solution in value)
        elif key == "stop":
            changes[key] = (value,) if isinstance(value, str) else tuple(value)
    return replace(preset, **changes)


def _resampled(sampling: Sampling, changes: Mapping[str, Any]) -> Sampling:
    known = {f.name for f in fields(sampling)} - {"stop"}  # marks are the policy's
    for key in changes:
        if key not in known:
            raise UnknownName("sampling parameter", key, known)
    return replace(sampling, **changes)

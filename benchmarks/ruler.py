"""KV methods on RULER's kinds of task: what is answered when most of a prompt is forgotten, or unread.

    python benchmarks/ruler.py [--tokens 4096] [--prompts 8] [--tasks "tracking"] [--only "EMS; H2O"]
                               [--unaware] [--prompt-pages 16] [--rows FILE] [--report]

The tasks are those of `ruler_tasks.py`. A prompt (its question last, as in RULER) is read exactly, once; its
last token's word is the answer's first. Each method then makes its memory of the prompt at each ratio, and
greedy decoding goes on behind it. A score is the share of the asked strings that the answer has. `--unaware`:
the memory is made before the question is read, and the question reads it too.

The ratio is of entries in memory for EMS and the baselines, so equal ratios are equal bytes; ActQKV and Quest
keep all and read that share, in tokens of `--tokens`. `--prompt-pages k` instead compares how the prompt is
read: by retrieval of k pages of 64 tokens for each window of 512, with the probe query and with the mean
query, the whole cache behind it.

A task that the whole cache does with less than 0.3 is shown apart: there is little to lose. Differences are
paired, by bootstrap over texts. Seconds are of the processor, and of the parts that EMS adds to reading.
Needs torch and the small model.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from intervals import FEWEST_GROUPS, bootstrap
from rows import Rows
from ruler_tasks import TASKS, Problem, n_questions, problem

from abduce.serving.transformers import kv
from abduce.serving.transformers import model as models

Row = dict[str, Any]
Case = tuple[str, float]  # method and keep ratio

RATIOS = (0.5, 0.25)
FULL: Case = ("full cache", 1.0)
N_TRIES = 2
LEAST = 0.3  # what the whole cache must score for a task to say something
METHODS: dict[str, Callable[[float], kv.Method]] = {
    "EMS": lambda ratio: kv.EMS(ratio, mass_bias=True),  # BARE takes the masses off
    "EMS, mass bias": lambda ratio: kv.EMS(ratio, mass_bias=True),
    "EMS, pool 5": lambda ratio: kv.EMS(ratio, mass_bias=True, pool=5),
    "EMS, pool 5, mass bias": lambda ratio: kv.EMS(ratio, mass_bias=True, pool=5),
    "EMS, evict only": lambda ratio: kv.EMS(ratio, tau=1.1),
    "SnapKV": kv.SnapKV,
    "SnapKV, merged": kv.MergedSnapKV,
    "H2O": kv.H2O,
    "StreamingLLM": kv.StreamingLLM,
    "ActQKV": kv.ActQKV,
    "mean query": lambda ratio: kv.ActQKV(ratio, power=0.0),
    "Quest": kv.Quest,
}
READING = ("ActQKV", "mean query", "Quest")  # keep all, read few
MERGING = ("EMS", "EMS, mass bias", "EMS, pool 5", "EMS, pool 5, mass bias", "SnapKV, merged")
BARE = {"EMS": "EMS, mass bias", "EMS, pool 5": "EMS, pool 5, mass bias"}  # the same entries, without masses
AGAINST = {
    "EMS": ("SnapKV", "SnapKV, merged"),
    "ActQKV": ("mean query", "Quest"),
    "prompt by probe": ("prompt by mean query",),
}
POINT = 0.01  # "within one point"


@dataclass(frozen=True)
class Setting:
    """What decides an answer besides task, prompt and method."""

    n_tokens: int
    unaware: bool = False
    prompt_pages: int = 0

    def run(self, task: str, prompt: int, case: Case) -> list[Any]:
        """See Rows."""
        how = "unaware" if self.unaware else "aware"
        n_pages = 0 if case == FULL else self.prompt_pages  # read exactly, it is the same either way
        return [task, prompt, self.n_tokens, how, n_pages, *case]

    def cases(self, names: Sequence[str]) -> list[Case]:
        """The full cache, and these methods at each ratio; or the ways to read a prompt."""
        if self.prompt_pages:
            return [FULL, ("prompt by probe", 1.0), ("prompt by mean query", 1.0)]
        # what merges takes as long to make as all others together, and its bar is at the last ratio
        cases = [(name, ratio) for name in names for ratio in RATIOS]
        return [FULL, *(case for case in cases if case[1] == RATIOS[-1] or case[0] not in MERGING)]


# ---------------------------------------------------------------- measurements


class Bench:
    """The small model, and what it answers."""

    def __init__(self, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        folder = models.folder_of(None)
        self.tokens = models.Tokeniser.load(folder)
        self._reader = kv.Reader(models.load(folder, "cpu", "float32", None))
        self._context, self._prefix = "", list[kv.Prefix]()  # what was read last

    def count(self, text: str) -> int:
        """Tokens."""
        return len(self.tokens.whole(text))

    def answers(self, asked: Problem, setting: Setting, wanted: Sequence[Case]) -> Iterator[tuple[Case, Row]]:
        """What is said in each of these cases, and seconds."""
        context = self.tokens.whole(asked.context)
        question = self.tokens.encode(asked.question, beginning=False)
        if setting.prompt_pages:
            for case in wanted:
                yield case, self._retrieved([*context, *question], asked, case, setting.prompt_pages)
            return
        first: list[int] = []
        n = len(context) if setting.unaware else len(context) + len(question)
        begun = time.process_time()
        is_new = asked.context != self._context
        if is_new:
            self._context, self._prefix = asked.context, self._reader.read(context)
        prefix = self._prefix
        if not setting.unaware:
            prefix = self._reader.read(question, after=prefix)
        cost = {"read": time.process_time() - begun} if is_new else {}
        if not setting.unaware:
            first = [self._next_word(prefix, question[-1])]
        if FULL in wanted:
            (words,) = self._said([kv.FullCache()(prefix)], first or question, n, asked, first)
            yield FULL, {**self._row(asked, words), "read_share": 1.0}
        begun = time.process_time()
        for each in prefix:
            each.local_sums(32)
        cost["local sums"] = time.process_time() - begun
        begun = time.process_time()
        if any(name.startswith(("EMS", "H2O")) for name, _ in wanted):
            for each in prefix:
                each.attention_sums(32)
            cost["global sums"] = time.process_time() - begun
        memories: dict[Case, Any] = {}
        for case in sorted(set(wanted) - {FULL}, key=lambda case: (case[0] in BARE, case)):
            begun = time.process_time()
            memories[case] = self._memory(prefix, case, memories, setting.n_tokens / n)
            cost[f"{case[0]} {case[1]:g}"] = time.process_time() - begun
        said = self._said(list(memories.values()), first or question, n, asked, first)
        for i, (case, words) in enumerate(zip(memories, said, strict=True)):
            row = {**self._row(asked, words), "read_share": memories[case].read_share}
            yield case, {**row, "seconds": cost} if i == 0 else row

    def _memory(
        self, prefix: Sequence[kv.Prefix], case: Case, made: dict[Case, Any], stretch: float
    ) -> kv.Memory:
        name, ratio = case
        if name in READING:
            return METHODS[name](min(ratio * stretch, 1.0))(prefix)
        with_mass = made.get((BARE.get(name, ""), ratio))
        memory = with_mass or METHODS[name](ratio)(prefix)
        return replace(memory, mass=None) if name in BARE and isinstance(memory, kv.Kept) else memory

    def _next_word(self, prefix: Sequence[kv.Prefix], last: int) -> int:
        before = [replace(each, k=each.k[:-1], v=each.v[:-1]) for each in prefix]
        logits = self._reader.tell(kv.FullCache()(before), [last], len(before[0].k))
        return int(logits[-1].argmax())

    def _said(
        self, memories: Sequence[kv.Memory], ids: Sequence[int], n: int, asked: Problem, first: Sequence[int]
    ) -> list[list[int]]:
        def is_over(said: Sequence[int]) -> bool:
            return said[-1] in self.tokens.ends

        n_new = asked.n_new - len(first)
        return [[*first, *said] for said in self._reader.greedy(memories, ids, n, n_new, is_over)]

    def _retrieved(self, ids: Sequence[int], asked: Problem, case: Case, n_pages: int) -> Row:
        prompt = None
        if case != FULL:
            power = 1.0 if case[0] == "prompt by probe" else 0.0
            prompt = kv.Retrieving(n_pages, window=512, page=64, n_local=64, power=power)
        begun = time.process_time()
        prefix = self._reader.read(ids, prompt=prompt)
        cost = {"read": time.process_time() - begun}
        first = [self._next_word(prefix, ids[-1])]
        (said,) = self._said([kv.FullCache()(prefix)], first, len(ids), asked, first)
        share = prompt.read_share(len(ids)) if prompt else 1.0
        return {**self._row(asked, said), "read_share": share, "seconds": cost}

    def _row(self, asked: Problem, words: Sequence[int]) -> Row:
        said = self.tokens.hf.decode(words, skip_special_tokens=True)
        return {"score": asked.score(said), "said": said, "asked": list(asked.answers)}


def fill(
    rows: Rows, setting: Setting, tasks: Sequence[str], names: Sequence[str], prompts: int, threads: int
) -> None:
    """Measure what the rows lack, the first prompt of every task first. While the whole cache has done too
    little of a task it alone is measured, N_TRIES times at most; if it does more later, the rest follows."""
    bench: Bench | None = None
    wanted = setting.cases(names)
    for is_last in (False, True):
        for prompt, task in ((i, task) for i in range(prompts) for task in tasks):
            runs = [setting.run(task, i, FULL) for i in range(prompts)]
            lacking = [case for case in wanted if rows.get(setting.run(task, prompt, case)) is None]
            n, mean = known(rows, runs)
            is_hard = n and mean < LEAST
            if not lacking or (is_hard and (is_last or n >= N_TRIES or FULL not in lacking)):
                continue
            bench = bench or Bench(threads)
            begun = time.monotonic()
            asked = problem(task, prompt, setting.n_tokens, bench.count)
            for case, row in bench.answers(asked, setting, lacking):
                rows.add(setting.run(task, prompt, case), row)
                if case == FULL and known(rows, runs)[1] < LEAST:
                    break
            print(f"{task}, prompt {prompt}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def known(rows: Rows, runs: Sequence[Sequence[Any]]) -> tuple[int, float]:
    """How many of these runs there are, and their mean score."""
    scores = [row["score"] for run in runs if (row := rows.get(run))]
    return len(scores), fmean(scores) if scores else 0.0


# ---------------------------------------------------------------- tables


def cell(values: Sequence[float], contexts: Sequence[str], form: str = ".2f") -> str:
    """Mean and interval, by context."""
    mean, low, high = bootstrap(values, by=contexts)
    return f"{mean:{form}} ({low:{form}} – {high:{form}})"


class Results:
    """Rows of the prompts that have one of every wanted case."""

    def __init__(
        self, rows: Rows, setting: Setting, tasks: Sequence[str], wanted: Sequence[Case], n: int
    ) -> None:
        self._rows, self._setting, self.wanted = rows, setting, wanted
        self.prompts = {
            task: [i for i in range(n) if all(rows.get(setting.run(task, i, case)) for case in wanted)]
            for task in tasks
        }
        alone = {
            task: [row["score"] for i in range(n) if (row := rows.get(setting.run(task, i, FULL)))]
            for task in tasks
        }
        self.full = {task: scores for task, scores in alone.items() if scores}
        # by all of its prompts: those with every case were chosen by what the whole cache did
        self.able = [t for t, scores in self.full.items() if self.prompts[t] and fmean(scores) >= LEAST]

    def scores(self, task: str, case: Case) -> list[float]:
        """Prompt by prompt."""
        return [self._row(task, i, case)["score"] for i in self.prompts[task]]

    def pooled(self, case: Case, base: Case | None = None, tasks: Sequence[str] | None = None) -> list[float]:
        """Over all prompts of the tasks that the model can do, less the base's."""
        values = [x for task in tasks or self.able for x in self.scores(task, case)]
        less = (
            [x for task in tasks or self.able for x in self.scores(task, base)]
            if base
            else [0.0] * len(values)
        )
        return [x - y for x, y in zip(values, less, strict=True)]

    def contexts(self, tasks: Sequence[str]) -> list[str]:
        """One for each value of `pooled`; prompts on the same text have the same."""
        return [f"{task} {i // n_questions(task)}" for task in tasks for i in self.prompts[task]]

    def share(self, case: Case) -> float:
        """Entries that a token of the answer reads."""
        return fmean(self._row(t, i, case)["read_share"] for t in self.able for i in self.prompts[t])

    def seconds(self) -> list[dict[str, float]]:
        """Of each prompt whose cases were all measured at once."""
        rows = (
            self._row(task, i, case) for task in self.able for i in self.prompts[task] for case in self.wanted
        )
        return [row["seconds"] for row in rows if "seconds" in row]

    def _row(self, task: str, prompt: int, case: Case) -> Row:
        row = self._rows.get(self._setting.run(task, prompt, case))
        assert row is not None, "only prompts that have every case"
        return row


def table(results: Results) -> None:
    """Of the tasks that the model can do, in Markdown."""
    able = results.able
    n = [len(results.prompts[task]) for task in able]
    heads = [
        "method",
        "ratio",
        "read",
        *(f"{t}, {k}" for t, k in zip(able, n, strict=True)),
        "all",
        "over full",
    ]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for case in results.wanted:
        parts = [case[0], f"{case[1]:g}", f"{results.share(case):.3f}"]
        parts += [f"{fmean(results.scores(task, case)):.2f}" for task in able]
        texts = results.contexts(able)
        parts.append(cell(results.pooled(case), texts))
        parts.append(cell(results.pooled(case, FULL), texts, "+.2f") if case != FULL else "")
        print(f"| {' | '.join(parts)} |")
    hard = {task: scores for task, scores in results.full.items() if task not in able}
    if hard:
        said = "; ".join(f"{task} {fmean(scores):.2f} of {len(scores)}" for task, scores in hard.items())
        print(f"\nNot done by the whole cache (below {LEAST}): {said}")


def pairs(wanted: Sequence[Case]) -> Iterator[tuple[Case, Case, float]]:
    """Case, the one that it is to equal at least, and by how much it may stay below."""
    for name, ratio in wanted:
        for other in AGAINST.get(name.split(",")[0], ()):
            if (other, ratio) in wanted:
                yield (name, ratio), (other, ratio), 0.0
        if name == "ActQKV" and ratio == RATIOS[0]:
            yield (name, ratio), FULL, POINT
        if name.startswith("prompt"):
            yield (name, ratio), FULL, POINT


def bars(results: Results) -> None:
    """The differences that the methods' pages ask for."""
    needles = [task for task in results.able if task.startswith("niah")]
    print("\n| ratio | case less other | all tasks | needles | bar |\n|---|---|---|---|---|")
    for case, other, slack in pairs(results.wanted):
        lead = results.pooled(case, other)
        near = ""
        if needles:
            near = cell(results.pooled(case, other, needles), results.contexts(needles), "+.2f")
        told = cell(lead, results.contexts(results.able), "+.2f")
        met = "met" if fmean(lead) >= -slack else "NOT met"
        print(f"| {case[1]:g} | {case[0]} less {other[0]} | {told} | {near} | {met} |")
    if len(set(results.contexts(results.able))) < FEWEST_GROUPS:
        print("\nToo few texts for intervals.")


def overheads(results: Results) -> None:
    """Scoring and compressing beside reading, in seconds of the processor."""
    told = [each for each in results.seconds() if {"read", "global sums"} <= set(each)]
    if told:
        print(f"\nSeconds of the processor, {len(told)} prompts, share of reading the prompt:")
    for name in dict.fromkeys(name for each in told for name in each):
        spent = [(each[name], each["read"]) for each in told if name in each]
        mean, share = fmean(x for x, _ in spent), fmean(x / read for x, read in spent)
        if share >= 0.005:
            print(f"{name}: {mean:.2f} s, {share:.1%}")


def named(arguments: argparse.ArgumentParser, told: str | None, known: Sequence[str]) -> list[str]:
    """Names by ';', in the order of the known ones; ends the program if one is none of them."""
    names = [name.strip() for name in told.split(";")] if told else list(known)
    for name in names:
        if name not in known:
            arguments.error(f"no {name!r}. Known: {'; '.join(known)}")
    return [name for name in known if name in names]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--prompts", type=int, default=8, help="of each task")
    arguments.add_argument("--tasks", help="by ';'")
    arguments.add_argument("--only", help="methods, by ';'")
    arguments.add_argument("--unaware", action="store_true", help="the question is read after compressing")
    arguments.add_argument(
        "--prompt-pages", type=int, default=0, help="compare ways to read a prompt instead"
    )
    arguments.add_argument("--rows", type=Path, help="measurements as JSON lines: go on from them, and add")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument(
        "--report", action="store_true", help="of the rows that are there; measure nothing"
    )
    given = arguments.parse_args()
    setting = Setting(given.tokens, given.unaware, given.prompt_pages)
    tasks, names = named(arguments, given.tasks, list(TASKS)), named(arguments, given.only, [*METHODS])
    rows = Rows(given.rows)
    if not given.report:
        fill(rows, setting, tasks, names, given.prompts, given.threads)
    results = Results(rows, setting, tasks, setting.cases(names), given.prompts)
    if results.able:
        table(results)
        bars(results)
        overheads(results)


if __name__ == "__main__":
    main()

"""The queries of a ThinkSum program, put to the model: the Think.

All pairs of a query are asked in two batches, the first with one pair for each context, so that a server
has every context in its cache when the rest comes. A pair that occurs twice is asked once.

    l(c | u) = Σ ln p(token of c | all before),   T = P(yes) / (P(yes) + P(no))
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ...serving.errors import UsageError
from ...serving.flow import (
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
from ...serving.seeds import derive
from .arrangements import LETTERS, MAX_OBJECTS, Reading, Statement, lettered, mentioned, parse, readings
from .program import LISTS, PLACE, Program, Unanswerable
from .table import Index, Table, log_sum_exp, normalised

YES, NO = (" Yes", " yes"), (" No", " no")
_DEFAULTS: dict[str, tuple[int, float, int]] = {  # k, temperature, tokens of one
    "examples": (10, 0.7, 8),
    "extend": (10, 0.7, 48),
    "facts": (10, 0.7, 32),
    "translate": (5, 0.7, 64),
}


@dataclass
class Workings:
    """One run of a program: what was read, asked and found so far."""

    program: Program
    seed: int
    max_pairs: int
    chat: bool
    texts: dict[str, str] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    filled: dict[str, dict[Index, str]] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    read: dict[str, list[Reading]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    n_pairs: int = 0
    n_tokens: int = 0
    _known: dict[tuple[str, str], LogLikelihood | Failure] = field(default_factory=dict)

    def take(self, items: Mapping[str, str | list[str]]) -> None:
        """What was read from the task. Raises UsageError if the program would ask for too many pairs,
        Unanswerable for more objects than can be arranged."""
        for name, value in items.items():
            if isinstance(value, str):
                self.texts[name] = value
            else:
                self.lists[name] = list(dict.fromkeys(value))
        for query in self.program.think:
            if query["op"] == "readings" and len(self.lists[query["objects"]]) > MAX_OBJECTS:
                raise Unanswerable(f"there are more than {MAX_OBJECTS} objects to arrange")
        wanted = self._wanted()
        if wanted > self.max_pairs:
            raise UsageError(
                f"The program asks for {wanted} pairs, max_pairs is {self.max_pairs}. Raise it, or lower k."
            )

    def think(self) -> Flow[None]:
        """Carry out all queries, in order. Raises Unanswerable where one leaves nothing to go on with."""
        for i, query in enumerate(self.program.think):
            name, op = query["as"], query["op"]
            if op == "substitute":
                self.filled[name] = dict(self._substituted(query))
            elif op == "score":
                self.tables[name] = yield from self._scored(query)
            elif op == "label":
                self.tables[name] = yield from self._labelled(query)
            elif op == "readings":
                self.read[name] = yield from self._readings(query, derive(self.seed, "think", i))
            else:
                self.lists[name] = yield from self._drawn(query, derive(self.seed, "think", i))
            if name in self.tables and not self.tables[name].cells:
                raise Unanswerable(f"nothing could be scored for {name!r}")
            if op in LISTS and not self.lists[name]:
                raise Unanswerable(f"no text could be drawn for {name!r}")

    # ------------------------------------------------------------ likelihoods

    def _scored(self, query: Mapping[str, Any]) -> Flow[Table]:
        axes, per = self._axes(query), query.get("per", "sum")
        cells = list(self._cells(axes))
        contexts, texts = (
            [self._fill(query[part], axes, at) for at in cells] for part in ("context", "continuation")
        )
        told = yield from self.ask([*zip(contexts, texts, strict=True)])
        rows = zip(cells, texts, told, strict=True)
        return Table(axes, {at: _per(r, c, per) for at, c, r in rows if isinstance(r, LogLikelihood)})

    def _labelled(self, query: Mapping[str, Any]) -> Flow[Table]:
        axes = self._axes(query)
        yes, no = tuple(query.get("yes", YES)), tuple(query.get("no", NO))
        cells = list(self._cells(axes))
        contexts = [self._fill(query["context"], axes, at) for at in cells]
        told = yield from self.ask([(u, word) for u in contexts for word in (*yes, *no)])
        width, found = len(yes) + len(no), {}
        for i, at in enumerate(cells):
            logs = [r.total for r in told[i * width : (i + 1) * width] if isinstance(r, LogLikelihood)]
            if len(logs) == width:
                found[at] = normalised([log_sum_exp(logs[: len(yes)]), log_sum_exp(logs[len(yes) :])])[0]
        return Table(axes, found)

    def ask(self, pairs: Sequence[tuple[str, str]]) -> Flow[list[LogLikelihood | Failure]]:
        """The log-likelihood of each continuation after its context."""
        asked = [_pair(u, c) for u, c in pairs]
        new = [pair for pair in dict.fromkeys(asked) if pair not in self._known]
        first = list({u: (u, c) for u, c in reversed(new)}.values())[::-1]
        rest = sorted(set(new) - set(first), key=new.index)
        for batch in (first, rest):
            if batch:
                replies = yield [LogProb(self._prompt(u), c) for u, c in batch]
                self._known.update(zip(batch, replies, strict=True))
                self.n_pairs += len(batch)
                self.failures += [reply for reply in replies if isinstance(reply, Failure)]
        return [self._known[pair] for pair in asked]

    def _prompt(self, text: str) -> Prompt:
        """With `chat`, the text stands in the assistant's turn: what a chat model writes, it writes there."""
        return Prompt((Message("user", CHAT),) if self.chat else (), text)

    # ------------------------------------------------------------ texts

    def _substituted(self, query: Mapping[str, Any]) -> Iterator[tuple[Index, str]]:
        """The template with words put in the place of others, as they stand there: in the plural, with a
        capital letter."""
        axes = self._axes(query)
        for at in self._cells(axes):
            text = self._fill(query["template"], axes, at)
            for word, by in query["replace"].items():
                text = substituted(text, self.texts[word], self._fill("{" + by + "}", axes, at))
            yield at, text

    def _drawn(self, query: Mapping[str, Any], seed: int) -> Flow[list[str]]:
        op = query["op"]
        k, temperature, longest = _DEFAULTS[op]
        k, temperature = query.get("k", k), query.get("temperature", temperature)
        stop = ("\n", ",", ";") if op == "examples" else ("\n",)
        one = Sampling(temperature, max_tokens=query.get("max_tokens", longest), stop=stop)
        first = Sampling(0.0, max_tokens=one.max_tokens, stop=stop)
        batch: list[Generate] = []
        axes = self._axes(query)
        for i, at in enumerate(self._cells(axes)):
            prompt = self._prompt(self._fill(query["prompt"], axes, at))
            if op == "translate":
                batch.append(Generate(prompt, 1, first, derive(seed, i, "first")))
            n = 1 if op == "extend" else k - (op == "translate")
            if n:
                batch.append(Generate(prompt, n, one, derive(seed, i)))
        replies = yield batch
        texts: list[str] = []
        for reply in replies:
            if isinstance(reply, Failure):
                self.failures.append(reply)
                continue
            texts += self._texts(reply, split=op == "extend")
        most = k * max(1, len(batch)) if op != "extend" else k
        return list({text.casefold(): text for text in reversed(texts) if text}.values())[::-1][:most]

    def _texts(self, drawn: Sequence[Completion], *, split: bool) -> list[str]:
        self.n_tokens += sum(each.n_tokens for each in drawn)
        found = [part for each in drawn for part in (each.content.split(",") if split else [each.content])]
        return [text.strip().strip("\"'.*-").strip() for text in found]

    def _readings(self, query: Mapping[str, Any], seed: int) -> Flow[list[Reading]]:
        """The ways to read each text as a statement: all that it may say, weighed by their likelihood, or
        those among k samples. The model sees letters for the objects, so that only the relation counts; the
        odds of several prompts multiply."""
        objects, texts = self.lists[query["objects"]], self.lists[query["of"]]
        prompts = [query["context"]] if isinstance(query["context"], str) else list(query["context"])
        said = [lettered(text, objects) for text in texts]
        named = [mentioned(text, objects) for text in texts]
        if query.get("by", "likelihood") == "samples":
            contexts = [prompts[0].replace("{it}", each) for each in said]
            return (yield from self._sampled(contexts, named, query.get("k", 5), seed))
        ways = [readings(len(each), len(objects)) for each in named]
        plain = [
            (each, readings(1 + bool(re.search(r"\bB\b", each)), len(objects)))
            for each in query.get("against", ())
        ]
        odds: list[list[float]] = [[0.0] * len(row) for row in ways]
        for prompt in prompts:
            logs = yield from self._weighed(prompt, [*zip(said, ways, strict=True), *plain])
            told, beside = logs[: len(ways)], [row for row in logs[len(ways) :] if row]
            odds = [_against(before, row, beside) for before, row in zip(odds, told, strict=True)]
        found: list[Reading] = []
        for row, logs_of, names in zip(ways, odds, named, strict=True):
            shares = normalised(logs_of) if logs_of else []
            found.append({s.of(names): q for s, q in zip(row, shares, strict=bool(shares))})
        return found

    def _weighed(
        self, prompt: str, rows: Sequence[tuple[str, Sequence[Statement]]]
    ) -> Flow[list[list[float]]]:
        """How likely each statement is after its text; none where one of them could not be scored."""
        asked = [(prompt.replace("{it}", text), " " + s.mark) for text, row in rows for s in row]
        told = iter((yield from self.ask(asked)))
        replies = [[next(told) for _ in row] for _, row in rows]
        known = [[reply.total for reply in row if isinstance(reply, LogLikelihood)] for row in replies]
        return [logs if len(logs) == len(row) else [] for logs, (_, row) in zip(known, rows, strict=True)]

    def _sampled(
        self, contexts: Sequence[str], named: Sequence[Sequence[int]], k: int, seed: int
    ) -> Flow[list[Reading]]:
        one = Sampling(0.7, max_tokens=48, stop=("\n",))
        replies = yield [Generate(self._prompt(u), k, one, derive(seed, i)) for i, u in enumerate(contexts)]
        found: list[Reading] = []
        for reply, names in zip(replies, named, strict=True):
            if isinstance(reply, Failure):
                self.failures.append(reply)
                found.append({})
                continue
            self.n_tokens += sum(each.n_tokens for each in reply)
            parsed = (parse(each.content, LETTERS[: len(names)]) for each in reply)
            ways = [statement.of(names) for statement in parsed if statement is not None]
            found.append({s: ways.count(s) / len(ways) for s in ways})
        return found

    # ------------------------------------------------------------ indices

    def _axes(self, query: Mapping[str, Any]) -> tuple[str, ...]:
        return self.program.axes[query["as"]]

    def _cells(self, axes: Sequence[str]) -> Iterator[Index]:
        """Every index over these axes. Two indices over one list never meet: no word is asked about beside
        itself."""
        of = [self._list_of(axis) for axis in axes]
        for index in product(*(range(len(self.lists[name])) for name in of)):
            if len(set(zip(of, index, strict=True))) == len(index):
                yield index

    def _fill(self, template: str, axes: Sequence[str], at: Index) -> str:
        """The template with its places filled, once: braces in what is put there are only text."""
        where = dict(zip(axes, at, strict=True))

        def text(found: re.Match[str]) -> str:
            name = found[1]
            if name in where:
                return self.lists[self._list_of(name)][where[name]]
            if name in self.filled:
                return self.filled[name][tuple(where[axis] for axis in self.program.axes[name])]
            return self.texts[name]

        return PLACE.sub(text, template)

    def _list_of(self, index: str) -> str:
        return self.program.indices.get(index, index)

    def _wanted(self) -> int:
        """The most pairs that the program can ask for, lists not drawn yet taken as long as they may get."""
        size = {name: len(values) for name, values in self.lists.items()}
        total = 0
        for query in self.program.think:
            op, axes = query["op"], self.program.axes[query["as"]]
            n = math.prod(size[self._list_of(axis)] for axis in axes)
            if op in LISTS:
                size[query["as"]] = query.get("k", _DEFAULTS[op][0]) * (1 if op == "extend" else n)
            elif op == "label":
                total += n * (len(query.get("yes", YES)) + len(query.get("no", NO)))
            elif op == "score":
                total += n
            elif op == "readings" and query.get("by", "likelihood") == "likelihood":
                total += n * size[query["objects"]]
        return total


def _pair(context: str, continuation: str) -> tuple[str, str]:
    """White space between the two belongs to the continuation: tokens begin with it, so that no token lies
    across the border."""
    bare = context.rstrip(" ")
    return bare, context[len(bare) :] + continuation if not continuation.startswith(" ") else continuation


def _against(before: Sequence[float], row: Sequence[float], beside: Sequence[Sequence[float]]) -> list[float]:
    """The odds of a prompt, less those of texts that say nothing together, on top of the odds before."""
    if not row or not before:
        return []
    alike = [each for each in beside if len(each) == len(row)]
    means = [math.fsum(each) / len(alike) for each in zip(*alike, strict=True)] if alike else [0.0] * len(row)
    return [x + y - mean for x, y, mean in zip(before, row, means, strict=True)]


def _per(reply: LogLikelihood, text: str, per: str) -> float:
    n = {"sum": 1, "token": len(reply.logprobs), "byte": len(text.encode())}[per]
    return reply.total / max(1, n)


def substituted(text: str, word: str, by: str) -> str:
    """`text` with `by` in the place of `word`, in the number and case in which it stands, and the article
    that fits.

    >>> substituted("Binne bams are for pets. A binne eats.", "binne", "otter")
    'Otter bams are for pets. An otter eats.'
    >>> substituted("Diz supes own a supe.", "supe", "baby")
    'Diz babies own a baby.'
    """

    def put(found: re.Match[str]) -> str:
        article, said, plural = found.groups()
        fitting = _plural(by) if plural else by
        if said[0].isupper():
            fitting = fitting[:1].upper() + fitting[1:]
        if article is None:
            return fitting
        an = "n" if fitting[:1].casefold() in "aeiou" else ""
        return f"{article[0]}{an} {fitting}"

    return re.sub(rf"(\b[Aa]n? )?\b({re.escape(word)})(s|es)?\b", put, text, flags=re.IGNORECASE)


def _plural(word: str) -> str:
    """The English plural of a noun, the regular one."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word if word.endswith("s") and not word.endswith("ss") else word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


CHAT = "Go on with the text that is begun. Add nothing else."

"""Synthetic long texts with questions, after RULER (arXiv 2404.06654), with words of our own.

    niah single 1     one key with a number, between sentences that say nothing
    niah single 2     the same, between lines of a text
    niah single 3     the same, with an identifier for a number
    niah multikey 1   four keys with a number each, between lines of a text; one is asked for, by four prompts
                      of the same text each of the four
    niah multikey 2   a list of nothing but such needles; one is asked for
    niah multivalue   one key with four numbers, all asked for
    niah multiquery   four keys, all asked for
    tracking          a chain of variables, and two that have to do with nothing: which have the value?
    common words      ten words stand there often, others seldom: which ten?
    frequent words    made-up words, by Zipf's law: which three are the most frequent?

The text is the topics of Python's own language reference (`pydoc_data`, in every installation). What RULER
has otherwise: numbers of seven digits everywhere (here five where four are asked for, so that 32 tokens hold
them), UUIDs (here 16 digits), essays, an example of a solved problem before the question, longer answers.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Count = Callable[[str], int]  # tokens of a text

IDLE = (
    "The kettle is warm. The street is quiet. Clouds move on. A door opens, and it closes again.",
    "Rain falls on the roof. The lamp is lit. Someone walks by. The hour goes on as it did.",
)
ADJECTIVES = """
amber brave calm dusty eager faint gentle hollow idle jolly keen lively mellow narrow odd proud quick
rusty silent tidy urgent vivid wary young zealous
"""
NOUNS = """
anchor basket candle dragon engine falcon garden hammer island jacket kettle ladder mirror needle
orchard pepper quarry rocket saddle tunnel uncle violin window yacht zebra
"""
PLAIN = """
apple bread chair dance earth field glass horse image juice knife lemon money night ocean paper queen
river stone table uncle voice water youth bridge castle doctor engine family ground hunter island jungle
kitchen letter market number office people quarter record school travel valley winter animal butter
circle desert effort figure garden health iron judge ladder mother nature orange player reason season
target union vessel window yellow artist branch coffee driver empire farmer guitar harbor insect jacket
leader member needle object pencil rabbit signal temple victim weapon autumn battle corner dinner energy
finger gallery hammer income jersey lesson mirror notice oxygen parent rocket silver ticket virtue
wealth
"""


@dataclass(frozen=True)
class Problem:
    """`question` follows the context and ends where the answer begins."""

    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    n_new: int  # tokens that an answer may take

    def score(self, said: str) -> float:
        """Share of the asked strings that are in an answer."""
        return sum(each.lower() in said.lower() for each in self.answers) / len(self.answers)


# ---------------------------------------------------------------- needles

_HEAD = "Some special magic {kind}s are hidden in the text below. They will be asked for.\n\n"
_NEEDLE = "One of the special magic {kind}s for {key} is: {value}."


@dataclass(frozen=True)
class _Needles:
    """A needle task: `n_keys` keys with `n_values` each, `n_asked` of them asked for."""

    hay: str  # "idle", "text", or "needles"
    n_keys: int = 1
    n_values: int = 1
    n_asked: int = 1
    digits: int = 7
    kind: str = "number"
    n_questions: int = 1  # on the same context

    def __call__(self, task: str, seed: int, n_tokens: int, count: Count) -> Problem:
        seed, turn = divmod(seed, self.n_questions)
        rng = random.Random(f"{task} {seed}")
        named = [f"{a}-{n}" for a in ADJECTIVES.split() for n in NOUNS.split()]
        keys, taken = rng.sample(named, self.n_keys), set[str]()
        values = {key: [self._value(rng, taken) for _ in range(self.n_values)] for key in keys}
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        one = self.n_asked == self.n_values == 1
        turns = [[*keys[i:], *keys[:i]][: self.n_asked] for i in range(self.n_questions)]
        asked = turns[turn]
        answers = tuple(value for key in asked for value in values[key])
        question = self._question(asked, one=one)
        longest = max((self._question(each, one=one) for each in turns), key=count)
        rest = _HEAD.format(kind=self.kind) + longest
        room = n_tokens - count(rest) - sum(count(needle + "\n") for needle in needles) - 2
        hay = self._hay(rng, room, count, [key for key in named if key not in keys], taken)
        n_new = 16 if one and self.kind == "number" else 32
        while True:
            context = self._context(hay, needles, rng)
            if count(context + longest) <= n_tokens:
                return Problem(task, context, question, answers, n_new)
            hay.pop()

    def _context(self, hay: Sequence[str], needles: Sequence[str], rng: random.Random) -> str:
        places = sorted(rng.sample(range(len(hay) + 1), len(needles)), reverse=True)
        lines = list(hay)
        for place, needle in zip(places, rng.sample(needles, len(needles)), strict=True):
            lines.insert(place, needle)
        return _HEAD.format(kind=self.kind) + "\n".join(lines) + "\n"

    def _hay(
        self, rng: random.Random, room: int, count: Count, others: Sequence[str], taken: set[str]
    ) -> list[str]:
        lines: list[str] = []
        source = iter(_text_lines(rng)) if self.hay == "text" else None
        others = rng.sample(others, len(others))
        while room > 0:
            if source:
                line = next(source)
            elif self.hay == "idle":
                line = IDLE[len(lines) % 2]
            elif len(lines) < len(others):
                line = self._needle(others[len(lines)], self._value(rng, taken))
            else:
                break
            room -= count(line + "\n")
            lines.append(line)
        return lines

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(kind=self.kind, key=key, value=value)

    def _question(self, asked: Sequence[str], *, one: bool) -> str:
        which, verb = (f"{self.kind}", "is") if one else (f"{self.kind}s", "are")
        names = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + f", and {asked[-1]}"
        asking = f"What is the special magic {which}" if one else f"What are all the special magic {which}"
        return (
            f"\n{asking} for {names} that the text above mentions? "
            f"The special magic {which} for {names} that the text above mentions {verb}"
        )

    def _value(self, rng: random.Random, taken: set[str]) -> str:
        while True:
            if self.kind == "number":
                value = str(rng.randrange(10 ** (self.digits - 1), 10**self.digits))
            else:
                value = f"{rng.getrandbits(32):08x}-{rng.getrandbits(16):04x}-{rng.getrandbits(16):04x}"
            if value not in taken:
                taken.add(value)
                return value


def _text_lines(rng: random.Random) -> list[str]:
    """Lines of the language reference, topics in an order by chance."""
    from pydoc_data.topics import topics

    names = rng.sample(sorted(topics), len(topics))
    return [line.strip() for name in names for line in topics[name].splitlines() if line.strip()]


# ---------------------------------------------------------------- the others


def _tracking(task: str, seed: int, n_tokens: int, count: Count) -> Problem:
    rng = random.Random(f"{task} {seed}")
    names = _codes(rng, 15, 5, str.upper)
    values = rng.sample(range(10_000, 100_000), 3)
    steps = []
    for chain, value in zip((names[:5], names[5:10], names[10:]), values, strict=True):
        says = [f"VAR {chain[0]} = {value}"]
        says += [f"VAR {new} = VAR {old}" for old, new in pairwise(chain)]
        steps.append(says[:5] if chain[0] == names[0] else says[:2])
    head = "Variables are given values in the text below. Follow them.\n\n"
    question = (
        f"\nWhich variables have the value {values[0]} in the text above? Five variables have it. "
        f"The five variables that have the value {values[0]} are"
    )
    hay = [IDLE[i % 2] for i in range(n_tokens // 8)]
    flat = [line for says in steps for line in says]
    per = count(IDLE[0] + "\n")
    hay = hay[: max((n_tokens - count(head + question + "\n".join(flat))) // per, len(flat))]
    while True:
        lines: list[tuple[float, str]] = [(i + 0.5, line) for i, line in enumerate(hay)]
        for says in steps:  # each chain in its order
            lines += [
                (float(place), line)
                for place, line in zip(sorted(rng.sample(range(len(hay)), len(says))), says, strict=True)
            ]
        context = head + "\n".join(line for _, line in sorted(lines, key=lambda x: x[0])) + "\n"
        if count(context + question) <= n_tokens:
            return Problem(task, context, question, tuple(names[:5]), 32)
        hay.pop()


def _common(task: str, seed: int, n_tokens: int, count: Count) -> Problem:
    rng = random.Random(f"{task} {seed}")
    words = PLAIN.split()
    rng.shuffle(words)
    common, seldom = words[:10], words[10:]
    head = (
        "Below is a list of words. Some stand there often, others seldom. Remember the ten most common.\n\n"
    )
    question = "\nWhich ten words are the most common in the list above? The ten most common words are:"
    n_seldom, n_common = 3, n_tokens // 20

    def listed(entries: Sequence[str]) -> str:
        return head + " ".join(f"{i}. {word}" for i, word in enumerate(entries, 1)) + "\n"

    while count(listed(common * n_common + seldom * n_seldom) + question) > n_tokens:
        if n_common > 3 * n_seldom:
            n_common -= 1
        else:
            seldom = seldom[:-1]
    entries = common * n_common + seldom * n_seldom
    rng.shuffle(entries)
    return Problem(task, listed(entries), question, tuple(common), 32)


def _frequent(task: str, seed: int, n_tokens: int, count: Count) -> Problem:
    rng = random.Random(f"{task} {seed}")
    codes = _codes(rng, 400, 6, str.lower)
    head = "Below is a text in code words; '...' stands for nothing. Remember the three most frequent.\n\n"
    question = (
        "\nWhich three code words are the most frequent in the text above, '...' aside? "
        "The three most frequent code words are:"
    )
    zipf = [1 / rank**2 for rank in range(2, len(codes) + 2)]
    share = sum(zipf) * 1.6  # the rest is nothing, which is the most frequent, as in RULER

    def written(n_words: int) -> str:
        times = [round(n_words * z / share) for z in zipf]
        said = [code for code, n in zip(codes, times, strict=True) for _ in range(n)]
        said += ["..."] * (n_words - len(said))
        random.Random(order).shuffle(said)
        return head + " ".join(said) + "\n"

    n_words, order = n_tokens, rng.random()
    while count(written(n_words) + question) > n_tokens:
        n_words -= max(n_words // 100, 1)
    return Problem(task, written(n_words), question, tuple(codes[:3]), 24)


def _codes(rng: random.Random, n: int, length: int, case: Callable[[str], str]) -> list[str]:
    """Made-up words, no two alike."""
    made: dict[str, None] = {}
    while len(made) < n:
        made[case("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length)))] = None
    return list(made)


TASKS: dict[str, Callable[[str, int, int, Count], Problem]] = {
    "niah single 1": _Needles("idle"),
    "niah single 2": _Needles("text"),
    "niah single 3": _Needles("text", kind="identifier"),
    "niah multikey 1": _Needles("text", n_keys=4, n_questions=4),
    "niah multikey 2": _Needles("needles"),
    "niah multivalue": _Needles("text", n_values=4, digits=5),
    "niah multiquery": _Needles("text", n_keys=4, n_asked=4, digits=5),
    "tracking": _tracking,
    "common words": _common,
    "frequent words": _frequent,
}


def problem(task: str, seed: int, n_tokens: int, count: Count) -> Problem:
    """The same for the same arguments; context and question have at most n_tokens together, by `count`."""
    return TASKS[task](task, seed, n_tokens, count)


def n_questions(task: str) -> int:
    """So many seeds, from a multiple of it on, ask on the same context."""
    made = TASKS[task]
    return made.n_questions if isinstance(made, _Needles) else 1

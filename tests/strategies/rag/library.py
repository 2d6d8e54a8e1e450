"""A library of invented facts, questions of one to three hops over it, and a reader that knows nothing else.

The reader says what it was told to find only where the sentence that says it stands in its prompt, so that
what a strategy retrieves decides what it gets right.
"""

import json
import re
from dataclasses import dataclass
from random import Random

from abduce.orchestrator.solve import build
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Task

SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]


@dataclass(frozen=True)
class Chain:
    """A book, who wrote it, where they were born, in which country that is."""

    book: str
    writer: str
    town: str
    country: str

    def sentences(self):
        return (
            f"The novel {self.book} was written by {self.writer}.",
            f"{self.writer} was born in the town of {self.town}.",
            f"{self.town} is a town in {self.country}.",
        )

    def documents(self):
        titles = (self.book, self.writer, self.town)
        return [{"title": t, "text": s} for t, s in zip(titles, self.sentences(), strict=True)]

    def queries(self):
        return (
            f"Who wrote the novel {self.book}?",
            f"Where was {self.writer} born?",
            f"In which country is the town {self.town}?",
        )

    def answers(self):
        return (self.writer, self.town, self.country)

    def question(self, hops):
        return (
            f"Who wrote the novel {self.book}?",
            f"Where was the writer of the novel {self.book} born?",
            f"In which country is the birthplace of the writer of the novel {self.book}?",
        )[hops - 1]


def chains(n, seed=0):
    random = Random(seed)
    names = set()
    while len(names) < 4 * n:
        names.add("".join(random.choices(SYLLABLES, k=4)).capitalize())
    shuffled = sorted(names)
    random.shuffle(shuffled)
    return [Chain(*shuffled[4 * i : 4 * i + 4]) for i in range(n)]


def corpus(folder, told):
    """The documents of the chains as a file, each with an id."""
    rows = [row for chain in told for row in chain.documents()]
    file = folder / "library.jsonl"
    file.write_text("".join(json.dumps({"id": f"d{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return str(file)


def text_of(request):
    return "\n".join([*(message.content for message in request.prompt.messages), request.prompt.prefix])


def asked(text):
    """The test question, and the lines said since."""
    question, _, said = text.rpartition("Question: ")[2].partition("\n")
    return question, [
        line
        for line in said.splitlines()
        if line.startswith(("Follow up:", "Intermediate answer:", "So the final"))
    ]


def reader(told):
    """A script for these chains."""
    by_book = {chain.book: chain for chain in told}

    def says(request, seed):
        text = text_of(request)
        question, said = asked(text)
        chain = by_book[re.search(r"novel (\w+)", question)[1]]
        hops = next(n for n in (1, 2, 3) if chain.question(n) == question)
        known = [sentence in text for sentence in chain.sentences()[:hops]]
        answers, queries = chain.answers(), chain.queries()
        if "Follow up:" not in text:  # a single call
            return f"Answer: {answers[hops - 1] if all(known) else 'unknown'}"
        if said and said[-1] == "Intermediate answer:":
            i = queries.index(said[-2].removeprefix("Follow up: "))
            return f" {answers[i] if known[i] else 'unknown'}"
        if said and said[-1] == "So the final answer is:":
            return f" {answers[hops - 1] if all(known) else 'unknown'}"
        if all(known) or any("unknown" in line for line in said):
            return f"So the final answer is: {answers[hops - 1] if all(known) else 'unknown'}"
        return f"Follow up: {queries[known.index(False)]}"

    return says


def pipeline(strategy, file, script, **params):
    """A strategy on a file of documents, with a script or an engine."""
    search = {"name": "search", "file": file, "words": "all", "titles": True, "passages": 20}
    engine = Scripted(script) if not hasattr(script, "generate") else script
    return build(strategy=strategy, policy="plain", model=engine, tools=[search], **params)


def task(chain, hops):
    return Task(chain.question(hops))

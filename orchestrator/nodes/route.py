"""`route`: choose the way that a question takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...serving.flow import Flow, Generate, LogLikelihood, LogProb, Prompt, Sampling
from ..services import Services
from ..steps import Way
from .base import Update, Visit, filled, listed, said


@dataclass(frozen=True)
class RouteByQuestion:
    """The first way whose conditions the question meets, else the last."""

    services: Services
    ways: Mapping[str, Way]

    def visit(self, at: Visit) -> Flow[Update]:
        """Sets the route; asks nothing."""
        yield from ()
        fitting = (name for name, way in self.ways.items() if fits(way, at.task.question))
        return {"route": next(fitting, list(self.ways)[-1])}


def fits(way: Way, question: str) -> bool:
    """Whether a question meets the conditions of a way.

    >>> fits(Way(words={"at_most": 3}), "7 x 8"), fits(Way(contains=("add", "sum")), "The Sum of 1 and 2?")
    (True, True)
    """
    n_words, lower = len(question.split()), question.casefold()
    if way.words is not None and not way.words.holds(n_words):
        return False
    return not way.contains or any(text.casefold() in lower for text in way.contains)


@dataclass(frozen=True)
class RouteByModel:
    """The way whose name the model finds likeliest, by log-probability per token where the engine gives
    them; else the first that it names."""

    services: Services
    ways: Mapping[str, Way]

    def visit(self, at: Visit) -> Flow[Update]:
        """Sets the route; where the model names none, the last."""
        kinds = listed([f"{name}: {way.about}" for name, way in self.ways.items()])
        prompt = Prompt.user(filled(CHOOSE, {"kinds": kinds, **at.words}))
        if "logprob" in self.services.engine("policy").capabilities:
            told = yield [LogProb(prompt, name) for name in self.ways]
            by_name = dict(zip(self.ways, told, strict=True))
            scored = {
                name: likely.total / max(1, len(likely.logprobs))
                for name, likely in by_name.items()
                if isinstance(likely, LogLikelihood)
            }
            return {"route": max(scored, key=scored.__getitem__, default=list(self.ways)[-1])}
        [reply] = yield [Generate(prompt, sampling=Sampling(temperature=0, max_tokens=16))]
        places = {name: said(reply).casefold().find(name.casefold()) for name in self.ways}
        named = [name for name in sorted(places, key=places.__getitem__) if places[name] >= 0]
        return {"route": named[0] if named else list(self.ways)[-1]}


# ---------------------------------------------------------------- prompts

CHOOSE = "{kinds}\n\nWhich kind is this question? Answer with the name only.\n\nQuestion:\n{question}"

"""A model whose rewrites and votes are known beforehand."""

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Noted
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Task
from abduce.strategies.policy import policy
from abduce.strategies.spar import SPaR
from abduce.strategies.spar.refiner import END, START

TASK = Task("Write a word.")
ACTOR = policy("plain")
YES, NO = "All holds.\nFinal Judgement: Yes", "One does not.\nFinal Judgement: No"


class World:
    """The draft is "r", the i-th rewrite of a text is the text and i. `yes` says how many of five votes each
    gets (0 for others), `unmarked` which rewrites lack their marks, `tied` whose votes say nothing."""

    def __init__(self, yes=None, *, unmarked=(), tied=(), drafts=("r",), plain=False):
        self.yes, self.unmarked, self.tied, self.drafts = yes or {}, unmarked, tied, drafts
        self.refined, self.judged, self.events, self.given = [], [], [], {}

    def __call__(self, request, seed):
        said = request.prompt.messages
        if len(said) == 3:
            return self.rewrite(answer_in(said[0]), request.n)
        if "Final Judgement" in said[0].content:
            return self.vote(answer_in(said[0]), request.n)
        return list(self.drafts)

    def rewrite(self, parent, n):
        first = self.given.get(parent, 0)
        self.given[parent] = first + n
        names = [f"{parent}{i}" for i in range(first, first + n)]
        self.refined += names
        return [f"Hm.\n{START}\n{name}\n{END}" if name not in self.unmarked else "Hm." for name in names]

    def vote(self, answer, n):
        self.judged.append(answer)
        if answer in self.tied:
            return ["I cannot say."]
        yes = self.yes.get(answer, 0)
        return [YES] * yes + [NO] * (n - yes)

    async def play(self, *, seed=0, task=TASK, budget=None, **parameters):
        parameters = {"attempts": 1, **parameters}
        driver = Driver(
            Services({"policy": Scripted(self)}), seed=seed, budget=budget, observers=[self.events.append]
        )
        return await driver.run(SPaR(policy=ACTOR, **parameters).solve(task, seed=seed))

    def notes(self, kind):
        return [event.data for event in self.events if isinstance(event, Noted) and event.note == kind]


def answer_in(message):
    return message.content.partition('Output: "')[2].partition('"')[0]

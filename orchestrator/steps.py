"""The steps a recipe may consist of, and the edges between them: the one list of what the outer graph can do.

A recipe is a graph. `pipeline:` is short for a straight line of steps; `nodes:` and `edges:` say everything.

    recall ─► route ─► solve ─► verify ─┬─► remember
                         ▲              │
                         └── revise ◄───┘  not verified, at most twice

Each class is one step, its fields are the keys a recipe may write, and `KINDS` names them. What a step does
is in `nodes.py`; how it is read from YAML, in `recipe.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

END = "end"
"""The name that stands for the end of the graph."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Finite: TypeAlias = int | Annotated[float, Field(allow_inf_nan=False)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


class Named(BaseModel):
    """A part by name, with the part's own parameters beside it as plain data: `Named(name="beam", width=4)`.
    A text is short for one without parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Text

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return plain(value) if isinstance(value, Mapping) else value

    @property
    def params(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


def plain(value: Any) -> Any:
    """Data as JSON would give it back: tuples are lists, every mapping is a dictionary."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


class Solver(_Strict):
    """Who solves: a strategy, and what it has of its own; what is left out is the recipe's."""

    strategy: Named
    model: Named | None = None
    models: Mapping[str, Named] = {}
    policy: Named | None = None
    reward: Named | None = None


class Bound(_Strict):
    """A number within limits, both included."""

    at_least: Finite | None = None
    at_most: Finite | None = None

    @model_validator(mode="after")
    def _some(self) -> "Bound":
        low, high = self.at_least, self.at_most
        if low is None and high is None:
            raise ValueError("needs at_least or at_most")
        if low is not None and high is not None and low > high:
            raise ValueError(f"at_least {low:g} is above at_most {high:g}")
        return self

    def holds(self, value: float) -> bool:
        """Whether a number is within the limits."""
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)


class Recall(_Strict):
    """Look the question up in the memory; what is found is put before the question of later steps."""

    k: int = Field(4, ge=1, le=100)


class Way(_Strict):
    """One way a route may take, and the questions it is for."""

    about: str = ""  # for a model that chooses: what kind of question this is
    words: Bound | None = None  # for `by: question`: how many words it has
    contains: tuple[Text, ...] = ()  # any of these texts, letter case aside


class Route(_Strict):
    """Choose one of several ways. `by: question` takes the first whose `words` and `contains` fit, else the
    last; `by: model` asks the model which `about` the question is."""

    by: Literal["question", "model"] = "question"
    ways: Mapping[str, Way] = Field(min_length=2)


class Solve(_Strict):
    """Run a strategy: one of the recipe's `solvers` by name, or one written here."""

    solver: Text | Solver


class Verify(_Strict):
    """Look whether the answer is right. `by`:

    checks      the task's own checks
    calculator  every `a + b = c` in the text is computed again (tool calculator)
    python      the model writes a program for the question; it must print the same answer (tool python)
    reward      a reward gives at least `at_least`
    agreement   a second, independent solution has the same answer
    """

    by: Literal["checks", "calculator", "python", "reward", "agreement"]
    reward: Named | None = None
    at_least: Finite = Field(0.5, ge=0, le=1)


class Revise(_Strict):
    """Solve again, with the last solution and what was found wrong with it before the question."""

    solver: Text | Solver


class AskHuman(_Strict):
    """Ask the human; {question}, {answer} and {text} stand for the run's own. What is said is put before the
    question of later steps (`use: hint`), is the verdict (`verdict`: yes or no), or the answer (`answer`)."""

    question: Text
    choices: tuple[Text, ...] = ()
    use: Literal["hint", "verdict", "answer"] = "hint"


class Remember(_Strict):
    """Store question and answer in the memory, if the answer was verified (`when: always`: in any case)."""

    when: Literal["verified", "always"] = "verified"


class Branch(_Strict):
    """Take the question apart, solve the parts at the same time, and put what was found before the question
    of later steps. `by: model` asks for parts, one a line; `by: lines` takes the question's own lines."""

    by: Literal["model", "lines"] = "model"
    most: int = Field(4, ge=1, le=16)
    solver: Text | Solver


class Call(_Strict):
    """Call a function of the user's: given to `load` by name, or registered as `abduce.functions`."""

    function: Text


Step: TypeAlias = Recall | Route | Solve | Verify | Revise | AskHuman | Remember | Branch | Call

KINDS: Mapping[str, type[_Strict]] = {
    "recall": Recall,
    "route": Route,
    "solve": Solve,
    "verify": Verify,
    "revise": Revise,
    "ask": AskHuman,
    "remember": Remember,
    "branch": Branch,
    "call": Call,
}


def kind_of(step: Step) -> str:
    """The name under which a recipe writes a step of this class."""
    return next(kind for kind, of in KINDS.items() if type(step) is of)


class When(_Strict):
    """A condition on the state: true if everything written holds."""

    route: str | None = None
    verified: bool | None = None  # False also where nothing has been verified yet
    complete: bool | None = None  # the last search was not cut short
    answered: bool | None = None
    score: Bound | None = None  # of the last result's best candidate
    said: str | None = None  # what the human said, letter case aside


class Edge(_Strict):
    """From one node to another (or `end`). Of a node's edges the first whose condition holds is taken, and
    that has not been taken `at_most` times in this run; without any, the graph ends."""

    source: Text
    target: Text
    when: When = When()
    at_most: int | None = Field(None, ge=1, le=100)


class Graph(_Strict):
    """Nodes by name, in the order they were written, and edges. The first node is where it starts."""

    nodes: Mapping[str, Step] = Field(min_length=1)
    edges: tuple[Edge, ...] = ()

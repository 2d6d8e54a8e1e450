"""A recipe is its data: object → data → object and object → YAML → object give the same one."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.recipe.model import Memory, Recipe
from abduce.orchestrator.steps import (
    AskHuman,
    Bound,
    Branch,
    Edge,
    Named,
    Recall,
    Remember,
    Revise,
    Route,
    Solve,
    Solver,
    Verify,
    Way,
    When,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True).filter(lambda name: name != "end")
TEXTS = st.text(min_size=1, max_size=20).filter(lambda text: "{" not in text and "$" not in text)
PARTS = {
    "strategy": [
        Named(name="chain_of_thought"),
        Named(name="beam", width=3, value="min"),
        Named(name="parallel_tempering", temperatures=(1.0, 0.5)),
        Named(name="particle_filter", select="orm", outcome={"kind": "judge", "n_eval": 2}),
        Named(name="revision", sampling={"temperature": 0.3}),
    ],
    "model": [
        Named(name="embedded"),
        Named(name="synthetic", depth=2),
        Named(name="embedded:a.gguf"),
        Named(name="sglang", url="http://127.0.0.1:1", api_key="${secret:KEY}"),
        Named(name="scripted", replies=["yes", "1e-3", "07", ""]),
    ],
    "policy": [None, Named(name="cot"), Named(name="few_shot", max_steps=3, examples=[["a", "b"]])],
    "reward": [None, Named(name="checks"), Named(name="judge", scale=5, model={"engine": "synthetic"})],
}
PART = {key: st.sampled_from(found) for key, found in PARTS.items()}
SCORED = ("beam", "parallel_tempering", "particle_filter")


@st.composite
def solvers(draw):
    strategy = draw(PART["strategy"])
    reward = draw(PART["reward"]) if strategy.name in SCORED else None
    model = draw(st.none() | PART["model"])
    return Solver(strategy=strategy, model=model, policy=draw(PART["policy"]), reward=reward)


BOUNDS = st.floats(0, 100).map(lambda low: Bound(at_least=low)) | st.integers(1, 9).map(
    lambda high: Bound(at_most=high)
)
SOLVERS = solvers()
WAYS = st.builds(Way, about=TEXTS, words=st.none() | BOUNDS, contains=st.lists(TEXTS, max_size=2).map(tuple))
STEPS = (
    st.builds(Recall, k=st.integers(1, 100))
    | st.builds(Solve, solver=SOLVERS)
    | st.builds(Revise, solver=SOLVERS)
    | st.builds(Verify, by=st.sampled_from(["checks", "python", "agreement"]))
    | st.builds(
        Verify, by=st.just("reward"), reward=st.sampled_from(PARTS["reward"][1:]), at_least=st.floats(0, 1)
    )
    | st.builds(AskHuman, question=TEXTS, choices=st.lists(TEXTS, max_size=2).map(tuple), use=st.just("hint"))
    | st.builds(Remember, when=st.sampled_from(["verified", "always"]))
    | st.builds(Branch, by=st.sampled_from(["model", "lines"]), most=st.integers(1, 16), solver=SOLVERS)
)
WHENS = st.builds(
    When,
    verified=st.none() | st.booleans(),
    score=st.none() | BOUNDS,
    said=st.none() | TEXTS,
    answered=st.none(),
)


@st.composite
def recipes(draw):
    """A lawful recipe: a chain of any steps that begins with one that solves, and ways back with limits."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    named = draw(st.dictionaries(NAMES, SOLVERS, max_size=2))
    first = Solve(solver=draw(st.sampled_from(sorted(named)) if named else SOLVERS))
    nodes = {name: draw(STEPS) if i else first for i, name in enumerate(names)}
    edges = []
    for i, name in enumerate(names):
        back = draw(st.sampled_from(names[: i + 1]))
        if draw(st.booleans()):
            edges.append(Edge(source=name, target=back, when=draw(WHENS), at_most=draw(st.integers(1, 100))))
        if i + 1 < len(names):
            edges.append(Edge(source=name, target=names[i + 1]))
    remembers = any(isinstance(step, Recall | Remember) for step in nodes.values())
    made = Recipe(
        name=draw(NAMES),
        description=draw(st.text(max_size=30)),
        model=draw(PART["model"]),
        policy=draw(PART["policy"]),
        tools=draw(st.sampled_from([["python"], ["python", {"name": "search", "folder": "a"}]])),
        memory=Memory(store="a.db", recall=draw(st.integers(1, 9))) if remembers else None,
        budget=draw(st.dictionaries(st.sampled_from(["tokens", "seconds"]), st.integers(1, 10**9))),
        seed=draw(st.integers(0, 2**63 - 1)),
        concurrency=draw(st.none() | st.integers(1, 99)),
        solvers=named,
        nodes=nodes,
        edges=edges,
    )
    takes = any(solver.reward is None for solver in made.scoring())
    return made.model_copy(update={"reward": draw(PART["reward"])}) if takes else made


@given(recipes())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_recipe_comes_back_as_it_was(made):
    assert recipe.from_data(made.data()) == made
    assert recipe.check(strict_yaml.parse(made.yaml())) == made
    assert recipe.from_data(json.loads(json.dumps(made.data()))) == made


@pytest.mark.parametrize("name", recipe.packaged())
def test_every_packaged_recipe_comes_back_as_it_was(name):
    found = recipe.read(name)
    assert recipe.check(strict_yaml.parse(found.yaml())) == found
    assert recipe.from_data(found.data()) == found
    assert recipe.from_data(found.data()).yaml() == found.yaml()


def test_defaults_are_left_out():
    assert Recipe(name="x", strategy="beam").data() == {"name": "x", "strategy": "beam"}


def test_a_route_comes_back_as_it_was():
    ways = {"a": Way(words=Bound(at_most=5)), "b": Way(contains=("sum",), about="no: 1")}
    nodes = {"r": Route(ways=ways), "s": Solve(solver=Solver(strategy="beam"))}
    made = Recipe(name="x", nodes=nodes, edges=[Edge(source="r", target="s")])
    assert recipe.check(strict_yaml.parse(made.yaml())) == made

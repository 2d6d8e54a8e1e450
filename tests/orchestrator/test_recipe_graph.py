"""The normal form of recipes, and the laws of their graphs."""

import re

import pytest

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.recipe.laws import draw
from abduce.orchestrator.recipe.model import Recipe
from abduce.orchestrator.solve import Pipeline
from abduce.orchestrator.steps import Edge, Named, Solve, Solver, Verify, When
from abduce.orchestrator.workflow import Workflow
from abduce.serving.errors import UsageError

HEAD = """name: test
model: synthetic
tools: [python]
solvers: {quick: {strategy: chain_of_thought}, deep: {strategy: {name: a_star, k: 3}, reward: checks}}
"""


def read(text, *overrides):
    return recipe.check(strict_yaml.parse(text, file="my.yaml"), overrides)


def steps(*lines):
    memory = "memory: {store: test.db, recall: 7}\n" if {"recall", "remember"} & set(lines) else ""
    return read(HEAD + memory + "pipeline:\n" + "".join(f"  - {line}\n" for line in lines))


def complaint(text):
    with pytest.raises(UsageError) as error:
        read(text)
    return str(error.value)


def arrows(found):
    return [f"{e.source} -> {e.target}" for e in found.edges]


# ---------------------------------------------------------------- the normal form


def test_a_strategy_is_one_step_and_a_pipeline():
    found = read("name: test\nstrategy: {name: beam, width: 2}\nmodel: synthetic\n")
    assert found.graph().nodes == {"solve": Solve(solver=Solver(strategy=Named(name="beam", width=2)))}
    assert found == Recipe(name="test", strategy={"name": "beam", "width": 2}, model="synthetic")
    assert isinstance(found.pipeline(), Pipeline)
    assert found.pipeline().settings == {"recipe": found.data()}


def test_a_pipeline_is_a_line_of_nodes():
    found = steps("recall", "solve: quick", "solve: deep", "remember")
    assert list(found.nodes) == ["recall", "solve", "solve-2", "remember"]
    assert arrows(found) == ["recall -> solve", "solve -> solve-2", "solve-2 -> remember"]
    assert found.nodes["recall"].k == 7
    assert isinstance(found.pipeline(), Workflow)


def test_retries_go_back_to_the_solve_before():
    found = steps("solve: quick", "verify: {with: python, retries: 2}", "remember")
    back, onward = (edge for edge in found.edges if edge.source == "verify")
    assert back == Edge(source="verify", target="solve", when=When(verified=False), at_most=2)
    assert onward == Edge(source="verify", target="remember")


def test_retries_go_back_to_the_way_that_solved():
    ways = "{a: {words: {at_most: 5}, solve: quick}, b: {solve: deep}}"
    found = steps(f"route: {{ways: {ways}}}", "verify: {by: checks, retries: 3}")
    back = {edge.target: edge.when for edge in found.edges if edge.source == "verify"}
    assert back == {"a": When(route="a", verified=False), "b": When(route="b", verified=False)}
    assert {"route -> a", "route -> b", "a -> verify", "b -> verify"} <= set(arrows(found))


def test_a_revise_after_a_verify_is_for_what_was_not_verified():
    with_retries = steps("solve: quick", "verify: {by: checks, retries: 2}", "revise: quick", "remember")
    once = steps("solve: quick", "verify: {by: checks}", "revise: quick", "remember")
    for found in (with_retries, once):
        to_revise, onward = (edge for edge in found.edges if edge.source == "verify")
        assert (to_revise.target, to_revise.when) == ("revise", When(verified=False))
        assert onward == Edge(source="verify", target="remember")
    assert "revise -> verify" in arrows(with_retries)
    assert "revise -> remember" in arrows(once)


def test_the_parameters_of_a_strategy_may_stand_beside_its_name_or_in_it():
    beside = steps("solve: {strategy: a_star, k: 3, reward: checks}")
    inside = steps("solve: {strategy: {name: a_star, k: 3}, reward: checks}")
    assert beside.nodes == inside.nodes


def test_nodes_and_edges_say_the_same_as_a_pipeline():
    line = steps("solve: quick", "verify: {by: checks, retries: 2}", "verify: python")
    written = read(
        HEAD + "nodes:\n  solve: {solve: quick}\n  verify: {verify: checks}\n  verify-2: {verify: python}\n"
        "edges:\n  - solve -> verify\n  - {from: verify, to: solve, when: {verified: false}, at_most: 2}\n"
        "  - verify -> verify-2\n"
    )
    assert written == line


@pytest.mark.parametrize("place", ["strategy.k=5", "k=5", "solvers.deep.strategy.k=5"])
def test_a_parameter_of_the_only_strategy_needs_no_path(place):
    found = read(HEAD + "pipeline:\n  - solve: deep\n  - verify: checks\n", place)
    assert found.solvers["deep"].strategy == Named(name="a_star", k=5)


def test_any_value_of_the_normal_form_can_be_set():
    found = read(
        HEAD + "pipeline:\n  - solve: {strategy: beam, width: 2}\n  - verify: {by: checks, retries: 1}\n",
        "nodes.solve.solve.strategy.width=3",
        "edges.1.at_most=4",
        "nodes.solve.solve.reward=checks",
        "models.reward.engine=synthetic",
        "models.reward.depth=2",
        "reward=rate",
        "nodes.verify.verify.by=reward",
    )
    assert found.nodes["solve"].solver.strategy == Named(name="beam", width=3)
    assert found.edges[1].at_most == 4
    assert found.models["reward"] == Named(name="synthetic", depth=2)


LINE = """pipeline:
  - solve: {strategy: beam, width: 2, reward: checks}
  - verify: checks
  - solve: quick
"""


def test_a_value_can_be_set_where_the_pipeline_has_it():
    found = read(
        HEAD + LINE,
        "pipeline.0.solve.width=3",
        "pipeline.0.solve.reward=rate",
        "pipeline.1.verify.retries=4",
        "pipeline.2.solve={strategy: a_star, k: 5, reward: checks}",
        "nodes.verify.verify.at_least=0.5",
    )
    assert found.nodes["solve"].solver.strategy == Named(name="beam", width=3)
    assert found.nodes["solve"].solver.reward == Named(name="rate")
    assert found.edges[1] == Edge(source="verify", target="solve", when=When(verified=False), at_most=4)
    assert found.nodes["verify"].at_least == 0.5
    assert found.nodes["solve-2"].solver.strategy.params == {"k": 5}


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("pipeline.0.solve.widht=3", "'widht' is not a parameter of beam. Did you mean 'width'?"),
        ("pipeline.1.verify.retries=many", "must be a number from 0 to 100, got 'many'."),
        ("pipeline.1.slove=quick", "a step is a name, or one name with its parts"),
        ("pipeline.2.solve.n=3", "names the solver 'quick'. Write --set solvers.quick.strategy.n=…."),
        ("pipeline.7.solve.n=3", "no number '7' in a list of 3."),
    ],
)
def test_what_is_wrong_there_is_told_as_it_was_typed(place, told):
    with pytest.raises(UsageError) as error:
        read(HEAD + LINE, place)
    assert str(error.value).startswith(f"--set {place}: ")
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("strategy: beam", "has strategy, no pipeline. Write --set strategy.KEY=…."),
        ("nodes: {a: {solve: quick}}", "has nodes, no pipeline. Write --set nodes.NAME.KEY=…."),
    ],
)
def test_a_recipe_without_a_pipeline_says_where_its_values_are(form, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        read(f"{HEAD}{form}\n", "pipeline.0.solve.n=3")


def test_several_strategies_are_set_by_their_paths():
    with pytest.raises(UsageError, match=r"--set k=5: .*solvers\.quick\.strategy=… or solvers\.deep"):
        read(HEAD + "pipeline:\n  - solve: quick\n  - solve: deep\n", "k=5")


def test_each_solver_takes_what_it_has_not_from_the_recipe():
    found = read(
        HEAD + "reward: {kind: judge, model: judge}\nmodels: {judge: {engine: synthetic, depth: 2}}\n"
        "policy: plain\npipeline:\n  - solve: quick\n  - solve: deep\n  - solve: {strategy: beam}\n"
    )
    quick, deep, beam = (found.options(solver) for solver in found.solvers_used())
    assert "reward" not in quick
    assert "models" not in quick
    assert (deep["reward"], deep["policy"], deep["tools"]) == ("checks", "plain", ("python",))
    assert beam["reward"] == {"kind": "judge", "model": "judge"}
    assert beam["models"] == {"judge": {"engine": "synthetic", "depth": 2}}


def test_a_recipe_made_in_python_keeps_the_same_laws():
    solve = Solve(solver=Solver(strategy="beam"))
    edges = [Edge(source="solve", target="verify"), Edge(source="verify", target="solve")]
    made = Recipe(name="x", nodes={"solve": solve, "verify": Verify(by="checks")}, edges=edges)
    with pytest.raises(UsageError, match="could go on for ever"):
        made.pipeline()


# ---------------------------------------------------------------- the laws

NODES = HEAD + "nodes:\n  a: {solve: quick}\n  b: {verify: checks}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NODES + "edges: [a -> c]\n", "my.yaml:8: edges.0.to: no node is named 'c'."),
        (
            NODES + "edges: [a -> b, {from: bb, to: a}]\n",
            "edges.1.from: no node is named 'bb'. Did you mean 'b'",
        ),
        (NODES + "edges: [a -> end]\n", "my.yaml:7: nodes.b: no edge leads here from 'a'"),
        (NODES + "edges:\n  - a -> b\n  - b -> a\n", "my.yaml:10: edges.1: the loop a -> b -> a could go on"),
        (NODES + "edges:\n  - a -> b\n  - a -> end\n", "my.yaml:10: edges.1: a -> end is never taken"),
        (
            NODES + "edges: [a -> b, {from: b, to: end, when: {route: x}}]\n",
            "edges.1.when.route: no way is named",
        ),
        (NODES + "edges: [a to b]\n", 'my.yaml:8: edges.0: an edge is "a -> b"'),
        (
            NODES + "edges: [{from: a, to: b, at_most: 0}]\n",
            "edges.0.at_most: must be greater than or equal to 1",
        ),
        (
            NODES + "edges: [{from: a, to: b, wenn: 1}]\n",
            "edges.0.wenn: 'wenn' is not a key of an edge. Did you mean 'when'",
        ),
        (
            NODES + "edges: [{source: a, to: b}]\n",
            "edges.0.source: 'source' is not a key of an edge. Write",
        ),
        (NODES + "edges: a -> b\n", "my.yaml:8: edges: must be a list"),
        (
            HEAD + "nodes: {a: {route: {ways: {x: {}, y: {}}}}, b: {solve: quick}}\n"
            "edges: [{from: a, to: b, when: {route: x}}]\n",
            "nodes.a.route.ways.y: leads nowhere",
        ),
        (HEAD + "nodes: {end: {solve: quick}}\n", "nodes.end: 'end' is the end of the graph"),
        (HEAD + "nodes: {a b: {solve: quick}}\n", "nodes.a b: a name is of letters"),
        (HEAD + "nodes: {}\n", "nodes: must be a mapping such as"),
        (HEAD + "nodes: {a: {solve: quick, verify: checks}}\n", "nodes.a: a step is a name, or one name"),
        (HEAD + "nodes: {a: {slove: quick}}\n", "nodes.a: no step is named 'slove'. Did you mean 'solve'"),
        (
            HEAD + "pipeline: [{solve: quik}]\n",
            "pipeline.0.solve: no solver is named 'quik'. Did you mean 'quick'",
        ),
        (
            HEAD + "pipeline: [{solve: quick}]\nnodes: {a: {solve: quick}}\n",
            "give pipeline or nodes, not both",
        ),
        (HEAD + "pipeline: [{solve: quick}]\nedges: [a -> b]\n", "edges: edges go with nodes"),
        (HEAD + "pipeline: [{verify: checks}]\n", "no step solves"),
        (
            HEAD + "pipeline: [{verify: {by: checks, retries: 2}}, {solve: quick}]\n",
            "retries: no step stands before",
        ),
        (
            HEAD + "pipeline: [{solve: quick}, {verify: {by: checks, retries: many}}]\n",
            "retries: must be a number",
        ),
        (
            HEAD + "pipeline: [{solve: quick}, {verify: {by: check}}]\n",
            "pipeline.1.verify.by: must be 'checks', ",
        ),
        (
            HEAD + "pipeline: [{solve: quick}, {verify: calculator}]\n",
            "calculator is a tool that the recipe has not",
        ),
        (HEAD + "pipeline: [{solve: quick}, {verify: reward}]\n", "the recipe has no reward"),
        (
            HEAD + "pipeline: [{solve: quick}, {verify: {by: checks, reward: rate}}]\n",
            "by checks asks no reward",
        ),
        (
            HEAD + "pipeline: [{route: {ways: {a: {solve: quick}}}}]\n",
            "route.ways: must have at least 2 items",
        ),
        (
            HEAD + "pipeline: [{route: {ways: {a: {}, b: {solve: quick}}}}]\n",
            "route.ways.a: in a pipeline a way says",
        ),
        (
            HEAD + "pipeline: [{solve: quick}, {ask: {question: 'Is {anser} right?'}}]\n",
            "Did you mean 'answer'",
        ),
        (
            HEAD + "pipeline: [{solve: quick}, {branch: {most: 3}}]\n",
            "pipeline.1.branch: the key 'solve' is missing",
        ),
        (
            HEAD + "pipeline: [{solve: quick}, {branch: {most: 30, solve: quick}}]\n",
            "branch.most: must be less than",
        ),
        (HEAD + "pipeline: [{solve: quick}, {call: 3}]\n", "pipeline.1.call: needs the name of a function"),
        (HEAD + "pipeline: [{solve: {strategy: self_consistency, reward: checks}}]\n", "uses no reward"),
        (
            HEAD + "models: {jugde: synthetic}\npipeline: [{solve: quick}, {verify: checks}]\n",
            "no step asks a model in this role",
        ),
        ("name: x\nstrategy: beam\nmemory: a.db\n", "memory: no step recalls or remembers"),
        (
            HEAD + "pipeline: [recall, {solve: quick}]\n",
            "my.yaml:5: pipeline.0.recall: the recipe has no memory",
        ),
        ("name: x\nsolvers: {a: {strategy: beam, widht: 3}}\nstrategy: beam\n", "Did you mean 'width'"),
        ("name: x\nsolvers: {a: {model: synthetic}}\nstrategy: beam\n", "the key 'strategy' is missing"),
        ("name: x\nstrategy: beam\nreward: {kind: judge, model: embeded}\n", "reward.model: No engine named"),
    ],
)
def test_a_graph_that_breaks_a_law_is_refused_with_the_place(text, told):
    found = complaint(text)
    assert told in found
    assert all(line.startswith("my.yaml:") for line in found.splitlines())


def test_a_limited_edge_breaks_a_loop_and_shadows_nothing():
    found = read(NODES + "edges:\n  - a -> b\n  - {from: b, to: a, at_most: 1}\n  - b -> end\n")
    assert arrows(found) == ["a -> b", "b -> a", "b -> end"]


def test_a_function_may_say_the_way():
    text = HEAD + "nodes: {a: {solve: quick}, f: {call: choose}}\n"
    found = read(text + "edges: [a -> f, {from: f, to: a, when: {route: again}, at_most: 1}]\n")
    assert found.pipeline(functions={"choose": lambda state: {}})


# ---------------------------------------------------------------- drawing


def test_a_drawing_names_every_node_and_every_edge():
    found = steps("recall", "solve: quick", "verify: {by: python, retries: 2}", "revise: deep", "remember")
    drawn = draw(found)
    lines = drawn.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(found.nodes)
    assert sum("►" in line for line in lines) == len(found.edges)
    assert "revise  if not verified  at most 2 times" in drawn
    assert [line.split()[1] for line in lines if line.endswith("↺")] == ["verify"]

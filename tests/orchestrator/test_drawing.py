from pathlib import Path

import pytest

from abduce.orchestrator import recipe
from abduce.orchestrator.drawing import draw, layers, mermaid
from abduce.orchestrator.steps import END, Edge, Graph, Solve, Verify, When
from abduce.serving.errors import UsageError

LOOP = Graph(
    nodes={"solve": Solve(solver="x"), "verify": Verify(by="checks"), "again": Solve(solver="x")},
    edges=(
        Edge(source="solve", target="verify"),
        Edge(source="verify", target="again", when=When(verified=False), at_most=2),
        Edge(source="again", target="verify"),
    ),
)


@pytest.mark.parametrize("name", recipe.packaged())
def test_a_node_stands_below_those_that_lead_to_it(name: str) -> None:
    graph = recipe.read(name).graph()
    layer, place = layers(graph), [*graph.nodes, END]
    for edge in graph.edges:
        if place.index(edge.target) > place.index(edge.source):
            assert layer[edge.target] > layer[edge.source]
    assert layer[END] == max(layer.values())


def test_mermaid_tells_conditions_and_where_it_may_end() -> None:
    lines = [line.strip() for line in mermaid(LOOP).splitlines()]
    assert 'n2 -- "if not verified, at most 2 times" --> n3' in lines
    assert "n3 --> n2" in lines
    assert "n2 --> n4" in lines  # verified, or tried often enough
    assert "n1 --> n4" not in lines


def test_the_same_graph_is_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        draw(LOOP, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"drawn as \.svg, \.png, \.mmd, not 'graph\.gif'"):
        draw(LOOP, tmp_path / "graph.gif")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Cannot write .*No such file"):
        draw(LOOP, tmp_path / "none" / "graph.svg")


def test_a_recipe_is_drawn_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from abduce.orchestrator.cli import main

    assert main(["recipe", "show", "whole-math", "--draw", str(tmp_path / "graph.mmd")]) == 0
    assert (tmp_path / "graph.mmd").read_text().startswith("flowchart TD")
    assert main(["recipe", "show", "whole-math", "--draw", "graph.gif"]) == 2
    assert "Write e.g. graph.svg" in capsys.readouterr().err

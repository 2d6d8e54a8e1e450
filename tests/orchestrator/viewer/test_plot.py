"""Pictures for papers."""

import sys
import xml.etree.ElementTree as XML

import pytest

from abduce.orchestrator.viewer import picture
from abduce.orchestrator.viewer.plot import drawn
from abduce.serving.errors import MissingExtra

SVG = "{http://www.w3.org/2000/svg}"
PICTURES = ("tree", "timeline", "curves")


@pytest.fixture(autouse=True)
def _matplotlib(request):
    if "missing" not in request.node.name:
        pytest.importorskip("matplotlib")


@pytest.mark.parametrize("what", PICTURES)
@pytest.mark.parametrize("name", ["parallel_tempering", "a_star", "best_of_n"])
def test_each_picture_of_each_kind_of_run_is_an_svg_with_words(run_of, what, name):
    told = picture.load(run_of(name).trace)
    root = XML.fromstring(drawn(told, what, "svg"))
    texts = {"".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")}
    assert texts & {"finished", "draws", "reward"}


def test_the_tree_has_a_mark_for_each_node(run_of):
    told = picture.load(run_of("particle_filter").trace)
    root = XML.fromstring(drawn(told, "tree", "svg"))
    groups = [g for g in root.iter(f"{SVG}g") if g.get("id", "").startswith("PathCollection")]
    marks = [list(g.iter(f"{SVG}use")) or list(g.iter(f"{SVG}path")) for g in groups]
    assert sum(map(len, marks)) == len(told.nodes) + len(groups) // 2  # and the legend's


@pytest.mark.parametrize("what", PICTURES)
def test_a_run_without_anything_is_an_empty_picture(what):
    assert drawn(picture.Picture(), what, "svg").startswith(b"<?xml")


def test_the_same_run_is_the_same_file(run_of):
    told = picture.load(run_of("particle_filter").trace)
    assert drawn(told, "tree", "svg") == drawn(told, "tree", "svg")


def test_it_may_be_a_png_or_a_pdf(run_of):
    told = picture.load(run_of("particle_filter").trace)
    assert drawn(told, "tree", "png").startswith(b"\x89PNG")
    assert drawn(told, "curves", "pdf").startswith(b"%PDF")


def test_missing_matplotlib_is_said_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'abduce\[plot\]'"):
        drawn(picture.Picture(), "tree", "svg")

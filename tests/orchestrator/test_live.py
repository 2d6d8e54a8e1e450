"""The picture of a run: what is shown, what is left out, and that model text stays text."""

import io
import random

import pytest
from rich.console import Console

from abduce.orchestrator import trace
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.live import Lines, Screen, budget_gauges, status_line, tree_lines, watch
from abduce.orchestrator.search_view import SearchView, clean, replay
from abduce.orchestrator.trace import Called, Noted, RunEnded, RunStarted
from abduce.serving.flow import Failure, Generate, Prompt, Usage


def row(i, parent, text="step", *, terminal=False, depth=1, score=None):
    return {
        "id": i,
        "parent": parent,
        "depth": depth,
        "text": text,
        "logp": None,
        "score": score,
        "terminal": terminal,
    }


def nodes(*rows, path=(0, 0), t=0.1):
    return Noted(path, "nodes", {"nodes": list(rows)}, t)


def scores(t=0.1, path=(0, 1), **given):
    return Noted(path, "scores", {"scores": {name[1:]: score for name, score in given.items()}}, t)


def view_of(*events):
    view = SearchView()
    for event in events:
        view(event)
    return view


def big_search(n, seed=0):
    draw = random.Random(seed)
    depth = {0: 0}
    for i in range(1, n):
        parent = draw.choice(list(depth))
        depth[i] = depth[parent] + 1
        yield nodes(
            row(i, parent, f"step {i}", depth=depth[i], terminal=draw.random() < 0.2), path=(i, 0), t=i / 10
        )
        yield scores(**{f"n{i}": draw.random()}, path=(i, 1), t=i / 10)


def words(view, **options):
    return [line.plain for line in tree_lines(view, **options)]


def test_the_tree_shows_scores_and_finished_solutions():
    view = view_of(
        nodes(row(1, 0, "two"), row(2, 1, "four", terminal=True, depth=2)), scores(n1=0.25, n2=1.0)
    )
    assert words(view) == ["└ 0.25 · two", "  └ 1.00 ✓ four"]


def test_ascii_terminals_get_ascii():
    view = view_of(nodes(row(1, 0, "zwei ≥ ☃", terminal=True), row(2, 0)))
    assert all(line.isascii() for line in words(view, plain=True))


@pytest.mark.parametrize(
    "text", ["[red]x[/red]", "[/]", "\x1b[31mred\x07", "a\r\nb\u202e\u200bc", "[link=x]y"]
)
def test_model_text_is_shown_as_text(text):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, height=20, color_system=None)
    screen = Screen(console)
    screen(RunStarted("r", text, 0))
    screen(nodes(row(1, 0, text)))
    console.print(screen.render())
    shown = out.getvalue()
    assert clean(text) in shown
    assert not set(shown.replace("\n", "")) & {chr(i) for i in range(32)}
    assert "\u202e" not in shown


@pytest.mark.parametrize("n", [2, 10, 50, 700])
@pytest.mark.parametrize("max_lines", [5, 20, 60])
def test_a_large_tree_fits_and_counts_what_it_leaves_out(n, max_lines):
    view = view_of(*big_search(n))
    lines = words(view, max_lines=max_lines)
    best = [f"step {node.id}" for node in view.best.path()]
    shown = sum(" step " in line for line in lines)
    left_out = sum(int(line.split("… ")[1].split()[0]) for line in lines if "… " in line)
    assert shown + left_out == n - 1
    assert len(lines) <= max(max_lines, 7)
    for step in (best[0], best[-1]):
        assert any(line.endswith(step) for line in lines)


def test_a_long_chain_is_drawn_without_recursion():
    chain = [row(i, i - 1, f"s{i}", depth=i) for i in range(1, 3000)]
    view = view_of(nodes(*chain))
    assert len(words(view)) == 2999
    assert len(words(view, max_lines=10)) <= 11


def test_the_best_is_the_chosen_one_once_the_run_has_ended():
    events = [nodes(row(1, 0, terminal=True), row(2, 0, terminal=True)), scores(n1=0.9, n2=0.4)]
    assert view_of(*events).best.id == 1
    ended = RunEnded("x", True, Usage(), 1.0, {"path": [0, 2]})
    assert view_of(*events, ended).best.id == 2


def test_the_best_so_far_is_the_best_of_all_after_every_event():
    view, draw = SearchView(), random.Random(3)
    for event in big_search(200):
        view(event)
        again = scores(**{f"n{draw.randrange(1, 200)}": draw.choice([None, 0.0, 0.5, 1.0])})
        for event in (again, again):
            view(event)
            scored = [node for node in view.nodes if node.score is not None]
            rank = [(node.terminal, node.score, node.depth) for node in scored]
            assert view.best is (scored[rank.index(max(rank))] if scored else None)


def test_resampling_and_pruning_dim_what_was_given_up():
    view = view_of(
        nodes(row(1, 0), row(2, 0), row(3, 0)),
        Noted((1, 0), "resample", {"nodes": [1, 2, 3], "ancestors": [0, 0, 2]}, 0.2),
    )
    assert [node.pruned for node in view.nodes] == [False, True, False]


def test_branches_with_stores_of_their_own_do_not_mix():
    left, right = (2, 0, 0, 0, 0), (2, 0, 1, 0, 0)
    view = view_of(nodes(row(1, 0, "left"), path=left), nodes(row(1, 0, "right"), path=right))
    view(nodes(row(2, 1, "below right", depth=2), path=(2, 0, 1, 1, 0)))
    assert words(view) == ["├ " + " --  · left", "└ " + " --  · right", "  └  --  · below right"]


def test_usage_and_failures_are_counted_and_the_end_has_the_last_word():
    call = Generate(Prompt.user("q"))
    view = view_of(
        Called((0, 0), call, (), Usage(10, 4, 6, 1), 0.0, 1.0),
        Called((0, 1), call, Failure("engine", "gone"), Usage(calls=1), 0.0, 2.0),
    )
    assert view.usage == Usage(10, 4, 6, 2)
    assert "6 tokens (3/s)" in status_line(view).plain
    assert "1 failed" in status_line(view).plain
    view(RunEnded(None, False, Usage(calls=9), 3.0, {"stopped": "budget of 9 calls is used up"}))
    assert "9 calls" in status_line(view).plain
    assert "stopped: budget of 9 calls" in status_line(view).plain


def test_one_gauge_for_each_limit():
    assert len(budget_gauges(SearchView(), Budget(tokens=100, seconds=5))) == 2
    assert budget_gauges(SearchView(), Budget()) == []
    budget_gauges(SearchView(), Budget(tokens=0))  # nothing to divide by


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_without_a_terminal_there_are_plain_lines(environment):
    out = io.StringIO()
    console = Console(file=out, _environ={"COLUMNS": "100", **environment}, width=100)
    with watch(Budget(tokens=50), console) as observer:
        assert isinstance(observer, Lines)
        observer(RunStarted("r", "what?", 3))
        for event in big_search(100):
            observer(event)
        observer(RunEnded(1, True, Usage(), 10.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "what?   (seed 3, budget: 50 tokens)"
    assert "\x1b" not in out.getvalue()
    assert 3 < len(lines) < 40


def test_a_terminal_without_colour_gets_no_colour():
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, no_color=True, width=80, height=20, _environ={"TERM": "xterm"}
    )
    with watch(Budget(tokens=50), console) as observer:
        assert isinstance(observer, Screen)
        for event in big_search(30):
            observer(event)
    assert "\x1b[32m" not in out.getvalue()
    assert "step" in out.getvalue()


def test_a_file_of_events_gives_the_same_picture(tmp_path):
    events = [
        RunStarted("r", "q", 0),
        *big_search(40),
        Called((99, 0), Generate(Prompt.user("q")), Failure("engine", "gone"), Usage(5, 0, 3, 1), 1.0, 0.5),
        RunEnded("42", True, Usage(5, 0, 3, 1), 9.0, {"path": [0, 1]}),
    ]
    file = trace.JsonLines(tmp_path / "trace.jsonl")
    for event in events:
        file(event)
    file.close()
    seen, live = replay(trace.read(tmp_path / "trace.jsonl")), view_of(*events)
    assert sorted(words(seen)) == sorted(words(live))
    assert (seen.usage, seen.failures, seen.best.id) == (live.usage, 1, 1)

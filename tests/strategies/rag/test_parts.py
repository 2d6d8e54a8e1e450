"""Demonstrations, documents, metrics, and the reader that chooses its own θ."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.orchestrator.trace import Noted
from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, ToolResult
from abduce.strategies.rag.allocation import Allocation, Gains
from abduce.strategies.rag.demonstrations import Demonstration, chosen, load
from abduce.strategies.rag.documents import Document, documents, found, merged, ordered
from abduce.strategies.rag.lines import PREFIXES, Line, bare, canonical, last_line, read
from abduce.strategies.rag.metrics import contained, error_class, exact_match, normalised, token_f1

from .library import chains, corpus, pipeline, reader, task

TOLD = chains(6, seed=5)
MODEL = Allocation((0.3, 0.1, 0.2), (0.0, 0.0, 0.0), -0.7, tasks={"library": Gains(1.0, 0.2)})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("library"), TOLD)


# ---------------------------------------------------------------- the lines


@given(st.sampled_from(sorted(PREFIXES)), st.text(st.characters(codec="ascii", categories=["L", "N", "Zs"])))
def test_a_line_that_is_written_is_read(kind, text):
    line = Line(kind, " ".join(text.split()))
    assert read(str(line)) == line and read(f"\n {line}\nFollow up: other") == line
    assert bare(kind, str(line)) == bare(kind, f" {line.text}") == line.text


@pytest.mark.parametrize("text", ["", "\n", "It is Oslo.", "The answer is Oslo", "Final answer", "Up: x"])
def test_what_has_no_prefix_is_no_line(text):
    assert read(text) is None


def test_small_liberties_with_prefixes_are_read():
    for text in ("**Follow-up:** Who?", "follow up question: Who?", "- Follow up: Who?"):
        assert read(text) == Line("follow_up", "Who?")
    assert read("The final answer is: Oslo") == read("So, the final answer is Oslo") == Line("final", "Oslo")
    assert last_line("a\n b \n\n") == "b" and last_line(" \n") == ""
    assert canonical(" ?!") == ""


# ---------------------------------------------------------------- documents


def test_rows_of_any_search_become_documents():
    rows = [{"id": 1, "title": "T", "text": "a  b\nc"}, "plain", {"no": "text"}, {"source": "s", "text": "d"}]
    made = documents(rows, 3, 2)
    assert [(d.id, d.line(), d.rank) for d in made] == [
        ("1", "[T] a b", 1),
        ("\nplain", "plain", 2),
        ("s\nd", "[s] d", 3),
    ]
    assert found(ToolResult("all of it"), 5, 9) == [Document("\nall of it", "", "all of it")]
    assert found(Failure("tool", "gone"), 5, 9) is found(ToolResult("no", ok=False), 5, 9) is None
    assert found(ToolResult("", value=[]), 5, 9) == []


def test_what_was_found_before_is_not_added_again():
    a, b, c = (Document(x, "", x, i) for i, x in enumerate("abc", 1))
    groups = merged([[a, b], [b, c], [a]])
    assert groups == [[a, b], [c], []]
    assert ordered([a, b, c], reverse=True) == [c, b, a] and ordered([c, a], reverse=False) == [a, c]


# ---------------------------------------------------------------- demonstrations

SHOTS = [Demonstration(f"Where was {name} born?", f"in {name}") for name in ("Ann", "Bob", "Cid", "Dan")]


def test_the_same_demonstrations_for_every_question_by_seed_and_never_the_question_itself():
    first = chosen(SHOTS, 2, "Who?", 0)
    assert first == chosen(SHOTS, 2, "When?", 0) and len(first) == 2
    assert len({tuple(d.answer for d in chosen(SHOTS, 2, "Who?", seed)) for seed in range(20)}) > 3
    assert all(shot.question != SHOTS[1].question for shot in chosen(SHOTS, 4, "where was Bob born", 0))
    rest = chosen(SHOTS, 4, SHOTS[1].question, 0)
    assert [s for s in chosen(SHOTS, 4, "Who?", 0) if s != SHOTS[1]] == rest


def test_the_nearest_demonstration_stands_last():
    assert chosen(SHOTS, 2, "In which year was Cid born?", None)[-1] == SHOTS[2]
    assert len(chosen(SHOTS, 9, "Xylophone", None)) == 4


def test_demonstrations_come_back_from_their_file(tmp_path):
    made = Demonstration("q", "a", (("s", "t"),), ({"id": "1", "title": "T", "text": "x"},))
    (tmp_path / "d.jsonl").write_text(json.dumps(made.row()) + "\n\n")
    assert load(str(tmp_path / "d.jsonl")) == (made,)
    assert made.lines() == ["Follow up: s", "Intermediate answer: t", "So the final answer is: a"]
    for wrong in ("{", '{"question": "q"}', '{"question": "q", "answer": "a", "steps": [["s"]]}', "[]"):
        (tmp_path / "d.jsonl").write_text(f"\n{wrong}\n")
        with pytest.raises(UsageError, match=r"d\.jsonl:2"):
            load(str(tmp_path / "d.jsonl"))


def test_documents_of_a_demonstration_are_shown_instead_of_searched(file):
    shot = {
        "question": "q",
        "answer": "a",
        "documents": [{"id": "1", "title": "Best", "text": "the best"}] * 1,
    }
    result = pipeline("drag", file, reader(TOLD), k=1, demos=(shot,)).solve(task(TOLD[0], 1))
    assert result.usage.tool_calls == 1
    assert result.diagnostics["sent"]["documents"] == 2


# ---------------------------------------------------------------- metrics


def test_answers_are_compared_after_normalisation_and_the_best_alias_counts():
    assert normalised("The  U.S.A., a Country!") == "usa country"
    assert exact_match("the Oslo", ["Bergen", "oslo."]) == 1 and exact_match("Oslo now", ["Oslo"]) == 0
    assert contained("it is Oslo now", ["Oslo"]) == 1 and contained("Osloite", ["Oslo"]) == 0
    assert token_f1("Oslo", ["Oslo Norway", "Paris"]) == pytest.approx(2 / 3)
    assert (token_f1("", ["Oslo"]), token_f1("x", []), contained("x", [""])) == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "documents", "kind"),
    [
        ("Oslo", [], ""),
        ("Bergen", ["Bergen is a town."], "retrieval"),
        ("Bergen", ["Oslo and Bergen"], "reasoning"),
        ("Rome", ["Oslo and Bergen"], "unfaithful"),
        ("", ["Oslo"], "evaluation or refusal"),
        ("It is not mentioned.", ["Oslo"], "evaluation or refusal"),
        ("the town of Oslo", ["Oslo"], "evaluation or refusal"),
    ],
)
def test_why_an_answer_is_wrong(answer, documents, kind):
    assert error_class(answer, ["Oslo"], documents) == kind


# ---------------------------------------------------------------- choosing θ


def test_without_a_model_one_call_below_64k_and_follow_ups_above(file):
    for budget, calls in ((63_999, 1), (64_000, 5)):
        made = pipeline("rag", file, reader(TOLD), k=1, budget_tokens=budget)
        assert made.solve(task(TOLD[0], 3)).usage.calls == calls


def test_with_a_model_what_it_expects_to_be_best_within_the_budget(file):
    used = []
    for budget in (1, 300, 3_000, 100_000):
        events = []
        made = pipeline(
            "rag", file, reader(TOLD), k=5, budget_tokens=budget, allocation=MODEL.to_json(), like="library"
        )
        result = made.solve(task(TOLD[1], 3), observers=[events.append])
        theta = result.diagnostics["theta"]
        used.append(MODEL.score(made.strategy.theta(), MODEL.tasks["library"]))
        [note] = [e for e in events if isinstance(e, Noted) and e.note == "theta"]
        assert note.data["k"] == theta["k"] <= 5 and note.data["budget_tokens"] == budget
        assert budget < 300 or result.usage.input_tokens <= budget
    assert used == sorted(used) and used[0] < used[-1]


def test_a_budget_that_nothing_fits_reads_nothing(file):
    made = pipeline("rag", file, "Oslo", k=5, budget_tokens=1, allocation=MODEL.to_json())
    assert made.strategy.theta() == (0, 0, 1)
    with pytest.raises(UsageError, match="Known: library"):
        pipeline("rag", file, "Oslo", allocation=MODEL.to_json(), like="other")

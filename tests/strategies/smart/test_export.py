"""Training data: only what was right, against the problem alone, no problem in both splits."""

import json

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.smart.export import records

from .test_learning import row


def rows():
    found = []
    for i in range(200):
        words = {"question": f"What is {i}?", "full": i % 4 == 0}
        text = "the program" if i % 2 else "Step by step."
        found.append(row(**words, arm="a", attempt=1, y=i % 2, answer="1", text=text, tokens=50))
        found.append(row(**words, arm="b", attempt=2, y=1, answer="2", text="So.", tokens=30, history=True))
    return found


def test_only_right_attempts_are_written_and_against_the_problem_alone():
    made = records(rows())
    assert len(made.sft) == 200
    for record in made.sft:
        system, user, assistant = record["messages"]
        assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant"]
        assert user["content"].startswith("What is") and "So." not in user["content"]
        arm = record["meta"]["arm"]
        assert assistant["content"].startswith(f"<strategy>{arm}</strategy>\n") and arm in system["content"]
    assert {record["meta"]["attempt"] for record in made.sft} == {2}  # the cheapest was second


def test_no_problem_is_in_both_splits():
    made = records(rows(), select="all", held_out=0.3)
    sides = {}
    for record in (*made.sft, *made.pairs):
        question = (record.get("messages") or record["prompt"])[1]["content"]
        sides.setdefault(question, set()).add(record["meta"]["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "test"} == set().union(*sides.values())


def test_several_right_arms_are_selected_as_wished():
    words = {"question": "Q?", "pi": {"a": 0.9, "b": 0.1}, "answer": "1"}
    both = [row(**words, arm="a", text="x", tokens=50), row(**words, arm="b", text="y", tokens=30)]
    for select, arms in {"cheapest": ["b"], "policy": ["a"], "all": ["a", "b"]}.items():
        assert [record["meta"]["arm"] for record in records(both, select=select).sft] == arms
    assert {r["weight"] for r in records(both, select="all").sft} == {0.5}
    with pytest.raises(UsageError):
        records(both, select="best")


def test_pairs_prefer_a_right_arm_to_a_wrong_one():
    made = records(rows())
    assert len(made.pairs) == 100
    for pair in made.pairs:
        assert pair["chosen"][0]["content"].startswith("<strategy>b</strategy>")
        assert pair["rejected"][0]["content"].startswith("<strategy>a</strategy>")


def test_outcomes_of_all_arms_come_from_full_rows_only():
    made = records(rows())
    assert len(made.router) == 50 and made.router[0]["outcomes"] == {"a": 0, "b": 1}


def test_what_a_judge_has_said_is_left_out_unless_wished():
    judged = [row(question="Q?", text="x", kind="judge", c=0.7)]
    assert not records(judged).sft and records(judged, verifiers={"judge"}).sft


def test_at_most_cap_records_of_an_arm_and_no_answer_twice():
    assert len(records(rows(), cap=7).sft) == 7
    assert len(records([row(question="Q?", text="x", answer="1")] * 5, select="all").sft) == 1


def test_the_same_rows_give_the_same_bytes_in_any_order(tmp_path):
    records(rows(), cap=20).write(tmp_path / "one")
    records(rows()[::-1], cap=20).write(tmp_path / "two")
    for name in ("sft", "pairs", "router"):
        text = (tmp_path / "one" / f"{name}.jsonl").read_text()
        assert text == (tmp_path / "two" / f"{name}.jsonl").read_text() and text
        assert all(json.loads(line) for line in text.splitlines())

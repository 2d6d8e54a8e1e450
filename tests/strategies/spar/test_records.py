"""What the refiner said, how alike texts are, and the records."""

import json
from random import Random

import pytest

from abduce.serving.flow import Message
from abduce.strategies.base import Task
from abduce.strategies.spar.judges import asked, label
from abduce.strategies.spar.records import CAPS, Played, records
from abduce.strategies.spar.refiner import END, START, messages, rewritten
from abduce.strategies.spar.similarity import similarity

from .world import NO, TASK, World, answer_in


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (f"Hm. {START}\nA\nB\n{END} done", "A\nB"),
        (f"First {START} x {END}, then {START} y {END}", "y"),
        (f"{START} open", ""),
        (f"{END}{START}", ""),
        ("nothing", ""),
        (f"{START} {END}", ""),
    ],
)
def test_what_stands_between_the_marks(said, answer):
    assert rewritten(said) == answer


def test_the_refiners_conversation_begins_with_the_judges():
    begun = asked(TASK, "y").messages
    assert messages(TASK, "y", "critique")[: len(begun)] == begun


def test_similarity_is_that_of_the_longest_common_subsequence():
    def slow(a, b):
        rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
        return rows[-1][-1]

    rng = Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("abc d", k=rng.randrange(1, 90))) for _ in "ab")
        assert similarity(a, b) == pytest.approx(2 * slow(a, b) / (len(a) + len(b)))
        assert similarity(a, a) == 1 and similarity(a, b) == similarity(b, a)


# ---------------------------------------------------------------- records


async def self_played(n=6, **parameters):
    """Searches of several tasks: "b" is mended by its second rewrite, "d" by none; votes are divided."""
    played = []
    for i in range(n):
        task = Task(f"Write word {i}.")
        world = World({"a": 5, "b": 1, "c": 3, "b0": 2, "b01": 4, "c0": 2, "c01": 4}, drafts=("a", "b", "d"))
        result = await world.play(drafts=3, start="failing", task=task, seed=i, **parameters)
        played.append(Played(task=task, facts=result.diagnostics, id=f"t{i}", seed=i, model="scripted"))
    return played


async def test_each_pair_is_a_valid_answer_over_the_invalid_draft_it_came_from():
    played = await self_played()
    made = records(played)
    won = [each for each in played if each.facts["winner"] is not None]
    assert 0 < len(made.dpo) == len(won) < len(played)
    for pair in made.dpo:
        [source] = [each for each in played if each.id == pair["meta"]["task"]]
        rows = {row["answer"]: row for row in source.facts["versions"]}
        assert pair["prompt"] == [{"role": "user", "content": source.task.question}]
        [chosen], [rejected] = pair["chosen"], pair["rejected"]
        assert rows[chosen["content"]]["valid"] and not rows[rejected["content"]]["valid"]
        assert rows[rejected["content"]]["node"] == source.facts["root"]
        assert pair["meta"]["similarity"] == pytest.approx(
            similarity(chosen["content"], rejected["content"]), abs=1e-4
        )


async def test_a_refinement_goes_from_the_winners_parent_to_all_that_was_said():
    made = records(await self_played())
    for record in made.refiner_sft:
        question, critique, ask, target = (message["content"] for message in record["messages"])
        assert 'Output: "b0"' in question  # not the draft "b"
        assert critique == NO and START in ask
        assert rewritten(target) == "b01"


async def test_unanimous_votes_never_become_records():
    played = await self_played()
    made = records(played)
    divided = {
        (each.id, row["answer"])
        for each in played
        for row in each.facts["versions"]
        if row["yes"] and row["no"]
    }
    assert made.judge_sft
    for record in made.judge_sft:
        question, critique = (message["content"] for message in record["messages"])
        assert (record["meta"]["task"], answer_in(Message("user", question))) in divided
        assert label(critique) == int(record["meta"]["value"] > 0.5)
    rewrites = [r for r in made.judge_sft if r["meta"]["depth"]]
    per_search = [(r["meta"]["task"], r["meta"]["value"] > 0.5) for r in rewrites]
    assert len(set(per_search)) == len(per_search)


async def test_caps_hold_and_a_prompt_is_learnt_from_once():
    played = await self_played()
    made = records([*played, *played])
    assert made == records(played)
    capped = records(played, caps={**CAPS, "refiner": 1, "rewrites no": 0})
    assert len(capped.refiner_sft) == 1
    assert all(r["meta"]["value"] > 0.5 for r in capped.judge_sft if r["meta"]["depth"])


async def test_pairs_that_have_little_in_common_can_be_left_out():
    played = await self_played()
    assert records(played, min_similarity=0.99).dpo == ()


async def test_the_same_seeds_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        records(await self_played()).write(tmp_path / name)
    for file in ("dpo.jsonl", "refiner_sft.jsonl", "judge_sft.jsonl"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() != b""


META = {"task": str, "judge": str, "value": float, "depth": int, "model": str, "seed": int, "trace": str}


@pytest.mark.parametrize("form", ["trl", "llama_factory"])
async def test_the_files_have_the_trainers_form(tmp_path, form):
    records(await self_played(confirm_votes=5)).write(tmp_path, form)
    pairs = [json.loads(line) for line in (tmp_path / "dpo.jsonl").read_text().splitlines()]
    for pair in pairs:
        prompt = pair.pop("prompt" if form == "trl" else "messages")
        chosen, rejected = pair.pop("chosen"), pair.pop("rejected")
        for said in [prompt, *([chosen, rejected] if form == "trl" else [[chosen], [rejected]])]:
            assert said and all(set(message) == {"role", "content"} for message in said)
        assert pair.keys() == {"meta"}
        assert isinstance(pair["meta"]["confirmed"], float)
    for name in ("refiner_sft", "judge_sft"):
        for line in (tmp_path / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert record.keys() == {"messages", "meta"}
            roles = [message["role"] for message in record["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            for key, kind in META.items():
                assert isinstance(record["meta"][key], kind)

"""One problem: what is shown, what is told of a failed attempt, what is written."""

import asyncio
import json
from dataclasses import replace

import pytest

from abduce.memory.concepts import Library, rendering, seeds
from abduce.memory.in_memory import InMemory
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.serving.errors import UsageError
from abduce.strategies.arcmemo import ArcMemo, scoring
from abduce.strategies.arcmemo.trials import RECONSIDER
from abduce.strategies.base import Check, Task
from abduce.strategies.policy import policy

from .skilled import Skilled
from .world import LABELS, MIRROR, POLICY, PUZZLES, RIGHT, WRONG, Said, arcmemo, filled, services, solved

YES = "```yaml\n- mirror left to right\n```"
CODE = "<pseudocode>\nmirror left to right\n</pseudocode>\n<summary>mirrors</summary>"
WRITTEN = (
    "```yaml\n- concept: mirror left to right\n  cues: [a new cue]\n- {concept: flip, kind: routine}\n```"
)


# ---------------------------------------------------------------- attempts


async def test_a_program_that_fits_the_examples_is_the_answer():
    said = Said(RIGHT)
    result = await solved(said, read="none")
    assert json.loads(result.answer) == [[[8, 7]]]
    assert (result.complete, result.text, len(said.asked)) == (True, RIGHT, 1)
    assert result.diagnostics["verified"] is True
    assert [candidate.score for candidate in result.candidates] == [1.0]


async def test_a_failed_attempt_is_shown_with_what_the_examples_said():
    said = Said(WRONG, "I give up.", RIGHT)
    result = await solved(said, read="none")
    assert result.diagnostics["passes"] == 3 and result.diagnostics["verified"]
    assert [candidate.score for candidate in result.candidates] == [0.0, 0.0, 1.0]
    first, second, third = said.asked
    assert MIRROR.text in first and RECONSIDER not in first
    assert second.startswith(first) and second.endswith(RECONSIDER)
    assert (
        WRONG in second and "Example 2: the output is wrong. Your program returned (1 x 3):\n4 5 6" in second
    )
    assert "I give up." in third and WRONG not in third  # the last attempt alone
    assert "no block of Python" in third


@pytest.mark.parametrize(("feedback_passes", "shown"), [(0, [0, 0, 0]), (1, [0, 1, 1]), (2, [0, 1, 2])])
async def test_so_many_of_the_last_attempts_are_shown(feedback_passes, shown):
    said = Said(WRONG)
    await solved(said, read="none", feedback_passes=feedback_passes)
    assert [text.count("# An attempt that failed") for text in said.asked] == shown


@pytest.mark.parametrize("max_passes", [1, 2, 4])
async def test_there_are_no_more_passes_than_allowed(max_passes):
    said = Said(WRONG)
    result = await solved(said, read="none", max_passes=max_passes)
    assert len(said.asked) == max_passes
    assert (result.complete, result.diagnostics["verified"]) == (True, False)
    assert json.loads(result.answer) == [[[7, 8]]]  # the best there was


async def test_nothing_about_the_test_inputs_is_ever_told():
    said = Said(WRONG)
    await solved(said, read="none")
    for text in said.asked:
        assert "Test 1, input (1 x 2):\n7 8" in text
        assert "8 7" not in text
        feedback = text.partition("# An attempt that failed")[2]
        assert "Test" not in feedback and "7 8" not in feedback


async def test_several_samples_of_a_pass_stop_at_one_that_fits():
    class Samples(Said):
        def __call__(self, request, seed):
            super().__call__(request, seed)
            return [WRONG, RIGHT, "no"]

    said = Samples("")
    result = await solved(said, read="none", samples=3)
    assert (len(said.asked), len(result.candidates)) == (1, 3)
    assert result.text == RIGHT


async def test_controls_are_shown_no_memory_and_tell_what_it_is_worth():
    def say(request, seed):
        text = request.prompt.messages[-1].content
        if "Do not solve" in text:
            return YES
        return RIGHT if "# Concepts from solved problems" not in text else WRONG

    memory = await filled()
    result = await solved(say, memory, control=2)
    assert result.diagnostics["ablation"] == {"with": [False], "without": [True, True]}
    assert result.text == RIGHT and result.diagnostics["verified"]
    [shown] = await memory.get(["mirror left to right"])
    assert (shown.uses, shown.wins) == (1, 0)  # it was no help
    [kept] = await memory.get(["solution of mirror"])
    assert kept.evidence[0].read == ()  # so this is independent support


async def test_an_error_is_told_and_a_loop_is_ended():
    loop = "```python\ndef transform(g):\n    while True: pass\n```"
    said = Said("```python\ndef transform(g):\n    return g[9]\n```", loop, RIGHT)
    result = await Driver(services(said, seconds=1), seed=0).run(
        arcmemo(read="none").solve(MIRROR.task(), seed=0)
    )
    assert "IndexError" in said.asked[1]
    assert "stopped after 1 s" in said.asked[2] or "of CPU" in said.asked[2]
    assert result.diagnostics["verified"]


async def test_other_tasks_are_held_to_their_checks_and_the_right_answer_is_not_told():
    task = Task("7 x 8 =", checks=(Check("numeric", {"value": 56}),))
    said = Said("It is 54.", "It is 56.")
    result = await solved(said, task=task, policy=policy("cot"), read="none")
    assert (result.answer, result.diagnostics["verified"]) == ("56", True)
    assert "The answer is not right: 54." in said.asked[1]
    assert "56" not in said.asked[1]


async def test_a_task_that_cannot_be_verified_is_tried_once_and_teaches_nothing():
    memory = await filled()
    before = await memory.version()
    result = await solved(
        Said("```yaml\n[]\n```", "", "It is 56."), memory, Task("7 x 8 ="), policy=policy("cot")
    )
    assert (result.answer, result.diagnostics["verified"]) == ("56", None)
    assert await memory.version() == before


# ---------------------------------------------------------------- reading


async def test_the_solver_reads_problem_instructions_and_then_the_selected_concepts():
    said = Said(YES, RIGHT)
    await solved(said, await filled(), write=False)
    select, solve = said.asked
    assert select.endswith(MIRROR.text)
    assert solve.startswith(MIRROR.text)
    assert solve.endswith(rendering.selected(seeds(), ["mirror left to right"]))


@pytest.mark.parametrize(
    ("read", "calls", "in_full"), [("select", 2, 1), ("names", 1, 0), ("all", 1, 34), ("none", 1, 0)]
)
async def test_four_ways_to_read(read, calls, in_full):
    said = Said(*[YES] * (read == "select"), RIGHT)
    await solved(said, await filled(), write=False, read=read)
    assert len(said.asked) == calls
    assert said.asked[-1].count("(structure)") + said.asked[-1].count("(routine, ") == in_full
    assert ("transpose" in said.asked[-1]) == (read != "none")


async def test_concepts_are_chosen_again_after_a_failure_if_so_wished():
    said = Said(YES, WRONG, "```yaml\n- transpose\n```", RIGHT)
    result = await solved(said, await filled(), write=False, reselect=True)
    assert [each["names"] for each in result.diagnostics["memory"]] == [
        ["mirror left to right"],
        ["transpose"],
    ]
    assert "Your program returned" in said.asked[2]
    assert "- transpose (routine" in said.asked[3]


async def test_seeds_begin_an_empty_memory_and_are_its_first_version():
    memory = InMemory()
    await solved(Said(YES, WRONG), memory, seeds="grids", max_passes=1)
    assert await memory.version() == 1
    assert Library.of(await memory.everything()).concepts == seeds().concepts
    [change, *_] = await memory.history()
    assert change.reason == "the seeds grids"


async def test_lessons_are_another_format():
    lesson = "lessons: [{situation: each row is backwards, suggestion: mirror it}]"
    said = Said("Rows.", "```yaml\n- 1\n```", RIGHT, "I saw", "- {situation: s, suggestion: t}")
    memory = await filled(lesson)
    result = await solved(said, memory, format="oe")
    assert "mirror it" in said.asked[2]
    assert len(result.diagnostics["written"]) == 1
    assert len(Library.of(await memory.everything()).lessons) == 2


# ---------------------------------------------------------------- writing


async def test_what_was_solved_is_written_with_its_evidence_and_what_was_shown_gets_credit():
    memory = await filled()
    result = await solved(Said(YES, RIGHT, CODE, WRITTEN), memory)
    assert result.diagnostics["written"] == ["mirror left to right", "flip", "solution of mirror"]
    assert result.diagnostics["version"] == 2 == await memory.version()
    old, new = await memory.get(["mirror left to right", "flip"])
    assert "a new cue" in old.data["cues"] and old.data["used_in"][-1] == "mirror"
    assert (old.uses, old.wins, new.uses) == (1, 1, 0)
    [evidence] = new.evidence
    assert (evidence.source, evidence.verifier, evidence.confidence) == ("mirror", "tests", 1.0)
    assert evidence.read == ("mirror left to right",)  # no independent support of that


async def test_a_failed_trace_never_changes_what_the_store_says():
    memory = await filled()
    before = await memory.everything()
    await solved(Said(YES, WRONG, WRITTEN), memory)
    after = await memory.everything()
    assert await memory.version() == 1
    assert [entry.data for entry in after] == [entry.data for entry in before]
    [shown] = await memory.get(["mirror left to right"])
    assert (shown.uses, shown.wins) == (1, 0)


@pytest.mark.parametrize("options", [{"write": False}, {}])
async def test_without_leave_or_without_a_memory_nothing_is_written(options):
    memory = await filled() if options else None
    said = Said(YES, RIGHT) if options else Said(RIGHT)
    result = await solved(said, memory, **options)
    assert "written" not in result.diagnostics
    assert memory is None or await memory.version() == 1
    assert ("This run has no memory" in str(result.diagnostics.get("notes"))) is (memory is None)


async def test_what_was_retired_is_not_written_again():
    memory = await filled()
    [entry] = await memory.get(["transpose"])
    await memory.write([replace(entry, status="retired")])
    said = Said(YES, RIGHT, CODE, "- {concept: transpose, kind: routine, cues: [back again]}")
    result = await solved(said, memory)
    assert "transpose" not in said.asked[0].partition("# Your task")[0].replace("transposes", "")
    assert result.diagnostics["notes"] == ["transpose: it was retired, and is not written again"]
    [entry] = await memory.get(["transpose"])
    assert entry.status == "retired"


async def test_long_lists_are_condensed_and_the_originals_stay_in_the_history():
    memory = await filled()
    cues = ", ".join(f"cue {i}" for i in range(9))
    said = Said(
        YES,
        RIGHT,
        CODE,
        f"- {{concept: flip, kind: routine, cues: [{cues}]}}",
        "- {concept: flip, cues: [all]}",
    )
    result = await solved(said, memory)
    assert result.diagnostics["condensed"] == ["flip"]
    first, second = await memory.history("flip")
    assert (len(first.entry.data["cues"]), second.entry.data["cues"]) == (9, ["all"])
    assert second.reason.startswith("condensed")


async def test_a_budget_that_ends_before_writing_keeps_the_answer():
    memory = await filled()
    flow = arcmemo().solve(MIRROR.task("mirror"), seed=0)
    driver = Driver(services(Said(YES, RIGHT), memory), budget=Budget(calls=2))
    result = await driver.run(flow)
    assert result.diagnostics["verified"] is True
    assert await memory.version() == 1
    assert "calls" in str(result.diagnostics["notes"])


# ---------------------------------------------------------------- real puzzles


async def test_arc_puzzles_are_solved_by_concepts_that_were_selected_and_put_together():
    names = ["7468f01a", "a79310a0", "99b1bc43"]
    memory = await filled()
    for name in names:
        with_memory = await solved(Skilled(), memory, PUZZLES[name].task(name), write=False)
        without = await solved(Skilled(), memory, PUZZLES[name].task(name), read="none", write=False)
        assert all(scoring.right(with_memory.answer, LABELS[name]))
        assert without.answer is None
        [told] = with_memory.diagnostics["memory"]
        assert len(told["names"]) == 2
        assert scoring.attributed(with_memory.text, told["names"]) == tuple(told["names"])


async def test_the_annotated_solutions_solve_their_puzzles():
    for solution in seeds().solutions.values():
        task = PUZZLES[solution.problem].task()
        result = await solved(Said(f"```python\n{solution.solution}```"), task=task, read="none")
        assert all(scoring.right(result.answer, LABELS[solution.problem]))


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_passes": 0}, "max_passes"),
        ({"samples": 0}, "samples"),
        ({"feedback_passes": -1}, "feedback_passes"),
        ({"control": -1}, "control"),
        ({"format": "yaml"}, "format"),
        ({"read": "some"}, "read"),
        ({"seeds": "words"}, "No seeds"),
        ({"examples": "words"}, "No seeds"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(options, why):
    with pytest.raises(UsageError, match=why):
        ArcMemo(policy=POLICY, **options)


def test_it_runs_in_a_plain_loop():
    result = asyncio.run(solved(Said(RIGHT), read="none"))
    assert result.complete

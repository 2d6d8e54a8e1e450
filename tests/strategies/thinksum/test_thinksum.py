"""The strategy, on models whose likelihoods are known."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from abduce.orchestrator.codec import dumps
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Called, Noted
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.flow import LogProb
from abduce.serving.scripted import Scripted
from abduce.serving.seeds import derive
from abduce.strategies.base import Task
from abduce.strategies.policy import policy
from abduce.strategies.thinksum import PRESETS, ThinkSum
from abduce.strategies.thinksum.think import substituted

FRUIT = ("apple", "pear", "plum", "fig")
SHELF = (
    "On a shelf, there are three books: a black book, an orange book, and a blue book. "
    "The blue book is to the right of the orange book. The orange book is to the right of the black book."
)
TABLE = (
    "Here is a table where the first line is a header and each subsequent line is a penguin:\n\n"
    "name, age, height (cm), weight (kg)\nLouis, 7, 50, 11\nBernard, 5, 80, 13\nVincent, 9, 60, 11\n\n"
    "For example: the age of Louis is 7, the height of Bernard is 80 cm.\n\n"
    "We now add a penguin to the table:\nJames, 12, 90, 12\nWhat is the age of {name}?"
)
TASKS = {
    "direct": Task("Which is a fruit?", choices=("apple", "stone")),
    "odd_one_out": Task("Pick the odd word out: apple, pear, stone, plum"),
    "odd_one_out_facts": Task("Pick the odd word out: apple, pear, stone, plum"),
    "phrase_relatedness": Task("home town", choices=("town center", "location", "native city", "home run")),
    "codenames": Task(
        "Try to identify the 2 words best associated with the word SEA from the following list: fish, "
        "razor, ship, soap, king arthur. Give your answer in alphabetical order."
    ),
    "invented_words": Task(
        "The word 'binne' means any animal that is furry, and the word 'bam' means a simple sort of "
        "dwelling. Question: Which of the following sentences best characterizes binne bams?",
        choices=("Binne bams are for pets.", "Binne bams are luxurious apartments."),
    ),
    "invented_word": Task(
        "The word 'ropgo' is an adjective for things that are made of ribbon. Question: Which of the "
        "following sentences best characterizes ropgo bows?",
        choices=("Ropgo bows decorate gifts.", "Ropgo bows shoot arrows."),
    ),
    "concepts": Task(
        "Concept: sliced apples. Question: Which of the following sentences best characterizes "
        "sliced apples?",
        choices=("Sliced apples are cooked in a pie.", "Sliced apples are very sharp."),
    ),
    "emoji_movie": Task("What movie does this emoji describe? 👧🐟", choices=("finding nemo", "zootopia")),
    "logical_deduction": Task(
        SHELF, choices=tuple(f"The {c} book is the leftmost." for c in ("black", "orange", "blue"))
    ),
    "misconceptions_russian": Task("", choices=("Земля круглая.", "Земля плоская.")),
    "parsinlu_qa": Task("پایتخت ایران؟", choices=("تهران", "شیراز")),
    "language_identification": Task("Guten Tag", choices=("German", "French")),
    "sports_understanding": Task("Jamal Murray was perfect from the line"),
    "known_unknowns": Task("When was Lincoln born?", choices=("1809", "Unknown")),
    "novel_concepts": Task("What do these have in common: a pen, a sword", choices=("thin.", "round.")),
    "penguins_in_a_table": Task(TABLE.format(name="Bernard"), choices=("7", "5", "9", "12")),
    "code_line_description": Task("x += 1", choices=("adds one", "prints x")),
}


def drawn_from(text):
    """A log-likelihood that depends on the text alone."""
    return -20 * derive(0, text) / 2**63 - 0.1


def any_model(logprob=None, replies=None):
    """Says something new each time, and likes every pair to its own degree."""
    return Scripted(
        replies or (lambda request, seed: [f"thing {derive(seed, i) % 97}" for i in range(request.n)]),
        logprob=logprob or (lambda r: drawn_from(f"{r.prompt.prefix}|{r.continuation}")),
    )


async def run(task, engine=None, *, seed=0, budget=None, observers=(), **parameters):
    served = engine or any_model()
    driver = Driver(Services({"policy": served}), seed=seed, budget=budget, observers=observers)
    result = await driver.run(ThinkSum(policy=policy("plain"), **parameters).solve(task, seed=seed))
    return result, driver.ledger.usage


@pytest.mark.parametrize("program", sorted(PRESETS))
async def test_each_program_answers_its_task(program):
    task = TASKS[program]
    result, usage = await run(task, reads if program == "logical_deduction" else None, program=program)
    assert result.complete
    assert "abstained" not in result.diagnostics
    assert result.diagnostics["tokens"] == usage.output_tokens
    if task.choices:
        assert result.answer in task.choices
    assert result.answer in {c.answer for c in result.candidates} or program == "codenames"
    weights = [c.weight for c in result.candidates if c.weight is not None]
    assert not weights or sum(weights) == pytest.approx(1)
    assert json.loads(dumps(result))["answer"] == result.answer


@pytest.mark.parametrize(("said", "k"), [("1 word", 1), ("2 words", 2), ("3 words", 3)])
async def test_codenames_names_as_many_words_as_are_asked_for(said, k):
    question = TASKS["codenames"].question.replace("2 words", said)
    result, _ = await run(Task(question), program="codenames")
    assert "abstained" not in result.diagnostics and len(result.answer.split(", ")) == k


@pytest.mark.parametrize(
    "program", ["direct", "odd_one_out", "phrase_relatedness", "misconceptions_russian", "novel_concepts"]
)
async def test_the_order_of_the_choices_changes_no_answer_and_no_score(program):
    for seed in range(10):
        rng = random.Random(seed)
        words = [f"word{rng.randrange(1000)}" for _ in range(5)]
        task = replace(TASKS[program], choices=tuple(words))
        straight, _ = await run(task, program=program)
        rng.shuffle(words)
        turned, _ = await run(replace(task, choices=tuple(words)), program=program)
        assert turned.answer == straight.answer
        scores = [{c.answer: c.score for c in r.candidates} for r in (straight, turned)]
        assert scores[0] == scores[1]


async def test_the_order_of_clues_and_objects_changes_no_deduction():
    head, clues = SHELF.split(": ", 1)[0], [part + "." for part in SHELF.split(".")[1:-1]]
    task = TASKS["logical_deduction"]
    answers = set()
    for seed in range(6):
        rng = random.Random(seed)
        named = rng.sample(["a black book", "an orange book", "a blue book"], 3)
        listed = f"{head}: {named[0]}, {named[1]}, and {named[2]}."
        choices = tuple(rng.sample(task.choices, 3))
        result, _ = await run(
            Task(listed + "".join(rng.sample(clues, 2)), choices=choices), reads, program="logical_deduction"
        )
        answers.add(result.answer)
    assert answers == {"The black book is the leftmost."}


def understood(request):
    """A model that reads sentences about orderings."""
    sentence = request.prompt.prefix.rstrip("=> ").splitlines()[-1]
    right = {"to the right of": " >", "to the left of": " <", "the leftmost": " 1"}
    return -0.1 if any(k in sentence and request.continuation == v for k, v in right.items()) else -5.0


reads = any_model(understood)


async def test_a_model_that_reads_the_clues_gets_the_order_right():
    result, _ = await run(TASKS["logical_deduction"], reads, program="logical_deduction")
    assert result.answer == "The black book is the leftmost."
    assert result.diagnostics["clues"] == [
        "left_of(orange book, blue book)",
        "left_of(black book, orange book)",
    ]
    assert result.diagnostics["confidence"] == 1.0


async def test_a_sentence_is_asked_as_the_examples_write_it():
    asked = []
    await run(TASKS["logical_deduction"], reads, program="logical_deduction", observers=[asked.append])
    for request in (r for batch in batches(asked) for r in batch):
        shown, _, sentence = request.prompt.prefix.rpartition("\n")
        assert f"\n{sentence}" in f"\n{shown}"


async def test_statements_can_be_sampled_too():
    said = {"right of the B": "left_of(B, A)", "left of the B": "left_of(A, B)", "leftmost": "pos(A) = 1"}

    def replies(request, seed):
        sentence = request.prompt.prefix.rstrip("=> ").splitlines()[-1]
        good = next(v for k, v in said.items() if k in sentence)
        return [" " + good if i != 1 else " nonsense" for i in range(request.n)]

    program = json.loads(json.dumps(PRESETS["logical_deduction"]))
    for query in program["think"]:
        query |= {"by": "samples", "k": 3}
        query.pop("against")
    result, _ = await run(TASKS["logical_deduction"], any_model(replies=replies), program=program)
    assert result.answer == "The black book is the leftmost."


async def test_clues_that_say_nothing_are_answered_directly():
    flat = any_model(lambda r: -1.0 if r.continuation.strip() in "< > 1 2 3 -1" else drawn_from(str(r)))
    result, _ = await run(TASKS["logical_deduction"], flat, program="logical_deduction")
    assert "equally likely" in result.diagnostics["abstained"]
    assert result.answer in TASKS["logical_deduction"].choices


async def test_the_word_of_another_kind_is_the_odd_one():
    kinds = dict.fromkeys(FRUIT, "fruit") | {"stone": "thing"}

    def likes(request):
        given, word = request.prompt.prefix.rstrip(",").split()[-1], request.continuation.strip()
        return -1.0 - 3.0 * (kinds[given] != kinds[word]) - 0.01 * len(word)

    for at in range(5):
        words = [*FRUIT[:at], "stone", *FRUIT[at:]]
        asked = []
        task = Task(f"Pick the odd word out: {', '.join(words)}")
        result, usage = await run(task, any_model(likes), program="odd_one_out", observers=[asked.append])
        assert result.answer == "stone"
        assert usage.calls == 20
        first, rest = batches(asked)
        assert len(first) == len({r.prompt.prefix for r in first}) == 5
        assert Counter(r.prompt.prefix for r in rest) == {r.prompt.prefix: 3 for r in first}


def batches(events):
    """The likelihoods asked for, batch by batch."""
    found = {}
    for event in events:
        if isinstance(event, Called) and isinstance(event.request, LogProb):
            found.setdefault(event.path[:-1], []).append(event.request)
    return [found[path] for path in sorted(found)]


@pytest.mark.parametrize(
    ("name", "age"), [("Louis", "7"), ("Bernard", "5"), ("Vincent", "9"), ("James", "12")]
)
async def test_a_table_is_looked_up_in_the_row_that_explains_the_question(name, age):
    rows = ["Louis, 7, 50, 11", "Bernard, 5, 80, 13", "Vincent, 9, 60, 11", "James, 12, 90, 12"]

    def reads_a_row(request):
        shown = [row.split(", ") for row in rows if row in request.prompt.prefix]
        assert len(shown) <= 1
        for said, years, *_ in shown:
            fits = (
                said in request.continuation
                if "age" in request.continuation
                else (years == request.continuation.strip())
            )
            return -1.0 if fits else -6.0
        return -3.0 + 0.5 * (request.continuation == " 9")  # without a row it likes nine

    asked = []
    task = Task(TABLE.format(name=name), choices=("7", "5", "9", "12"))
    result, _ = await run(
        task, any_model(reads_a_row), program="penguins_in_a_table", observers=[asked.append]
    )
    assert result.answer == age
    assert result.diagnostics["table"]["lists"]["rows"] == rows
    assert sum(len(batch) for batch in batches(asked)) == 4 + 4 * 4 + 4


async def test_no_pair_is_asked_twice_and_white_space_goes_to_the_continuation():
    asked = []
    program = {
        "read": {"options": "choices", "nothing": ["x", "x", "y"]},
        "think": [
            {
                "op": "score",
                "as": "l",
                "over": ["options", "nothing"],
                "context": "Say: ",
                "continuation": "{options}",
            }
        ],
        "sum": {"op": "mixture", "of": "l", "over": ["nothing"]},
        "decide": "argmax",
    }
    _, usage = await run(
        Task("?", choices=("a", "b", "a")), any_model(), program=program, observers=[asked.append]
    )
    pairs = [(r.prompt.prefix, r.continuation) for batch in batches(asked) for r in batch]
    assert pairs == [("Say:", " a"), ("Say:", " b")]
    assert usage.calls == 2


async def test_every_likelihood_is_in_the_trace_and_in_the_result():
    notes = []
    result, _ = await run(TASKS["odd_one_out"], program="odd_one_out", observers=[notes.append])
    table = result.diagnostics["table"]
    assert table["lists"]["words"] == ["apple", "pear", "stone", "plum"]
    assert len(table["after"]["cells"]) == 12
    assert any(isinstance(e, Noted) and e.note == "thinksum" and e.data["table"] == table for e in notes)


async def test_equals_keep_their_order_and_are_told():
    result, _ = await run(Task("?", choices=("b", "a")), any_model(lambda _: -1.0))
    assert result.answer == "b"
    assert result.diagnostics["tied"] == ["b", "a"]


async def test_the_impossible_comes_last_and_all_of_it_is_no_answer():
    for given, answer in (
        ({" a": -math.inf, " b": -9.0}, "b"),
        ({" a": -math.inf, " b": -math.inf}, "thing"),
    ):
        result, _ = await run(Task("?", choices=("a", "b")), any_model(lambda r, g=given: g[r.continuation]))
        assert result.answer.startswith(answer)
        json.loads(dumps(result))


async def test_a_pair_that_fails_is_left_out_and_told():
    def fails_at_a(request):
        if request.continuation == " apple" and "Question" in request.prompt.prefix:
            raise EngineError("no such pair")
        return -1.0

    result, _ = await run(TASKS["direct"], any_model(fails_at_a))
    assert result.answer == "stone"
    assert "no such pair" in result.diagnostics["failures"]


async def test_what_the_program_cannot_read_is_scored_directly_or_left_to_the_policy():
    choices, _ = await run(Task("?", choices=("a", "b")), program="codenames")
    assert choices.answer in ("a", "b")
    assert "nothing to read as 'clue'" in choices.diagnostics["abstained"]
    words, _ = await run(Task("What is it?"), program="codenames")
    assert words.answer.startswith("thing")
    assert words.complete


async def test_more_objects_than_can_be_arranged_cost_no_call():
    many = ", ".join(f"a {c} book" for c in "abcdefghi")
    task = Task(f"On a shelf: {many}. The a book is the leftmost.", choices=("The b book is the leftmost.",))
    result, usage = await run(task, program="logical_deduction")
    assert "more than 8 objects" in result.diagnostics["abstained"]
    assert usage.calls == 2  # of direct scoring


async def test_direct_scoring_is_told_beside():
    seen, _ = await run(TASKS["phrase_relatedness"], program="phrase_relatedness", compare=True)
    alone, _ = await run(TASKS["phrase_relatedness"], program="direct")
    assert seen.diagnostics["direct"] == alone.answer


async def test_with_chat_the_text_stands_in_the_assistants_turn():
    asked = []
    await run(TASKS["direct"], chat=True, observers=[asked.append])
    requests = [r for batch in batches(asked) for r in batch]
    assert all(r.prompt.messages and r.prompt.prefix.endswith("Answer:") for r in requests)


async def test_too_many_pairs_are_a_mistake_of_the_callers():
    with pytest.raises(UsageError, match="Raise it, or lower k"):
        await run(Task("?", choices=tuple(map(str, range(60)))), max_pairs=100)


@pytest.mark.parametrize("calls", [0, 3, 9])
async def test_a_budget_holds(calls):
    task = Task("?", choices=tuple(map(str, range(10))))
    result, usage = await run(task, budget=Budget(calls=calls))
    assert usage.calls <= calls
    assert not result.complete
    assert "calls" in result.diagnostics["stopped"]


async def test_braces_and_patterns_in_a_task_are_only_text():
    nasty = ("{question}", "{options}", "(a+)+$", "\\1", "{{}}")
    for program in ("direct", "phrase_relatedness", "odd_one_out"):
        result, _ = await run(Task("{words} {i}: {j}", choices=nasty), program=program)
        assert result.answer in nasty


@pytest.mark.parametrize(
    ("text", "word", "by", "found"),
    [
        ("A diz owns it.", "diz", "ape", "An ape owns it."),
        ("Dizs own a diz.", "diz", "fox", "Foxes own a fox."),
        ("dizzy diz", "diz", "cat", "dizzy cat"),
        ("Diz bams.", "diz", "a\\1b", "A\\1b bams."),
    ],
)
def test_words_are_put_in_as_they_stand_there(text, word, by, found):
    assert substituted(text, word, by) == found

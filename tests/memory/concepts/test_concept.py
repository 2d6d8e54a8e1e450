"""The merge rule, what is read of a specification, and entries."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.memory.concepts import Concept, Lesson, Library, Parameter, Solution
from abduce.memory.concepts.concept import entry, from_entry, line, merged, spec
from abduce.serving.entries import Entry, Evidence

WORD = st.text("abcdefgh", min_size=1, max_size=6)
LINES = st.lists(WORD, max_size=4, unique=True).map(tuple)
CONCEPT = st.builds(
    Concept,
    name=WORD,
    kind=st.sampled_from(("structure", "routine")),
    routine_subtype=st.sampled_from(("", "grid manipulation", "intermediate")),
    output_typing=st.sampled_from(("", "grid", "box := a pair of cells")),
    parameters=st.lists(st.builds(Parameter, WORD, WORD, WORD), max_size=3, unique_by=lambda p: p.name).map(
        tuple
    ),
    description=st.sampled_from(("", "one", "two")),
    cues=LINES,
    implementation=LINES,
    used_in=LINES,
)
OLD = Concept(
    "a", "routine", "grid manipulation", "grid", (Parameter("n", "int"),), "old", ("x",), ("y",), ("p1",)
)


@pytest.mark.parametrize(
    ("new", "after"),
    [
        (Concept("a"), {"used_in": ("p1", "p2")}),
        (Concept("a", description="new"), {"description": "old"}),
        (Concept("a", output_typing="list"), {"output_typing": "grid"}),
        (Concept("a", routine_subtype="other"), {"routine_subtype": "grid manipulation"}),
        (Concept("a", "structure"), {"kind": "routine"}),
        (Concept("a", cues=("x", "z")), {"cues": ("x", "z")}),
        (Concept("a", implementation=("z", "y")), {"implementation": ("y", "z")}),
        (
            Concept("a", parameters=(Parameter("m"), Parameter("n", "float", "told"))),
            {"parameters": (Parameter("n", "float", "told"), Parameter("m"))},
        ),
    ],
)
def test_a_name_that_is_written_again(new, after):
    assert merged(OLD, new, "p2") == replace(OLD, **{"used_in": ("p1", "p2"), **after})


def test_what_was_empty_is_filled():
    bare = Concept("a", "routine")
    told = Concept("a", routine_subtype="intermediate", output_typing="grid", description="new")
    now = merged(bare, told)
    assert (now.routine_subtype, now.output_typing, now.description) == ("intermediate", "grid", "new")


@given(CONCEPT, CONCEPT)
def test_writing_the_same_again_changes_nothing(one, two):
    two = replace(two, name=one.name)
    once = merged(one, two, "p")
    assert merged(once, two, "p") == once


@given(CONCEPT, CONCEPT, CONCEPT)
def test_lists_are_the_same_sets_in_any_order(old, one, two):
    def sets(*order):
        now = old
        for each in order:
            now = merged(now, each)
        return set(now.cues), set(now.implementation), set(now.used_in)

    assert sets(one, two) == sets(two, one)


def test_types_are_harvested_and_the_first_definition_stays():
    one = Concept("a", "structure", output_typing="object := set of cells")
    two = Concept("b", "routine", parameters=(Parameter("rule", "row test := Callable[[row], bool]"),))
    three = Concept("c", "routine", output_typing="object := something else")
    four = Concept("d", "routine", output_typing="list[object]")
    library = Library().write([one, two, three, four]).library
    assert library.types == {"object": "set of cells", "row test": "Callable[[row], bool]"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "no name"),
        ({"concept": " "}, "no name"),
        (["a"], "a mapping"),
        (None, "a mapping"),
        ({"concept": "x" * 121}, "too long"),
    ],
)
def test_what_is_no_concept_is_skipped_with_the_reason(said, why):
    concept, [note] = spec(said)
    assert concept is None
    assert why in note


def test_a_new_concept_needs_a_kind_and_a_known_one_does_not():
    library = Library().write([Concept("known", "routine")]).library
    wrong, notes = spec({"concept": "new", "kind": "thing"})
    assert notes == ["new: its kind is 'thing', not one of structure, routine"]
    done = library.write([Concept("known", cues=("c",)), wrong], problem="p")
    assert done.changed == ("known",)
    assert done.notes == ("skipped 'new': it is new, and has no valid kind",)


@pytest.mark.parametrize(
    ("said", "parameters"),
    [
        (["rows"], (Parameter("rows"),)),
        ([{"name": "rows", "typing": "list[row]"}], (Parameter("rows", "list[row]"),)),
        ([{"name": "rows", "type": "list[row]"}], (Parameter("rows", "list[row]"),)),
        (["rows (type: list[row]): the lines"], (Parameter("rows", "list[row]", "the lines"),)),
        (["rows: the lines"], (Parameter("rows", "", "the lines"),)),
        ([{"rows": "the lines"}], (Parameter("rows", "", "the lines"),)),
        ({"rows": "the lines"}, (Parameter("rows", "", "the lines"),)),
    ],
)
def test_parameters_in_all_their_forms(said, parameters):
    concept, notes = spec({"concept": "a", "kind": "routine", "parameters": said})
    assert concept.parameters == parameters
    assert notes == []


@pytest.mark.parametrize(
    "said", [["the grid that is to be changed by this operation"], "no parameters at all", [3]]
)
def test_free_text_becomes_no_parameter(said):
    concept, notes = spec({"concept": "a", "kind": "routine", "parameters": said})
    assert concept.parameters == ()
    assert len(notes) == 1


def test_output_means_output_typing_and_other_fields_are_told():
    concept, notes = spec({"concept": "a", "kind": "routine", "output": "grid", "colour": "red"})
    assert concept.output_typing == "grid"
    assert notes == ["a: left out the field 'colour'"]


def test_a_mapping_among_lines_is_put_together_again():
    concept, notes = spec({"concept": "a", "cues": [{"note": "ends meet"}, "x", "x", {"a": 1, "b": 2}]})
    assert concept.cues == ("note: ends meet", "x")
    assert notes == ["a: left out one of its cues that is no text"]


def test_a_text_stays_one_line():
    assert line("a\n\n## Types\n- b\u202e\x00") == "a ## Types - b"


@settings(max_examples=50)
@given(CONCEPT)
def test_a_concept_is_the_same_from_its_entry(concept):
    told = replace(
        concept, evidence=(Evidence("r", "p", "tests", 1.0, ("b",)),), uses=3, wins=1, domain="grids"
    )
    again = from_entry(entry(told))
    assert (again, again.uses, again.wins) == (told, 3, 1)


@pytest.mark.parametrize(
    "kept",
    [
        Lesson("it is small", "look closer", "p", "grids", (Evidence(source="p"),), 2, 1),
        Solution("p", "def transform(g):\n    return g", "nothing", "return grid"),
    ],
)
def test_lessons_and_solutions_are_the_same_from_their_entries(kept):
    assert from_entry(entry(kept)) == kept


def test_entries_of_others_are_left_alone():
    assert from_entry(Entry("a", "text", "note")) is None
    assert from_entry(Entry("a", "text", "lesson", {"situation": "x"})) is None
    assert Library.of(
        [Entry("a", "t", "routine", status="retired"), Entry("b", "t", "routine")]
    ).concepts.keys() == {"b"}

"""Constraints as data, and the forms in which servers take them."""

import json
import re

import pytest

from abduce.serving.constraints import Check, Choices, Critic, JsonSchema, Product, Regex, masking_form

CHECK = Check(lambda text: True, lambda text: True)


def test_products_are_flat():
    a, b, c = Regex("a"), Choices(("b",)), CHECK
    assert ((a * b) * c).parts == (a * (b * c)).parts == (a, b, c)


def test_a_pattern_and_a_schema_are_sent_as_they_are():
    assert masking_form(Regex(r"\d+")) == ("regex", r"\d+")
    kind, text = masking_form(JsonSchema({"type": "object"}))
    assert (kind, json.loads(text)) == ("json_schema", {"type": "object"})


@pytest.mark.parametrize("options", [("yes", "no"), ("a.b", "(c)", "1+1", "$5", "[x]{2}", "a|b", "\\", "^")])
def test_choices_are_a_pattern_of_just_these_texts(options):
    kind, pattern = masking_form(Choices(options))
    assert kind == "regex"
    for text in (*options, "axb", "c", "111", "5", "a", "x"):
        assert bool(re.fullmatch(pattern, text)) == (text in options)


def test_functions_and_products_have_no_form():
    critic = Critic(lambda text: 0.0, lambda text: 0.0)
    for constraint in (CHECK, critic, Regex("a") * Regex("b"), Product((Regex("a"), CHECK))):
        assert masking_form(constraint) is None

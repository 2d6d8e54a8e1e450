"""Recipes of several steps for the tests of the outer graph, on scripted models."""

from collections.abc import Mapping
from typing import Any

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.trace import Called, Event, NodeStarted
from abduce.orchestrator.workflow import Workflow

MODEL = 'model: {engine: scripted, replies: {"": "The answer is 7."}}\n'


def workflow(text: str, *, functions: Mapping[str, Any] | None = None, model: str = MODEL) -> Workflow:
    """The workflow of a recipe's text, without its name and model."""
    made = recipe.check(strict_yaml.parse(f"name: test\n{model}{text}")).pipeline(functions=functions)
    assert isinstance(made, Workflow)
    return made


def visited(events: list[Event]) -> list[str]:
    """The nodes in the order of their visits."""
    return [event.node for event in events if isinstance(event, NodeStarted)]


def calls(events: list[Event]) -> list[Called]:
    """The requests that a service answered."""
    return [event for event in events if isinstance(event, Called)]

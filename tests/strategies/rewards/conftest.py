"""Flows by hand: `sent(flow, replies, …)` returns the batches asked for and the flow's result."""

import pytest

from abduce.strategies.base import State, Step, Task
from abduce.strategies.policy import StepPolicy


@pytest.fixture
def sent():
    def send(flow, *replies):
        batches = []
        try:
            batches.append(next(flow))
            for reply in replies:
                batches.append(flow.send(reply))
        except StopIteration as end:
            return batches, end.value
        raise AssertionError(f"the flow asks for more: {batches[-1]}")

    return send


@pytest.fixture
def policy():
    return StepPolicy()


@pytest.fixture
def solved():
    """A state of the given steps; finished if `last`."""

    def make(*texts, last=True, question="What is 7 x 8?", checks=(), choices=()):
        state = State(Task(question, checks=tuple(checks), choices=choices))
        for i, text in enumerate(texts, 1):
            state = state.extend(Step(text, last=last and i == len(texts)))
        return state

    return make

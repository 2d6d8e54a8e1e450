"""Concepts distilled from solved problems: what they are, how they are written, read and shown.

    trace ──Writer──► Library (merged) ──entries──► a store
    a store ──Recall──► Library ──Selector──► Selection ──text──► a solver's prompt

Source: ArcMemo: Abstract Reasoning Composition with Lifelong LLM Memory, arXiv 2509.04439.
"""

from .concept import Concept, Lesson, Parameter, Solution
from .exchange import dump, load, seeds
from .library import Library
from .selecting import Selection, Selector
from .writing import Trace, Writer

__all__ = [
    "Concept",
    "Lesson",
    "Library",
    "Parameter",
    "Selection",
    "Selector",
    "Solution",
    "Trace",
    "Writer",
    "dump",
    "load",
    "seeds",
]

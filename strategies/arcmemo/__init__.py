"""ArcMemo: concepts distilled from solved problems are chosen for the next one, and shown to its solver.

What a long trace finds out is lost with it. So each solved problem leaves concepts behind: things seen in the
data and operations on them, typed and with parameters, so that they can be put together. A model chooses by
name what the next problem needs; its solver sees these in full, and is told where its program fails.

    c      ~ p(names | memory, problem)                 selection, memory first
    y_t    ~ p(program | problem, c, y_{t−1}, what the training pairs said of y_{t−1})
    memory ← memory ∪ abstract(y_t)                     only if y_t is right on all training pairs

Source: ArcMemo: Abstract Reasoning Composition with Lifelong LLM Memory, arXiv 2509.04439.
Deviates: what is written is gated by what the solver may see, never by test outputs; tasks other than grid
puzzles are held to their own checks; see also `memory/concepts/`. `docs/memory.md` has the rest.
"""

from .continual import Learned, Round, learn
from .puzzle import Puzzle, read
from .strategy import ArcMemo

__all__ = ["ArcMemo", "Learned", "Puzzle", "Round", "learn", "read"]

"""DRAG: many documents and worked examples with their own documents in one prompt, answered at once.

Each document that is read costs tokens, and so does each demonstration that shows how to read: how many of
both pays depends on the model and the task. The best document stands last, next to the question.

    y ~ p(· | m × [documents(x_j), x_j, y_j], documents(x), x),   documents: top k, in reverse rank order

Source: Inference Scaling for Long-Context Retrieval Augmented Generation, arXiv 2410.04343.
Deviates: the paper's prompts could not be read, ours stand in `rag/prompts.py`; each document is put on one
line, so that what it says cannot pass for a question or an answer. `docs/strategies/drag.md` has the rest.
"""

from .rag.drag import DRAG

__all__ = ["DRAG"]

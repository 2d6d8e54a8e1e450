"""Retrieval-augmented reasoning: documents, demonstrations and follow-up questions as a token budget allows.

How many of each helps depends on the model and on the task. A model fitted to logged runs says what is to be
expected of θ = (documents k, demonstrations m, iterations n), and the best θ that fits the budget is used:
one call (`drag`) for n = 1, else follow-up questions (`iterdrag`).

    σ⁻¹(P(θ)) ≈ (a + b ⊙ i)ᵀ ln(θ + ε) + c,    θ* = argmax σ(…) where L̂(θ) ≤ L_max

Source: Inference Scaling for Long-Context Retrieval Augmented Generation, arXiv 2410.04343.
Deviates: without a fitted model it is `drag` below 64k tokens and `iterdrag` above; token forecasts come from
a regression on logged calls. `docs/strategies/iterdrag.md` has the rest.
"""

from .auto import RAG
from .drag import DRAG
from .iterdrag import IterDRAG

__all__ = ["DRAG", "RAG", "IterDRAG"]

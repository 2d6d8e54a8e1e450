"""IterDRAG: follow-up questions, each answered from documents found for it, before the final answer.

A question of several hops names only the first: its documents cannot be found before that hop is answered.
The model writes one line at a time, a follow-up or the final answer; a follow-up is searched for, its
documents are added to those before, and the model answers it in a line.

    s_t ~ p(· | D, x, s_<t),   D ← D ∪ documents(s_t) if s_t is a follow-up,   y = s_T, the final answer

Source: Inference Scaling for Long-Context Retrieval Augmented Generation, arXiv 2410.04343; lines as in
Measuring and Narrowing the Compositionality Gap in Language Models (Self-Ask), arXiv 2210.03350.
Deviates: new documents go behind what was said, so that the cache holds the rest (`doc_placement`); where an
engine keeps no grammar a line is read, drawn again once, then begun for the model; a follow-up asked before
is answered from memory. `docs/strategies/iterdrag.md` has the rest.
"""

from .rag.iterdrag import IterDRAG

__all__ = ["IterDRAG"]

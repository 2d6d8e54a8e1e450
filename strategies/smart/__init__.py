"""SMART: learn from past problems which reasoning strategy to try first, and try another where it fails.

Several strategies solve a problem, none is best everywhere. A router reads the problem and draws the first
strategy from a distribution over them; what came of it is kept with its probability, so that the router can
be trained, judged and replayed. Where a check says that an attempt is wrong, an untried strategy follows.

    r = y − λ_c tokens/ref_tokens,   A = λI + Σ w φφᵀ,   b = Σ w r φ,   θ = A⁻¹ b
    π(a|x) = (1−ε) softmax_a((θ_a·φ + α √(φᵀA_a⁻¹φ)) / τ) + ε/K

Source: SMART: Self-learning Meta-strategy Agent for Reasoning Tasks, arXiv 2410.16128.
Deviates: the source fine-tunes the model to choose; here its weights stay and a contextual bandit chooses.
The log is exported in the source's form: the strategy that won is credited as if it had been chosen first.
"""

from .strategy import SMART

__all__ = ["SMART"]

"""DiffAdapt: a small probe on the question's hidden state says how much thinking the question is worth.

Before anything is written, a classifier of two layers reads the model's state at the end of the question and
chooses one of three ways to answer: prompt, temperature and token limit. What is easy is answered directly,
what is hopeless is cut short, and only the rest gets the whole budget.

    d  = softmax((W₂ ReLU(W₁ (h − μ)/σ + b₁) + b₂) / T)      h: last layer, last token before the way's words
    c  = argmax d  if max d ≥ τ,  else normal

    label   normal if a ≥ α and e ≤ β,  hard if a < γ,  else easy      a: accuracy, e: mean token entropy
    U(π)  = mean_x [ accuracy(x, π(x)) − λ · tokens(x, π(x)) / Max ]   what every choice is judged by

Source: DiffAdapt: Difficulty-Adaptive Reasoning for Token-Efficient LLM Inference, arXiv 2510.19669.
Deviates: thresholds, τ and T are chosen on held-out questions by U, since the paper's values are not known;
the probe proves that it fits by the state of a reference question, which it carries and asks for again;
classes are a list. `docs/strategies/diffadapt.md` has the rest.
"""

from .strategy import DiffAdapt

__all__ = ["DiffAdapt"]

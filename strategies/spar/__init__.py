"""SPaR: an answer that breaks its instructions is rewritten in a tree until a judge finds nothing to mend.

A judge says Yes or No several times, or checks the answer, and names what is unmet. Each rewrite starts from
one answer and its critique, so one that passes differs from what failed in little else: the pair is good
training data. The tree goes on from the best rewrites, level by level or depth first.

    V(y)   = n₁ / (n₁ + n₀)                      votes of n samples; a tie is drawn again
    c(y)   = a critique that voted with the majority
    y′     ~ R(· | x, y, c(y))                   b rewrites of each node of the frontier
    stop   at argmax V if V > g, else go on from the best s of the level

Source: SPaR: Self-Play with Tree-Search Refinement to Improve Instruction-Following in Large Language Models,
arXiv 2412.11605; checks: IFEval, arXiv 2311.07911.
Deviates: a label is a whole word after the last marker; a draft keeps its judged value instead of 0, so that
no worse rewrite is returned; among equals the version most like the draft wins, not the latest; answers are
judged again before they are accepted if so wished (`confirm_votes`), since a search that stops at the first
yes adds up its judge's mistakes. `docs/strategies/spar.md` has the rest.
"""

from .strategy import SPaR

__all__ = ["SPaR"]

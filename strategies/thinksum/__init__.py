"""ThinkSum: many small likelihoods asked side by side, combined by rules of probability.

What is asked about several things at once breaks when all of it stands in one text. So *think*: ask the
model for the likelihood of many short texts, each by itself. And *sum*: combine the numbers outside the
model, where the rules are exact and the order of the items cannot matter.

    think   l_ij = ln p(c_i | u_j)                        for every pair (i, j) of the program
    sum     s_i  = f(l),  f of mixture, product, ratio …  (`table.py`, `outlier.py`, `arrangements.py`)
    decide  a    = argmax_i s_i

Source: ThinkSum: Probabilistic reasoning over sets using large language models, arXiv 2210.01293; the ratio
against an erased premise follows Calibrate Before Use, arXiv 2102.09690.
Deviates: programs are data, checked before any call; the tasks' formulas are reconstructed, since only parts
of the paper could be read; a sentence about an ordering is read by the likelihood of each statement that it
may make; a token across the border of context and continuation is avoided (white space goes to the
continuation), not counted whole. `docs/strategies/thinksum.md` has the rest.
"""

from .presets import PRESETS
from .strategy import ThinkSum

__all__ = ["PRESETS", "ThinkSum"]

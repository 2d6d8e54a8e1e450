"""Workers that write one reply side by side: who they are, and what each sees of the others.

    layout        what a worker sees, in this order                                 after a step
    combined      prompt, all finished steps; the others' unfinished steps; its own  it is a finished one
    interleaved   prompt, all finished steps; its own unfinished step               it is a finished one
    contiguous    prompt; all that the others wrote; all that it wrote              it stays where it is

A reply is the finished steps in the order in which they ended, with its worker's mark before each. Where the
token limit ended it, the unfinished steps stand behind them, under `others`, each closed by `UNFINISHED`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from .errors import demand

Layout: TypeAlias = Literal["combined", "interleaved", "contiguous"]

UNFINISHED = " <...>"
"""Stands behind a step that its worker could not finish."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """A worker's i-th step begins with "**name [i]:**", its first one with its part of `openings` as well; a
    single worker may go without a name, and then has no such marks. A mark has no space behind it, since a
    tokeniser's words begin with theirs: openings and hints do, too.

    `past`, `others` and `own` stand before the finished steps, the others' unfinished ones and a worker's
    own. Once all together have written more than `hint_every` tokens since the last time, the worker who
    begins a step next begins it with `hint`. A finished step with one of the texts of `until` in it ends the
    reply.
    """

    names: tuple[str, ...]
    openings: tuple[str, ...] = ()
    layout: Layout = "combined"
    past: str = ""
    others: str = ""
    own: str = ""
    hint: str = ""
    hint_every: int = 1024
    until: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        good = len(set(names)) == len(names) >= 1 and (all(names) or len(names) == 1)
        demand(good, "names", names, 'write a name for each worker, such as ("Alice", "Bob")')
        bare = names != ("",) or not (self.others or self.own)
        demand(bare, "names", names, "give the worker a name, or leave others and own out")
        known = get_args(Layout)
        demand(self.layout in known, "layout", self.layout, f"write one of {', '.join(known)}")
        demand(
            len(self.openings) in (0, len(names)),
            "openings",
            self.openings,
            "write one for each worker, or none",
        )
        demand(self.hint_every >= 1, "hint_every", self.hint_every, "write a number of tokens, such as 1024")
        demand("" not in self.until, "a text of until", "", "write what a step that ends it all has in it")

    def mark(self, worker: int, step: int) -> str:
        """What the worker's step begins with; steps count from 1.

        >>> Workers(names=("Alice", "Bob")).mark(1, 3)
        '**Bob [3]:**'
        """
        return f"**{self.names[worker]} [{step}]:**" if self.names[worker] else ""

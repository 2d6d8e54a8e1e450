"""A scripted solver of known skill: it can do nothing but put together operations that its prompt names.

`Skilled` reads the puzzle and the names of concepts from the prompt, as a model would, and tries all
sequences of at most `depth` of the operations of these names on the examples. What fits it writes as a
program; if nothing does, it says so. It also plays the selecting model (it names what it would need, of what
the memory names), and the one that writes concepts down (the operations that a program uses).
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain, product

Grid = list[list[int]]
Pairs = Sequence[tuple[Grid, Grid]]

PLAIN = {
    "mirror left to right": "return [row[::-1] for row in g]",
    "mirror top to bottom": "return g[::-1]",
    "transpose": "return [list(row) for row in zip(*g)]",
    "rotate a quarter turn": "return [list(row) for row in zip(*g[::-1])]",
    "rotate a half turn": "return [row[::-1] for row in g[::-1]]",
    "rotate a quarter turn back": "return [list(row) for row in zip(*g)][::-1]",
    "repeat to the right": "return [row + row for row in g]",
    "repeat below": "return g + g",
    "enlarge each cell": "return [[c for c in row for _ in range({n})] for row in g for _ in range({n})]",
    "crop to content": (
        "rows = [i for i, row in enumerate(g) if any(row)]\n"
        "    cols = [j for j in range(len(g[0])) if any(row[j] for row in g)]\n"
        "    return [row[cols[0]:cols[-1] + 1] for row in g[rows[0]:rows[-1] + 1]]"
    ),
    "cut out a corner": "return [row[:{n}] for row in g[:{n}]]",
    "cut off the left part": "return [row[:len(row) // {n}] for row in g]",
    "cut off the top part": "return g[:len(g) // {n}]",
    "move down": "return [[0] * len(g[0]) for _ in range({n})] + g[:-{n}]",
    "fill with the most common color": (
        "cells = sorted(c for row in g for c in row)\n"
        "    most = max(cells, key=cells.count)\n"
        "    return [[most] * len(row) for row in g]"
    ),
    "drop empty lines": "return [row for row in g if any(row)]",
    "drop repeated lines": "return [row for i, row in enumerate(g) if i == 0 or row != g[i - 1]]",
    "let cells fall": (
        "cols = [[c for c in col if c] for col in zip(*g)]\n"
        "    cols = [[0] * (len(g) - len(col)) + col for col in cols]\n"
        "    return [list(row) for row in zip(*cols)]"
    ),
    "cut out the largest object": (
        "todo = {(i, j) for i, row in enumerate(g) for j, c in enumerate(row) if c}\n"
        "    best = []\n"
        "    while todo:\n"
        "        stack, found = [todo.pop()], []\n"
        "        while stack:\n"
        "            i, j = stack.pop()\n"
        "            found.append((i, j))\n"
        "            for near in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):\n"
        "                if near in todo:\n"
        "                    todo.remove(near)\n"
        "                    stack.append(near)\n"
        "        best = max(best, found, key=len)\n"
        "    top, left = min(i for i, _ in best), min(j for _, j in best)\n"
        "    bottom, right = max(i for i, _ in best), max(j for _, j in best)\n"
        "    return [row[left:right + 1] for row in g[top:bottom + 1]]"
    ),
    "fill enclosed cells": (
        "h, w = len(g), len(g[0])\n"
        "    edge = [(i, j) for i in range(h) for j in range(w)"
        " if not g[i][j] and (i in (0, h - 1) or j in (0, w - 1))]\n"
        "    seen = set(edge)\n"
        "    while edge:\n"
        "        i, j = edge.pop()\n"
        "        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):\n"
        "            if 0 <= a < h and 0 <= b < w and not g[a][b] and (a, b) not in seen:\n"
        "                seen.add((a, b))\n"
        "                edge.append((a, b))\n"
        "    return [[c if c or (i, j) in seen else {color} for j, c in enumerate(row)]"
        " for i, row in enumerate(g)]"
    ),
    "join with its mirror to the right": "return [row + row[::-1] for row in g]",
    "join with its mirror below": "return g + g[::-1]",
}
"""Operations by their concepts' names: the body of a function of a grid; `{n}` and `{color}` are fitted."""

RULES = {
    "both set": "a and b",
    "either set": "a or b",
    "only one set": "bool(a) != bool(b)",
    "neither set": "not a and not b",
}
_HALVES = (
    "h, w = len(g), len(g[0])\n"
    "    if {across}:\n"
    "        one, two = [row[:w // 2] for row in g], [row[(w + 1) // 2:] for row in g]\n"
    "    else:\n"
    "        one, two = g[:h // 2], g[(h + 1) // 2:]\n"
    "    return [[{color} if {rule} else 0 for a, b in zip(p, q)] for p, q in zip(one, two)]"
)


def bodies(names: Sequence[str], pairs: Pairs) -> dict[str, str]:
    """Operations with their parameters fitted to the pairs: body → its concepts, joined by "+"."""
    colors = sorted({c for _, out in pairs for row in out for c in row} - {0})
    found: dict[str, str] = {}
    for name in names:
        if name in PLAIN:
            for n, color in product((2, 3) if "{n}" in PLAIN[name] else (2,), colors or [0]):
                found[PLAIN[name].replace("{n}", str(n)).replace("{color}", str(color))] = name
                if name == "move down":
                    found[PLAIN[name].replace("{n}", "1")] = name
    if "recolor" in names and (mapping := _recoloring(pairs)) is not None:
        found[f"return [[{mapping}.get(c, c) for c in row] for row in g]"] = "recolor"
    if "recolor" in names and len(colors) == 1:
        found[f"return [[{colors[0]} if c else 0 for c in row] for row in g]"] = "recolor"
    if "combine two halves cell by cell" in names:
        for rule in set(RULES) & set(names):
            for across, color in product((True, False), colors):
                body = _HALVES.replace("{across}", str(across)).replace("{color}", str(color))
                found[body.replace("{rule}", RULES[rule])] = f"combine two halves cell by cell+{rule}"
    return found


def _recoloring(pairs: Pairs) -> dict[int, int] | None:
    mapping: dict[int, int] = {}
    for given, wanted in pairs:
        if (len(given), len(given[0])) != (len(wanted), len(wanted[0])):
            return None
        for a, b in zip(chain(*given), chain(*wanted), strict=True):
            if mapping.setdefault(a, b) != b:
                return None
    return {a: b for a, b in mapping.items() if a != b} or None


def function(body: str) -> Callable[[Grid], Grid]:
    """A body as a function; what goes wrong in it gives an empty grid."""
    space: dict = {}
    exec(f"def f(g):\n    {body}", space)

    def safe(grid: Grid) -> Grid:
        try:
            return space["f"](grid)
        except (IndexError, ValueError, TypeError):
            return []

    return safe


def fitting(names: Sequence[str], pairs: Pairs, depth: int) -> list[tuple[str, str]] | None:
    """The shortest sequence of operations, as (concepts, body), that turns every input into its output."""
    key = repr((names, pairs, depth))
    if key not in _found:
        _found[key] = _fitting(names, pairs, depth)
    return _found[key]


_found: dict[str, list[tuple[str, str]] | None] = {}


def _fitting(names: Sequence[str], pairs: Pairs, depth: int) -> list[tuple[str, str]] | None:
    known = bodies(names, pairs)
    functions = {body: function(body) for body in known}
    paths: list[tuple[list[str], list[Grid]]] = [([], [given for given, _ in pairs])]
    wanted = [out for _, out in pairs]
    seen = set()
    for _ in range(depth):
        grown = []
        for path, grids in paths:
            for body, f in functions.items():
                after = [f(grid) for grid in grids]
                if after == wanted:
                    return [(known[b], b) for b in [*path, body]]
                if not all(grid and grid[0] for grid in after) or (key := repr(after)) in seen:
                    continue
                seen.add(key)
                if max(len(grid) * len(grid[0]) for grid in after) <= 900:
                    grown.append(([*path, body], after))
            if "recolor" in names and path:  # what is left may be a matter of colors
                for body, name in bodies(["recolor"], list(zip(grids, wanted, strict=True))).items():
                    if [function(body)(grid) for grid in grids] == wanted:
                        return [*((known[b], b) for b in path), (name, body)]
        paths = grown
    return None


def written(steps: Sequence[tuple[str, str]]) -> str:
    """The steps as a program, its functions named after their concepts."""
    lines = []
    for i, (name, body) in enumerate(steps):
        comment = f"    # {name.replace('+', ', ')}\n" if "+" in name else ""
        lines.append(f"def {_named(name)}_{i}(g):\n{comment}    {body}\n")
    calls = "".join(f"    grid = {_named(name)}_{i}(grid)\n" for i, (name, _) in enumerate(steps))
    return "\n".join(lines) + f"\ndef transform(input_grid):\n    grid = input_grid\n{calls}    return grid\n"


def _named(name: str) -> str:
    return re.sub(r"\W+", "_", name.partition("+")[0])


# ---------------------------------------------------------------- the scripted model


def puzzle_of(prompt: str) -> list[tuple[Grid, Grid]]:
    """The training pairs that a prompt shows."""
    grids = {}
    pattern = r"Example (\d+), (input|output) \(\d+ x \d+\):\n((?:[\d ]+(?:\n|$))+)"
    for number, part, rows in re.findall(pattern, prompt):
        grids[int(number), part] = [[int(c) for c in row.split()] for row in rows.strip().split("\n")]
    numbers = sorted({number for number, _ in grids})
    return [(grids[n, "input"], grids[n, "output"]) for n in numbers]


def shown_names(prompt: str) -> list[str]:
    """Names of the concepts that a solver's prompt shows in full."""
    return re.findall(r"^- (.+?) \((?:structure|routine)[^)\n]*\)$", prompt, re.MULTILINE)


def every_name(prompt: str) -> list[str]:
    """Names that the view for selecting shows, in full or by name."""
    known = [*PLAIN, *RULES, "recolor", "combine two halves cell by cell"]
    listed = set()
    for row in re.findall(r"^- (.+)$", prompt, re.MULTILINE):
        head, colon, rest = row.partition(" concepts: ")
        listed |= set(rest.split("; ")) if colon and head in ("lower usage", "other") else {row}
    return [name for name in known if name in listed]


class Skilled:
    """The scripted model, for all roles. `asked` are the prompts it was sent, by what they were for."""

    def __init__(self, depth: int = 2, own: Sequence[str] = ()) -> None:
        self.depth = depth
        self.own = tuple(own)  # operations it can do without being told
        self.asked: list[tuple[str, str]] = []

    def __call__(self, request, seed):
        text = "\n".join(message.content for message in request.prompt.messages)
        kind = self.kind(text)
        self.asked.append((kind, text))
        return getattr(self, kind)(text)

    @staticmethod
    def kind(text: str) -> str:
        if "Do not solve the problem below" in text:
            return "select"
        if text.startswith("Rewrite a solution as concise pseudocode"):
            return "preprocess"
        if "Write down the concepts in it" in text:
            return "abstract"
        return "solve"

    def select(self, text: str) -> str:
        problem = text.rpartition("# Problem")[2]
        found = fitting(every_name(text), puzzle_of(problem), self.depth)
        names = [name for names, _ in found for name in names.split("+")] if found else []
        return "```yaml\n" + ("\n".join(f"- {name}" for name in names) or "[]") + "\n```"

    def solve(self, text: str) -> str:
        found = fitting([*self.own, *shown_names(text)], puzzle_of(text), self.depth)
        if found is None:
            return "I see no rule here."
        told = ", then ".join(name for name, _ in found)
        return f"The rule: {told}.\n\n```python\n{written(found)}```"

    def preprocess(self, text: str) -> str:
        steps = self.steps(text)
        return (
            f"<pseudocode>\n{chr(10).join(steps)}\n</pseudocode>\n<summary>{', then '.join(steps)}</summary>"
        )

    def abstract(self, text: str) -> str:
        steps = self.steps(text.rpartition("## The solution")[2])
        blocks = [
            f"- concept: {name}\n  kind: routine\n  routine_subtype: grid manipulation" for name in steps
        ]
        return "```yaml\n" + "\n".join(blocks) + "\n```"

    @staticmethod
    def steps(text: str) -> list[str]:
        code = text.rpartition("## The solution")[2]
        return [name for name in [*PLAIN, "recolor"] if _named(name) in code or f"{name}\n" in code + "\n"]

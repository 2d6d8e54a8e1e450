"""Two trees laid over each other: nodes that say the same in the same place are one.

Two nodes meet if their parents meet (roots: if they stand in visits of the same number) and their words are
equal; of siblings with the same words the first meets the first, the second the second.
"""

from collections import defaultdict, deque

from .picture import Drawn, Picture

Place = tuple[int, str]  # the merged parent, or −1 − visit of a root; the words


def merged(a: Picture, b: Picture) -> list[tuple[int, int, int]]:
    """Rows (node of a, node of b, row of the parent), −1 where there is none; parents before children."""
    rows: list[tuple[int, int, int]] = []
    row_of: dict[int, int] = {}
    alone: dict[Place, deque[int]] = defaultdict(deque)
    for i, node in enumerate(a.nodes):
        parent, place = _place(node, row_of)
        row_of[i] = len(rows)
        alone[place].append(len(rows))
        rows.append((i, -1, parent))
    of_b: dict[int, int] = {}
    for j, node in enumerate(b.nodes):
        parent, place = _place(node, of_b)
        if met := alone[place]:
            of_b[j] = met.popleft()
            rows[of_b[j]] = (rows[of_b[j]][0], j, parent)
        else:
            of_b[j] = len(rows)
            rows.append((-1, j, parent))
    return rows


def _place(node: Drawn, row_of: dict[int, int]) -> tuple[int, Place]:
    parent = row_of.get(node.parent, -1)
    return parent, (parent if parent >= 0 else -1 - node.visit, node.seen.text)

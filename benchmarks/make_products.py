"""Write `benchmarks/data/products.jsonl`: 60 products of two factors from 2 to 12, drawn with a fixed seed.

    python benchmarks/make_products.py

A row has what `abduce eval` reads: the question, its answer, and a check.
"""

import json
import random
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "products.jsonl"


def products(n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for `abduce eval`; no two the same."""
    pairs = [(a, b) for a in range(2, 13) for b in range(2, 13)]
    drawn = random.Random(seed).sample(pairs, n)
    return [
        {
            "question": f"{a} x {b} =",
            "checks": [{"id": "numeric", "kwargs": {"value": a * b}}],
            "answer": str(a * b),
        }
        for a, b in drawn
    ]


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text("".join(json.dumps(row) + "\n" for row in products()), encoding="utf-8")

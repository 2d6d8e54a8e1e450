"""`abduce recipe`: check one, show its graph and normal form, list the packaged ones, print the schema."""

import argparse
import json
import sys
from pathlib import Path

from ..recipe import Recipe, document, packaged, read
from ..recipe.laws import draw
from ..search_view import printable
from ..steps import Call


def check(chosen: argparse.Namespace) -> int:
    """Check a recipe without running it."""
    recipe = read(chosen.file, chosen.settings)
    called = (step.function for step in recipe.nodes.values() if isinstance(step, Call))
    # Whether the engine can do what a strategy needs is known only now; the functions, once it is loaded.
    recipe.pipeline(functions=dict.fromkeys(called, str))
    print(f"{recipe.name}: correct ({_summary(recipe)})")
    return 0


def show(chosen: argparse.Namespace) -> int:
    """The normal form of a recipe on standard output, its graph as a comment above it; or a picture of it."""
    recipe = read(chosen.file, chosen.settings)
    if chosen.draw is not None:
        from ..drawing import draw as picture

        picture(recipe.graph(), Path(chosen.draw))
        print(f"abduce: drawn to {chosen.draw}", file=sys.stderr)
        return 0
    for line in draw(recipe).splitlines():
        print(printable(f"# {line}").rstrip())
    print(f"\n{recipe.yaml()}", end="")
    return 0


def listing(chosen: argparse.Namespace) -> int:
    """Names of the packaged recipes, and what each shows."""
    width = max(map(len, packaged()), default=0)
    for name in packaged():
        print(f"{name:{width}}  {document(name).data.get('description', '')}".rstrip())
    return 0


def schema(chosen: argparse.Namespace) -> int:
    """The JSON schema of recipes, for editors."""
    from ..recipe.schema import schema as made

    json.dump(made(), sys.stdout, indent=1, ensure_ascii=False)
    print()
    return 0


def _summary(recipe: Recipe) -> str:
    if len(recipe.nodes) > 1:
        return f"{len(recipe.nodes)} steps: {', '.join(recipe.nodes)}; model {recipe.model.name}"
    parts = [f"strategy {recipe.strategy.name}", f"model {recipe.model.name}"]
    return ", ".join(parts + ([f"reward {recipe.reward.name}"] if recipe.reward else []))

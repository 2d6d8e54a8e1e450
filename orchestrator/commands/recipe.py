"""`abduce recipe`: check one, list the packaged ones."""

import argparse

from ..recipe import document, packaged, read


def check(chosen: argparse.Namespace) -> int:
    """Check a recipe without running it."""
    recipe = read(chosen.file, chosen.settings)
    recipe.pipeline()  # whether the engine can do what the strategy needs is known only now
    parts = [f"strategy {recipe.strategy.name}", f"model {recipe.model.name}"]
    parts += [f"reward {recipe.reward.name}"] if recipe.reward else []
    print(f"{recipe.name}: correct ({', '.join(parts)})")
    return 0


def listing(chosen: argparse.Namespace) -> int:
    """Names of the packaged recipes, and what each shows."""
    width = max(map(len, packaged()), default=0)
    for name in packaged():
        print(f"{name:{width}}  {document(name).data.get('description', '')}".rstrip())
    return 0

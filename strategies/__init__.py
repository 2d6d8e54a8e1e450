"""The strategies by name. Each is imported when first asked for.

Third parties add theirs through the entry-point group `abduce.strategies`.
"""

from importlib import import_module
from importlib.metadata import entry_points

from ..serving.errors import UnknownName

STRATEGIES: dict[str, str] = {
    "a_star": "AStar",
    "beam": "Beam",
    "best_of_n": "BestOfN",
    "chain_of_thought": "ChainOfThought",
    "dvts": "DVTS",
    "entropic_filter": "EntropicFilter",
    "lookahead_filter": "LookaheadFilter",
    "mcts": "MCTS",
    "parallel_tempering": "ParallelTempering",
    "particle_filter": "ParticleFilter",
    "particle_gibbs": "ParticleGibbs",
    "revision": "Revision",
    "self_consistency": "SelfConsistency",
}
"""File (which is the strategy's name) → class."""


def strategy(name: str) -> type:
    """The class of a strategy. Raises UnknownName with the nearest spelling."""
    if name in STRATEGIES:
        found: type = getattr(import_module(f".{name}", __name__), STRATEGIES[name])
        return found
    third_party = {e.name: e for e in entry_points(group="abduce.strategies")}
    if name in third_party:
        loaded: type = third_party[name].load()
        return loaded
    raise UnknownName("strategy", name, [*STRATEGIES, *third_party])

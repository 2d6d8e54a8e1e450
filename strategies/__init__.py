"""The strategies by name. Each is imported when first asked for.

Third parties add theirs through the entry-point group `abduce.strategies`.
"""

from ..serving import registry

STRATEGIES: dict[str, str] = {
    "a_star": "AStar",
    "arcmemo": "ArcMemo",
    "beam": "Beam",
    "best_of_n": "BestOfN",
    "chain_of_thought": "ChainOfThought",
    "chops": "CHOPS",
    "diffadapt": "DiffAdapt",
    "drag": "DRAG",
    "dvts": "DVTS",
    "entropic_filter": "EntropicFilter",
    "hedged": "Hedged",
    "hogwild": "Hogwild",
    "iterdrag": "IterDRAG",
    "lookahead_filter": "LookaheadFilter",
    "maxs": "MAXS",
    "mcts": "MCTS",
    "parallel_tempering": "ParallelTempering",
    "particle_filter": "ParticleFilter",
    "particle_gibbs": "ParticleGibbs",
    "planner": "Planner",
    "rag": "RAG",
    "react": "ReAct",
    "revision": "Revision",
    "reweighted_vote": "ReweightedVote",
    "self_consistency": "SelfConsistency",
    "short_m": "ShortM",
    "smart": "SMART",
    "spar": "SPaR",
    "thinksum": "ThinkSum",
    "tot_dfs": "ToTDFS",
    "x_mbr": "XMBR",
}
"""File (which is the strategy's name) → class."""


def strategy(name: str) -> type:
    """The class of a strategy. Raises UnknownName with the nearest spelling."""
    found = registry.find("strategy", name, STRATEGIES, __name__, "abduce.strategies")
    made: type = registry.dataclass_of("strategy", name, found)
    return made

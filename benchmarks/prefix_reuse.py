"""How much of what a search sends is served from SGLang's prefix cache, against a perfect prefix tree.

    python benchmarks/prefix_reuse.py [particle_filter …] [--url http://127.0.0.1:30000] [--tokens 16]

Without a URL a server of the small model is started on the CPU (`make test-sglang` makes its environment).
Each strategy solves one question on an emptied cache; every call's prompt ids, outputs and reported cached
tokens are recorded.

    perfect    the longest beginning that the prompt shares with any prompt sent before it, answered or not,
               or with any prompt and output received before it was sent; at most all but the last token, and
               for a given continuation all but the last token of the prompt: the rest must be computed
    reported   the cached tokens of the calls' usage; samples of one call share their prompt, which counts
               once

Calls are ordered by the moment they were sent. Of two that are sent at once with the same new prompt the
perfect tree serves the second from the cache: a server only does so if they are kept apart. The exit code is
1 if a strategy's reported share is below 0.9 of the perfect one.
"""

import asyncio
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import checked, command
from printing import met, table_head, table_row

from abduce.orchestrator.solve import build
from abduce.serving.base import Served
from abduce.serving.flow import Generate, LogProb, Usage
from abduce.serving.sglang import Sglang, launch

BAR = 0.9
QUESTION = (
    "A baker makes 24 loaves a day and sells each for 3 dollars. On Sunday she sells half of them for "
    "2 dollars each. How much does she earn on Sunday? Think step by step."
)
STRATEGIES: dict[str, dict[str, Any]] = {
    "particle_filter": {"particles": 8, "max_steps": 10},
    "beam": {"width": 2, "expand": 4},
    "a_star": {"k": 4},
}


class Recorder(Sglang):
    """Keeps what it sends and what is said of it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.tree = Tree()
        self.perfect = self.reported = self.total = self.calls = 0

    async def generate(self, request: Generate, *, seed: int) -> Served[Any]:
        """As it is, recorded."""
        ids = await self._ids(request.prompt)
        best = self._sent(ids, len(ids) - 1)
        served = await super().generate(request, seed=seed)
        for completion in served.value:
            self.tree.add((*ids, *completion.ids))
        self._count(len(ids), best, served.usage)
        return served

    async def logprob(self, request: LogProb) -> Served[Any]:
        """As it is, recorded."""
        prompt = await self._ids(request.prompt)
        more = request.continuation_ids or await self._talk(
            self._tokens.continuation(request.prompt, request.continuation)
        )
        sent = (*prompt, *more[:-1])
        best = self._sent(sent, len(prompt) - 1)
        served = await super().logprob(request)
        self._count(len(sent), best, served.usage)
        return served

    def _sent(self, ids: tuple[int, ...], most: int) -> int:
        best = min(self.tree.shared(ids), most)
        self.tree.add(ids)
        return best

    def _count(self, n: int, best: int, usage: Usage) -> None:
        self.calls += 1
        self.total += n
        self.perfect += best
        self.reported += usage.cached_tokens


class Tree:
    """Sequences by their beginnings."""

    def __init__(self) -> None:
        self.root: dict[int, Any] = {}

    def add(self, ids: tuple[int, ...]) -> None:
        """One more sequence."""
        node = self.root
        for i in ids:
            node = node.setdefault(i, {})

    def shared(self, ids: tuple[int, ...]) -> int:
        """Length of the longest beginning that is in the tree."""
        node, n = self.root, 0
        for i in ids:
            if i not in node:
                break
            node, n = node[i], n + 1
        return n


async def run(url: str, name: str, tokens: int) -> Recorder:
    """One search on an emptied cache."""
    urlopen(Request(f"{url}/flush_cache", method="POST"), timeout=30).close()  # noqa: ASYNC210
    engine = Recorder(url)
    policy = {"preset": "cot", "sampling": {"temperature": 1.0, "max_tokens": tokens}, "max_steps": 10}
    pipeline = build(strategy=name, model=engine, policy=policy, budget="120 calls", **STRATEGIES[name])
    result = await pipeline.asolve(QUESTION, seed=1)
    assert result.usage.cached_tokens == engine.reported
    await engine.close()
    return engine


def main() -> int:
    """Search, print, judge."""
    parser = command(__doc__)
    parser.add_argument("strategies", nargs="*", default=[*STRATEGIES], help=f"of {', '.join(STRATEGIES)}")
    parser.add_argument("--url", help="of a running server, whose cache is emptied (default: start one)")
    parser.add_argument("--tokens", type=int, default=16, help="most tokens of a step (default 16)")
    options = parser.parse_args()
    names = checked(parser, options.strategies, STRATEGIES)
    held = True
    with ExitStack() as stack:
        url = options.url
        if url is None:
            from abduce.serving.hf_folder import small_model
            from tests.serving.sglang_env import launcher

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(launch.running(launcher.server(small_model(), folder / "log"))).url
        print(f"{os.cpu_count()} cores, steps of at most {options.tokens} tokens, {url}\n")
        table_head("strategy", "calls", "prompt tokens", "perfect", "reported", "of perfect")
        for name in names:
            seen = asyncio.run(run(url, name, options.tokens))
            share = seen.reported / seen.perfect
            held &= share >= BAR
            perfect, reported = seen.perfect / seen.total, seen.reported / seen.total
            shares = (f"{each:.3f}" for each in (perfect, reported, share))
            table_row(name, seen.calls, seen.total, *shares)
    print(f"\nat least {BAR} of a perfect prefix tree: {met(held)}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())

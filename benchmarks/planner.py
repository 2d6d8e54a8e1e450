"""LLMCompiler beside ReAct on comparison questions, with the same look-ups, the same model time and answers.

    python benchmarks/planner.py hotpotqa.jsonl

The file is HotpotQA's: `question`, `answer`, `type`, `context`, `supporting_facts`. Planner, joiner and agent
are scripted (they know the articles that a question needs, and its answer), so what is compared is the
method: requests, prompt tokens, time. A look-up searches the question's own articles by BM25 and takes 0.3 s;
the model takes 0.2 s and 20 ms a token it writes. Tokens are words. Time is that of a clock that stands
while nobody waits.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tools"))
from still_clock import timed

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.flow import Generate, ToolCall, Usage
from abduce.serving.scripted import Scripted
from abduce.serving.tool_calls import write
from abduce.strategies.base import Result, Task
from abduce.strategies.planner import Planner
from abduce.strategies.policy import POLICIES
from abduce.strategies.react import ReAct
from abduce.tools.base import Tool, tool
from abduce.tools.search import Search


class Told(Scripted):
    """A scripted model that counts the tools it is offered as part of its prompt, as templates do."""

    def count_tokens(self, prompt: Any) -> int:
        """Words of messages, calls and tools."""
        offered = sum(len(f"{json.dumps(dict(t.parameters))} {t.description}".split()) for t in prompt.tools)
        calls = sum(len(write(message.tool_calls).split()) for message in prompt.messages)
        return super().count_tokens(prompt) + offered + calls


def articles(row: dict[str, Any]) -> Tool:
    """The tool `lookup` over the articles of one question."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
        for title, sentences in row["context"]:
            file.write(json.dumps({"title": title, "text": title + ". " + "".join(sentences)}) + "\n")
    search = Search(file=file.name, passages=1)

    @tool(effect="pure")
    async def lookup(title: str) -> str:
        """Look an article up by its title and return its beginning."""
        await asyncio.sleep(0.3)
        return search.search(title).text

    return lookup


def engine(say: Any) -> Told:
    """A model that says that, at the speed of a model."""
    words = {}

    def latency(request: Any) -> float:
        text = words.setdefault(id(request), say(request, 0))
        return 0.2 + 0.02 * len(text.split())

    return Told(say, latency_s=latency)


def compare(row: dict[str, Any]) -> tuple[tuple[Result, Usage, float], tuple[Result, Usage, float]]:
    """Planner and agent on one question."""
    titles = list(dict.fromkeys(title for title, _ in row["supporting_facts"]))
    lookup = articles(row)
    calls = [f"{i}. lookup({json.dumps(title)})" for i, title in enumerate(titles, 1)]
    plan = "\n".join([*calls, f"{len(titles) + 1}. join()<END_OF_PLAN>"])

    def planning(request: Generate, seed: int) -> str:
        return plan if request.model == "planner" else f"Action: Finish({row['answer']})"

    def acting(request: Generate, seed: int) -> str:
        done = sum(message.role == "tool" for message in request.prompt.messages)
        if done == len(titles):
            return str(row["answer"])
        return write([ToolCall("", "lookup", json.dumps({"title": titles[done]}))])

    found = []
    task = Task(row["question"], tools=(lookup.spec,))
    plain = POLICIES["plain"]
    for strategy, say in ((Planner(policy=plain), planning), (ReAct(policy=plain), acting)):
        driver = Driver(Services({"policy": engine(say)}, tools={"lookup": lookup}))
        result, took = timed(driver.run(strategy.solve(task, seed=0)))
        found.append((result, driver.ledger.usage, took))
    return found[0], found[1]


def main() -> None:
    """Compare on all questions that compare two things."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.file.read_text().splitlines()]
    rows = [row for row in rows if row.get("type", "comparison") == "comparison"]
    random.Random(0).shuffle(rows)
    pairs = [compare(row) for row in rows]
    same = sum(one[0].answer == other[0].answer for one, other in pairs)
    print(f"{len(pairs)} comparison questions, answers the same: {same}")
    for i, name in enumerate(("planner", "react")):
        usage = [pair[i][1] for pair in pairs]
        mean = statistics.mean
        print(
            f"{name:8} requests {mean(u.calls for u in usage):.2f}, prompt tokens "
            f"{mean(u.input_tokens for u in usage):.0f}, written {mean(u.output_tokens for u in usage):.0f}, "
            f"seconds {mean(pair[i][2] for pair in pairs):.2f}"
        )
    ratio = statistics.mean(other[2] / one[2] for one, other in pairs)
    print(f"react / planner: time {ratio:.2f}")


if __name__ == "__main__":
    main()

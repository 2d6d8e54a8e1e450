"""What does a plan (LLMCompiler) save over an agent (ReAct) on comparison questions, with the same look-ups?

    python benchmarks/planner.py hotpotqa.jsonl

One row for each number of look-ups: of the articles that a question needs, and further ones of its context.
The file is HotpotQA's: `question`, `answer`, `type`, `context`, `supporting_facts`. Planner, joiner and agent
are scripted (they know the articles that a question needs, and its answer), so what is compared is the
method: requests, prompt tokens, time. A look-up searches the question's own articles by BM25 and takes 0.3 s;
the model takes 0.2 s and 20 ms a token it writes. Tokens are words. Time is that of a clock that stands while
nobody waits.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from arguments import command
from rows import json_lines

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
from tests.tools.still_clock import timed


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


def compare(row: dict[str, Any], k: int) -> tuple[tuple[Result, Usage, float], tuple[Result, Usage, float]]:
    """Planner and agent on one question, with k look-ups."""
    needed = [title for title, _ in row["supporting_facts"]]
    titles = [*dict.fromkeys([*needed, *(title for title, _ in row["context"])])][:k]
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
    parser = command(__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--most", type=int, default=6, help="look-ups")
    options = parser.parse_args()
    rows = [row for row in json_lines(options.file) if row.get("type", "comparison") == "comparison"]
    random.Random(0).shuffle(rows)
    print(f"{len(rows)} comparison questions")
    print("look-ups  same answers  requests     prompt tokens  written    seconds       time ratio")
    for k in range(1, options.most + 1):
        pairs = [compare(row, k) for row in rows]
        same = sum(one[0].answer == other[0].answer for one, other in pairs)
        told = [
            " / ".join(f"{statistics.mean(of(pair[i]) for pair in pairs):.{digits}f}" for i in (0, 1))
            for of, digits in (
                (lambda way: way[1].calls, 0),
                (lambda way: way[1].input_tokens, 0),
                (lambda way: way[1].output_tokens, 0),
                (lambda way: way[2], 2),
            )
        ]
        ratio = statistics.mean(other[2] / one[2] for one, other in pairs)
        print(f"{k:8}  {same:12}  {told[0]:11}  {told[1]:13}  {told[2]:9}  {told[3]:12}  {ratio:.2f}")
    print("planner / agent; ratio: agent's time to planner's")


if __name__ == "__main__":
    main()

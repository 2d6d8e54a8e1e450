"""The calls of a run as the page shows them, and which call drew or scored which node.

A trace does not say which reply became which node, but both hold the same words: the node after `parent` with
text `s` was drawn by the first call not yet used that continued the text of `parent` and was answered `s`.
The calls between two notes of a flow scored the nodes that the second note gives scores to, in their order.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import orjson

Path: TypeAlias = tuple[int, ...]

_HEADS = 16  # beginnings of prompts that are tried before a prompt is written out
_SPENT = ("input_tokens", "cached_tokens", "output_tokens", "calls", "tool_calls", "cost_usd", "joules")
_SHOWN_LOGPROBS = 512
_LEFT_OUT = frozenset({"prompt", "prefix_ids", "continuation_ids", "model"})


class Calls:
    """The calls of one run, in the order in which they ended."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.texts: list[str] = []  # what many calls share; rows hold indices
        self._known: dict[str, int] = {}
        self._heads: list[tuple[str, int]] = [("", self._shared(""))]
        self._unused: dict[tuple[int, str], list[tuple[int, int, str]]] = defaultdict(list)
        self._since: dict[tuple[int, Path], list[int]] = defaultdict(list)  # the last note of a flow
        self._judged: set[tuple[int, str, bool]] = set()

    def add(self, row: Mapping[str, Any], visit: int, path: Path, by_text: Mapping[str, int]) -> None:
        """Take in a `called` row; `by_text` finds a node by all that is written up to it."""
        number, request, reply = len(self.rows), row["request"], row["reply"]
        prompt = request.get("prompt") or {}
        prefix = str(prompt.get("prefix", ""))
        head, node = self._told_apart(prefix, by_text)
        spent = [row["usage"].get(name, 0) for name in _SPENT]
        sum(spent)  # are they numbers?
        made = {
            "kind": row["call"],
            "role": request.get("model", ""),
            "path": ".".join(map(str, row["path"])),
            "visit": visit,
            "t": float(row["t"]),
            "s": float(row["seconds"]),
            "spent": spent,
            "tries": row.get("attempts", 1),
            "again": bool(row.get("replayed")),
            "messages": self._shared(orjson.dumps(prompt["messages"]).decode())
            if prompt.get("messages")
            else -1,
            "head": head,
            "node": node,
            "asked": _asked(request),
            "scores": [],
            **_answered(reply),
        }
        self.rows.append(made)
        self._since[visit, path[: -2 if len(path) % 3 == 2 else -3]].append(
            number
        )  # 3: the rest of many samples
        for i, sample in enumerate(made.get("samples", ())):
            for words in {sample["text"].strip(), _content(sample).strip()}:
                self._unused[visit, words].append((number, i, prefix))

    def drew(self, visit: int, before: str, text: str) -> tuple[int, int]:
        """The call and the sample that a node came from, each once; (-1, -1) where no call said so."""
        waiting = self._unused.get((visit, text.strip()), [])
        for place, (call, sample, prefix) in enumerate(waiting):
            taken = self.rows[call]["samples"][sample]
            if prefix.endswith(before) and not taken.get("used"):  # it may be filed under two texts
                del waiting[place]
                taken["used"] = True
                return call, sample
        return -1, -1

    def scored(self, visit: int, flow: Path, nodes: Sequence[tuple[int, str, bool]]) -> None:
        """Credit the calls since the flow's last note to the nodes (number, whole text, finished)."""
        calls = self._since.pop((visit, flow), [])
        fresh: dict[tuple[str, bool], int] = {}
        for number, text, terminal in nodes:
            if (visit, text, terminal) not in self._judged:
                self._judged.add((visit, text, terminal))
                fresh.setdefault((text, terminal), number)
        if not fresh or len(calls) % len(fresh):
            return
        each = len(calls) // len(fresh)
        for i, number in enumerate(fresh.values()):
            for call in calls[i * each : (i + 1) * each]:
                self.rows[call]["scores"].append(number)

    def noted(self, visit: int, flow: Path) -> None:
        """Another note of the flow: what was called before it scored nothing after it."""
        self._since.pop((visit, flow), None)

    def _told_apart(self, prefix: str, by_text: Mapping[str, int]) -> tuple[int, int]:
        """A prompt's prefix as a beginning that many share and the node whose text follows it, or -1."""
        for head, index in self._heads:
            if prefix.startswith(head) and (rest := prefix[len(head) :]) in by_text:
                return index, by_text[rest]
        index = self._shared(prefix)
        if len(self._heads) < _HEADS:
            self._heads.append((prefix, index))
        return index, -1

    def _shared(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.texts)
            self.texts.append(text)
        return self._known[text]


def _asked(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request holds besides its prompt, without what is empty or as always."""
    shown = {
        key: value
        for key, value in request.items()
        if key not in _LEFT_OUT and value not in (None, {}, [], "")
    }
    if tools := (request.get("prompt") or {}).get("tools"):
        shown["tools"] = [tool.get("name", "") for tool in tools]
    return shown


def _answered(reply: Any) -> dict[str, Any]:
    """A reply as samples, a failure, or a value."""
    if isinstance(reply, dict) and reply.keys() == {"kind", "message"}:
        return {"failed": reply}
    if isinstance(reply, list) and reply and all(isinstance(part, dict) and "text" in part for part in reply):
        return {"samples": [_sample(part) for part in reply]}
    return {"value": reply}


def _sample(part: Mapping[str, Any]) -> dict[str, Any]:
    sample = {key: part[key] for key in ("text", "finish", "stop", "n_tokens") if part.get(key)}
    if logprobs := part.get("logprobs"):
        sample["logprobs"] = [None if p is None else round(p, 3) for p in logprobs[:_SHOWN_LOGPROBS]]
    sample.setdefault("text", "")
    return sample


def _content(sample: Mapping[str, Any]) -> str:
    text, stop = sample["text"], sample.get("stop")
    return text[: text.rindex(stop)] if stop and stop in text else str(text)

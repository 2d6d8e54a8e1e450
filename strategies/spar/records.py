"""Training data from searches: preference pairs, refinements and judgements, as JSON lines.

    result = pipeline.solve(task)      # of SPaR(start="failing", confirm_votes=5, …)
    records([Played(task=task, facts=result.diagnostics, id="1")]).write("pairs")

| file                | a record for                                 | what is learnt                        |
|---------------------|----------------------------------------------|---------------------------------------|
| `dpo.jsonl`         | each search that was won                     | the winner over the draft it is from  |
| `refiner_sft.jsonl` | each search that was won                     | the last rewrite, by its critique     |
| `judge_sft.jsonl`   | rewrites and drafts whose votes were divided | a critique of the majority            |

Source: SPaR, arXiv 2412.11605, and its official code, whose caps these are. Nothing is trained here.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

from ...serving.seeds import derive
from ..base import Task
from ..conversation import turns
from .judges import asked
from .refiner import START, messages, plainly
from .similarity import similarity

Record: TypeAlias = dict[str, Any]

CAPS: Mapping[str, int] = {
    "refiner": 4000, "rewrites yes": 1500, "rewrites no": 1000, "drafts yes": 2500, "drafts no": 500,
}  # fmt: skip
"""Most records of a kind, as in the official code; pairs have no cap."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """A search that has been run: its task, its result's `diagnostics`, and what records shall say of it."""

    task: Task
    facts: Mapping[str, Any]
    id: str
    seed: int = 0
    model: str = ""
    trace: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Records:
    """The records by kind."""

    dpo: tuple[Record, ...]
    refiner_sft: tuple[Record, ...]
    judge_sft: tuple[Record, ...]

    def write(self, folder: Path | str, form: Literal["trl", "llama_factory"] = "trl") -> None:
        """A file for each kind. Pairs are `{prompt, chosen, rejected}`, lists of messages (TRL), or
        `{messages, chosen, rejected}` with one message each for the last two (LLaMA-Factory)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pairs = self.dpo if form == "trl" else tuple(map(_for_llama_factory, self.dpo))
        parts = {"dpo": pairs, "refiner_sft": self.refiner_sft, "judge_sft": self.judge_sft}
        for name, rows in parts.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def records(
    played: Iterable[Played], *, seed: int = 0, min_similarity: float = 0.0, caps: Mapping[str, int] = CAPS
) -> Records:
    """What is to be learnt from searches: one record for each first user message, shuffled by `seed`.

    `min_similarity` leaves out pairs that have less in common (0: none; the paper filters none).
    """
    pairs: list[Record] = []
    refined: list[Record] = []
    judged: dict[str, list[Record]] = {kind: [] for kind in CAPS if kind != "refiner"}
    for each in played:
        rows = {row["node"]: row for row in each.facts.get("versions", ())}
        root, winner = rows.get(each.facts.get("root")), rows.get(each.facts.get("winner"))
        if root is not None and winner is not None and winner["value"] > 0.5 and not root["valid"]:
            pair = _pair(each, root, winner)
            if pair["meta"]["similarity"] >= min_similarity:
                pairs.append(pair)
            refined.append(_refinement(each, rows[winner["parent"]], winner))
        for kind, row in _divided(rows.values()):
            judged[kind].append(_judgement(each, row))
    capped = [row for kind, part in judged.items() for row in _settled(part, seed, kind, caps.get(kind))]
    return Records(
        _settled(pairs, seed, "dpo"),
        _settled(refined, seed, "refiner", caps.get("refiner")),
        _settled(capped, seed, "judge"),
    )


def _pair(played: Played, root: Mapping[str, Any], winner: Mapping[str, Any]) -> Record:
    prompt = [_message(m.role, m.content) for m in turns(played.task, played.task.question)]
    chosen, rejected = winner["answer"], root["answer"]
    meta = {**_meta(played, winner), "similarity": round(similarity(rejected, chosen), 4)}
    return {
        "prompt": prompt,
        "chosen": [_message("assistant", chosen)],
        "rejected": [_message("assistant", rejected)],
        "meta": meta,
    }


def _refinement(played: Played, parent: Mapping[str, Any], winner: Mapping[str, Any]) -> Record:
    """The last step only: from the winner's parent, not from the draft."""
    form = messages if START in winner["said"] else plainly
    said = form(played.task, parent["answer"], parent["critique"])
    rows = [*(_message(m.role, m.content) for m in said), _message("assistant", winner["said"])]
    return {"messages": rows, "meta": _meta(played, winner)}


def _judgement(played: Played, row: Mapping[str, Any]) -> Record:
    [question] = asked(played.task, row["answer"]).messages
    rows = [_message("user", question.content), _message("assistant", row["critique"])]
    return {"messages": rows, "meta": _meta(played, row)}


def _divided(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Versions whose votes were not unanimous, by kind: every draft, of rewrites the first yes and no."""
    seen: set[str] = set()
    for row in rows:
        if not (row["yes"] and row["no"]):
            continue
        side = "yes" if row["yes"] > row["no"] else "no"
        kind = f"{'rewrites' if row['depth'] else 'drafts'} {side}"
        if not row["depth"] or kind not in seen:
            seen.add(kind)
            yield kind, row


def _settled(rows: Sequence[Record], seed: int, kind: str, cap: int | None = None) -> tuple[Record, ...]:
    """Without those whose first user message has been seen, shuffled, at most `cap`."""
    unique = list({_first_user(row): row for row in reversed(rows)}.values())[::-1]
    Random(derive(seed, "records", kind)).shuffle(unique)
    return tuple(unique[:cap])


def _first_user(row: Record) -> str:
    said: Sequence[Record] = row.get("prompt") or row["messages"]
    return next((message["content"] for message in said if message["role"] == "user"), "")


def _meta(played: Played, row: Mapping[str, Any]) -> Record:
    return {
        "task": played.id,
        "judge": played.facts.get("judge", ""),
        "value": row["value"],
        "confirmed": row["confirmed"],
        "depth": row["depth"],
        "model": played.model,
        "seed": played.seed,
        "trace": played.trace,
        "licence": played.licence,
    }


def _message(role: str, content: str) -> Record:
    return {"role": role, "content": content}


def _for_llama_factory(pair: Record) -> Record:
    [chosen], [rejected] = pair["chosen"], pair["rejected"]
    return {"messages": pair["prompt"], "chosen": chosen, "rejected": rejected, "meta": pair["meta"]}

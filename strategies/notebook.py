"""A result as a notebook shows it: the answer, what it took, the candidates."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Candidate, Result

MOST = 20  # candidates
CHARS = 300  # of a text


def html(result: "Result") -> str:
    """All that models wrote is escaped: it is text, never markup."""
    usage = result.usage
    facts = [f"{usage.tokens:,} tokens", f"{usage.calls:,} calls"]
    facts += [f"{usage.cost_usd:,.4g} USD"] if usage.cost_usd else []
    facts += [] if result.complete else [f"incomplete: {_text(result.diagnostics.get('stopped', ''))}"]
    facts += [_text(unread)] if (unread := result.diagnostics.get("unanswered")) else []
    rest = len(result.candidates) - MOST
    more = f"<p>and {rest} more in <code>.candidates</code></p>" if rest > 0 else ""
    said = "no answer" if result.answer is None else _text(result.answer)
    return f"<p><b>{said}</b> ({'; '.join(facts)})</p>{_table(result.candidates[:MOST])}{more}"


def _table(candidates: "Iterable[Candidate]") -> str:
    rows = [
        (
            _text(c.answer),
            _number(c.score),
            _number(c.weight),
            f'<td style="text-align:left">{_text(c.text)}</td>',
        )
        for c in candidates
    ]
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("answer", "score", "weight", "text"))
    body = "".join(f"<tr><td>{a}</td><td>{s}</td><td>{w}</td>{text}</tr>" for a, s, w, text in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _text(value: Any) -> str:
    words = "" if value is None else str(value)
    return escape(words if len(words) <= CHARS else words[:CHARS] + "…")

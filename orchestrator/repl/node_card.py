"""One node of the tree with everything that led to it: prompt, completion, log-probs, scores."""

from collections.abc import Sequence
from math import exp

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from ..search_view import Seen, printable
from .branch import Branch
from .evidence import Origin, Row, text_of
from .pictures import call_line, score

_BARS = "▁▂▃▄▅▆▇█"


def node_card(branch: Branch, node: Seen, found: Origin | None, rows: Sequence[Row]) -> RenderableType:
    """A node with everything that led to it."""
    way = " ▸ ".join(str(each.number + 1) for each in node.path()[-8:])
    facts = [way, f"depth {node.depth}", f"score {score(node.score)}"]
    facts += ["finished"] if node.terminal else []
    facts += ["pruned"] if node.pruned else []
    parts: list[RenderableType] = [Text(" · ".join(facts), style="dim")]
    if found is not None and found.call is not None and found.completion is not None:
        parts += _drawn(found.call, found.completion)
    else:
        parts += [_title("solution so far"), _quoted(text_of(node))]
    if found is not None:
        parts += _scores(found, rows, node)
    title = Text(f" node {node.number + 1} of {branch.name} ", style="bold")
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _drawn(call: Row, done: Row) -> list[RenderableType]:
    prompt = call["request"]["prompt"]
    parts: list[RenderableType] = [_title("prompt")]
    for message in prompt["messages"]:
        parts.append(Text.assemble((f"{message['role']}: ", "cyan"), printable(message["content"]).strip()))
    if prompt["prefix"]:
        role = [("assistant: ", "cyan")] if prompt["messages"] else []
        parts.append(Text.assemble(*role, printable(prompt["prefix"]).rstrip()))
    parts += [_title("completion"), _quoted(done["text"])]
    facts = [f"{done['n_tokens']} tokens", f"finish {done['finish']}", f"{call['seconds']:.2f} s"]
    facts += [f"one of {call['request']['n']} samples"] if call["request"]["n"] > 1 else []
    facts += [f"temperature {call['request']['sampling']['temperature']:g}"]
    parts.append(Text(" · ".join(facts), style="dim"))
    parts.append(_title("log-probs"))
    if done["logprobs"]:
        parts.append(_logprobs(done["logprobs"]))
    elif call["request"]["logprobs"]:
        parts.append(Text("none: the model said nothing and ended its turn", style="dim"))
    else:
        parts.append(Text("not asked for; write: set policy.logprobs=true", style="dim"))
    return parts


def _logprobs(logprobs: Sequence[float | None]) -> Text:
    """A bar for each token, the taller the likelier, and the numbers."""
    known = [value for value in logprobs if value is not None]
    line = Text()
    for value in known:
        p = exp(value)
        line.append(_BARS[min(7, int(p * 8))], style="green" if p >= 0.5 else "yellow" if p >= 0.1 else "red")
    shown = " ".join(f"{value:.2f}" for value in known[:12]) + (" …" if len(known) > 12 else "")
    line.append(f"  {shown}  ")
    line.append(f"total {sum(known):.2f}", style="bold")
    return line


def _scores(found: Origin, rows: Sequence[Row], node: Seen) -> list[RenderableType]:
    parts: list[RenderableType] = [_title("scores")]
    history = [
        row["data"]["scores"][str(node.id)]
        for row in rows[found.event :]
        if row["event"] == "noted" and row["note"] == "scores" and str(node.id) in row["data"]["scores"]
    ]
    if history:
        parts.append(Text(" → ".join(map(score, history))))
    for call in found.scored_by[:4]:
        parts.append(call_line(call))
    if not history:
        parts.append(Text("none yet" if node.score is None else score(node.score), style="dim"))
    return parts


def _title(text: str) -> Text:
    return Text(text, style="bold magenta")


def _quoted(text: str) -> Text:
    shown = printable(text).strip("\n")
    return Text(shown) if shown.strip() else Text("(empty)", style="dim")

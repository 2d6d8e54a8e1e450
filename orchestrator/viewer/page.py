"""One self-contained page: HTML, CSS, scripts and the data of a run, with no address of anywhere in it.

Nothing of the run is ever read as markup: the data stands in a script element of a type that no browser
runs, with "<" escaped; the scripts put it into the page as text only; and the page's own policy forbids all
scripts and styles but those whose hashes it names, and all connections but the live page's to its server.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ..codec import dumps
from .compare import merged
from .picture import Picture

_SCRIPTS = ("model", "tree", "map", "timeline", "curves", "detail", "compare", "main")


def whole_page(pictures: Sequence[Picture]) -> str:
    """The page of a run, or of two runs laid over each other."""
    data: dict[str, Any] = {"runs": [picture.changes() for picture in pictures]}
    if len(pictures) == 2:
        data["merged"] = merged(*pictures)
    return _page(data, connect="'none'")


def live_page() -> str:
    """The page that takes the changes of a run from the server it came from."""
    return _page({"live": True}, connect="'self'")


def _page(data: Mapping[str, Any], connect: str) -> str:
    style = _part("style.css")
    script = "(() => {\n'use strict';\n" + "\n".join(_part(f"{name}.js") for name in _SCRIPTS) + "})();\n"
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {"policy": policy, "style": style, "script": script, "data": _embedded(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: filled[place[1]], _part("index.html"))


def _embedded(data: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element, nor begin a comment in it."""
    return dumps(data).decode().replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")

"""What a store answers to `Recall` and `Remember`."""

from ..serving.entries import Match
from ..serving.flow import Recall, Remember
from .base import Store


async def recalled(store: Store, request: Recall) -> tuple[Match, ...]:
    """What it has for a request."""
    if request.names:
        return tuple(Match(entry, 1.0, "by its name") for entry in await store.get(request.names))
    if request.query or request.k:
        return await store.search(request.query, request.k, kinds=request.kinds)
    found = await store.everything(kinds=request.kinds)
    return tuple(Match(entry, 1.0, "every entry") for entry in found if entry.status == "active")


async def remembered(store: Store, request: Remember, *, once: str = "") -> int:
    """Its newest version, once all is written; 0 if another writer was faster. A request named by `once` is
    carried out once, however often it is sent."""
    if not request.entries and not request.credit:
        return await store.version()
    return await store.write(
        request.entries, reason=request.reason, after=request.after, credit=request.credit, once=once
    )

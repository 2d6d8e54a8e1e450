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


async def remembered(store: Store, request: Remember) -> int:
    """Its newest version, once all is written; 0 if another writer was faster."""
    if request.entries:
        version = await store.write(request.entries, reason=request.reason, after=request.after)
        if not version:
            return 0
    else:
        version = await store.version()
    if request.credit:
        await store.credit(request.credit)
    return version

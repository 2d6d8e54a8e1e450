"""Who may ask: API keys, from a file or from the environment.

    alice: {key: sk-…, tokens_per_day: 200000}
    bob: {sha256: 9f86d0…, usd: 5, usd_per_day: 1}     # the key's SHA-256, so that the file holds no secret

Only hashes are kept. A key that is presented is compared with every known one, in constant time.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path as File
from typing import Any

from ...serving import settings
from ...serving.errors import UsageError
from .. import strict_yaml
from ..recipe.parts import near


@dataclass(frozen=True)
class Allowance:
    """What a key may spend: in all, and each day (UTC). Tokens are counted as in budgets: prompt tokens
    not found in the cache, and output tokens."""

    tokens: float | None = None
    tokens_per_day: float | None = None
    usd: float | None = None
    usd_per_day: float | None = None


@dataclass(frozen=True)
class Key:
    """A key by its name; the key itself is not known any more."""

    name: str
    digest: bytes
    allowance: Allowance = Allowance()


class Keys:
    """All keys. None at all: everybody may ask."""

    def __init__(self, known: Iterable[Key] = ()) -> None:
        self.known = tuple(known)

    def find(self, presented: str) -> Key | None:
        """The key that was presented, if it is one of ours."""
        digest = _digest(presented)
        found = None
        for key in self.known:  # all of them, whatever was found: the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def load(file: str | None) -> Keys:
    """The keys of a file, and those of ABDUCE_API_KEYS. Raises UsageError that never quotes a key."""
    known = [*(_of_file(File(file)) if file else ()), *_of_environment()]
    if file and not known:
        raise UsageError(f"{file} holds no keys. Write e.g.: alice: {{key: …, tokens_per_day: 100000}}.")
    for seen, what in ({key.name for key in known}, "name"), ({key.digest for key in known}, "key"):
        if len(seen) < len(known):
            raise UsageError(f"Two API keys have the same {what}. Give each its own.")
    return Keys(known)


def _of_file(file: File) -> Iterable[Key]:
    try:
        rows = strict_yaml.read(file).data
    except OSError as error:
        raise UsageError(f"Cannot read the keys of {file}: {error.strerror}.") from None
    for name, row in rows.items():
        if not isinstance(row, Mapping):
            raise UsageError(f"{file}: {name}: write {{key: …}} or {{sha256: …}}, with limits beside it.")
        yield _key(str(name), dict(row), f"{file}: {name}")


def _of_environment() -> Iterable[Key]:
    for i, entry in enumerate(filter(None, settings.api_keys().split(",")), 1):
        name, colon, secret = entry.strip().partition(":")
        if not colon:
            raise UsageError(
                f"Entry {i} of ABDUCE_API_KEYS has no name. Write ABDUCE_API_KEYS=name:key,name:key."
            )
        yield _key(name, {"key": secret}, f"ABDUCE_API_KEYS: entry {i}")


def _key(name: str, row: dict[str, Any], where: str) -> Key:
    if not re.fullmatch(r"[A-Za-z0-9_.@-]{1,64}", name):
        raise UsageError(f"{where}: a key's name is of letters, digits, _ . @ and -, at most 64.")
    secret, digest = row.pop("key", None), row.pop("sha256", None)
    if (secret is None) == (digest is None):
        raise UsageError(f"{where}: give either key or sha256.")
    if secret is not None and not (isinstance(secret, str) and len(secret) >= _SHORTEST):
        raise UsageError(
            f"{where}: a key is a text of at least {_SHORTEST} characters. Put numbers in quotes."
        )
    if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
        raise UsageError(
            f"{where}: sha256 is 64 hexadecimal digits in lower case: printf %s KEY | sha256sum."
        )
    limits = [f.name for f in fields(Allowance)]
    for word, limit in row.items():
        if word not in limits:
            raise UsageError(f"{where}: {near(f'{word} is not a limit', word, limits)}")
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0:
            raise UsageError(f"{where}: {word} must be a number from 0 on.")
    found = bytes.fromhex(digest) if digest is not None else _digest(secret or "")
    return Key(name, found, Allowance(**row))


_SHORTEST = 8


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()

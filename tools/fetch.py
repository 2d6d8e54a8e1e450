"""Reading pages over HTTP, from hosts that were allowed by name and from no others.

There is no tool `fetch` without hosts. An address is refused unless its host is allowed, its port is usual,
and every address that DNS gives for it is public; the connection goes to exactly the addresses that were
judged, so that a name which changes its mind in between leads nowhere. Each redirect is judged anew.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..serving.errors import UsageError
from ..serving.flow import ToolResult
from ..serving.tool_calls import inert
from .base import Limits, Tool, tool

_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::\d{1,5})?")
_USUAL = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Fetch:
    """The tool `fetch` for `hosts`: `en.wikipedia.org`, `*.wikipedia.org` (those below it), or with a port.

    Pages are read up to `max_bytes`, for `seconds` at most, through `redirects` at most. `private` also
    allows addresses of this machine and its network: for a server of one's own.
    """

    hosts: tuple[str, ...] = ()
    seconds: float = 15.0
    max_bytes: int = 2 << 20
    output_chars: int = 8000
    redirects: int = 4
    private: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.hosts, str) or not self.hosts:
            raise UsageError(
                "The tool fetch is off until hosts are allowed: {name: fetch, hosts: [en.wikipedia.org]}."
            )
        for host in self.hosts:
            if not isinstance(host, str) or not _HOST.fullmatch(host.lower()):
                raise UsageError(f"A host is written en.wikipedia.org, without https://, got {host!r}.")
        if self.max_bytes < 1 or self.redirects < 0:
            raise UsageError("max_bytes must be at least 1, and redirects at least 0.")

    def tools(self) -> tuple[Tool, ...]:
        """The one tool."""
        limits = Limits(seconds=self.seconds, output_chars=self.output_chars, at_once=4)
        return (tool(effect="pure", limits=limits)(self.fetch),)

    async def fetch(self, url: str) -> ToolResult:
        """Read the page at an address such as https://en.wikipedia.org/wiki/Abduction and return its text."""
        import aiohttp

        at = url.strip()
        for _ in range(self.redirects + 1):
            if refused := self.refusal(at):
                return ToolResult(refused, ok=False)
            connector = aiohttp.TCPConnector(resolver=_judging(self.private), use_dns_cache=False)
            jar = aiohttp.DummyCookieJar()  # nor proxies of the environment, which would resolve names
            try:
                async with (
                    aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session,
                    session.get(at, allow_redirects=False, headers=_HEADERS) as reply,
                ):
                    if reply.status in (301, 302, 303, 307, 308) and "Location" in reply.headers:
                        at = urljoin(at, reply.headers["Location"])
                        continue
                    return await self._read(reply)
            except (aiohttp.ClientError, OSError) as error:
                cause = getattr(error, "os_error", error)
                if isinstance(cause, _NotPublic):
                    return ToolResult(str(cause), ok=False)
                return ToolResult(f"{_place(at)} could not be read: {error}", ok=False)
        return ToolResult(f"More than {self.redirects} redirects.", ok=False)

    def refusal(self, url: str) -> str:
        """Why an address is not read; "" if nothing speaks against it before its name is resolved."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip(".").lower(), parts.port
        except ValueError:
            return f"{url[:200]!r} is no address. Write one such as https://{self.hosts[0]}/."
        if parts.scheme not in _USUAL:
            return "Only http and https are read."
        if parts.username or parts.password:
            return "Addresses with a user or a password are not read."
        wanted = port or _USUAL[parts.scheme]
        if not any(_allows(each.lower(), host, wanted, _USUAL[parts.scheme]) for each in self.hosts):
            return f"The host {host!r} is not allowed. Allowed: {', '.join(self.hosts)}."
        if not self.private and (literal := _literal(host)) and not is_public(literal):
            return _PRIVATE.format(host)
        return ""

    async def _read(self, reply: Any) -> ToolResult:
        if reply.status >= 400:
            return ToolResult(f"The server answered {reply.status} {reply.reason}.", ok=False)
        kind = reply.content_type
        if not (kind.startswith("text/") or kind.endswith(("json", "xml"))):
            return ToolResult(f"The page is {kind}, which is not text.", ok=False)
        body = bytearray()
        async for chunk in reply.content.iter_chunked(1 << 16):
            body += chunk
            if len(body) > self.max_bytes:
                del body[self.max_bytes :]
                break
        try:
            text = body.decode(reply.charset or "utf-8", "replace")
        except LookupError:
            text = body.decode("utf-8", "replace")
        return ToolResult(inert(page_text(text) if "html" in kind else text))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet. One that stands for another is judged as that.

    >>> [is_public(a) for a in ("8.8.8.8", "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1")]
    [True, False, False, False]
    """
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inside is None and found in _NAT64:
            inside = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inside is not None:
            found = inside
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def page_text(html: str) -> str:
    """What a page says, without its markup.

    >>> page_text("<h1>Hi</h1><script>x()</script><p>a <b>bold</b> word</p>")
    'Hi\\n\\na bold word'
    """
    reader = _Text()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


async def resolved(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, from the system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in found))


_PRIVATE = "The host {!r} is on a private network, which is not read."
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_HEADERS = {"User-Agent": "abduce", "Accept": "text/html, text/*, application/json;q=0.9, */*;q=0.1"}
_SILENT = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_BLOCKS = frozenset({"p", "div", "li", "tr", "section", "article", "table", "ul", "ol", "blockquote", "pre"})
_HEADS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6", *_BLOCKS})


def _allows(pattern: str, host: str, port: int, usual: int) -> bool:
    name, _, wanted = pattern.partition(":")
    if port != (int(wanted) if wanted else usual):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def _literal(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def _place(url: str) -> str:
    return urlsplit(url).hostname or "the address"


class _NotPublic(OSError):
    """A name that leads to addresses which are not read."""


def _judging(private: bool) -> Any:
    """aiohttp's resolver: of a host's addresses it gives none unless all may be read."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Judging(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            addresses = await resolved(host, port)
            if not private and not all(map(is_public, addresses)):
                raise _NotPublic(_PRIVATE.format(host))
            return [
                {
                    "hostname": host,
                    "host": address,
                    "port": port,
                    "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                    "proto": 0,
                    "flags": socket.AI_NUMERICHOST,
                }
                for address in addresses
            ]

        async def close(self) -> None:
            pass

    return Judging()


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _SILENT:
            self._silent += 1
        elif tag in _HEADS:
            self.parts.append("\n\n" if tag not in ("li", "tr") else "\n")
        elif tag in ("br", "td", "th"):
            self.parts.append("\n" if tag == "br" else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in _HEADS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)

"""The tools of an MCP server, by the official client: a program that is started, or an address.

    {name: mcp, command: [mcp-server-time]}
    {name: mcp, url: "https://tools.example.org/mcp", effects: {lookup: pure}}

A server is not trusted. What it says of its tools is fixed when it is connected and reaches the model as
plain text of bounded length; a name that another tool has is refused. It is given the environment that is
named here and nothing else of ours, no model to ask, no files and no human; secrets that are registered
(`serving/redact.py`) never stand in the arguments it gets. What a tool does to the world it only hints at, so
each counts as `once` unless `effects` says otherwise.
"""

import asyncio
import logging
import os
import re
import sys
import threading
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..serving import redact
from ..serving.errors import MissingExtra, UnknownName, UsageError
from ..serving.flow import Effect, ToolResult
from ..serving.tool_calls import inert
from .base import Limits, Tool

if TYPE_CHECKING:
    from mcp import Client

MAX_DESCRIPTION = 1000
"""Characters of a description that a model is shown, of a tool and of each of its parameters."""

MAX_TOOLS = 256

logging.getLogger("mcp").addHandler(logging.NullHandler())  # what goes wrong is told in our errors
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Mcp:
    """The tools of the server that `command` starts, or that is at `url`.

    `only` names the tools that are wanted; `name`, where it is given, is put before the names of all.
    `environment` are further variables for the program, and `headers` go with each request to an address.
    `effects` says what tools do to the world. `seconds` is the limit of a call,
    `connect_seconds` that of connecting.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    only: tuple[str, ...] = ()
    effects: Mapping[str, Effect] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 30.0
    connect_seconds: float = 30.0
    output_chars: int = 20_000
    name: str = ""

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise UsageError(
                "The tool mcp needs a command or an address: {name: mcp, command: [mcp-server-time]}."
            )
        if isinstance(self.command, str):
            raise UsageError(f"command is a list such as [mcp-server-time, --verbose], got {self.command!r}.")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise UsageError(f"url is an address such as https://tools.example.org/mcp, got {self.url!r}.")
        for tool, effect in self.effects.items():
            if effect not in ("pure", "idempotent", "once"):
                raise UsageError(f"The effect of {tool!r} is pure, idempotent or once, not {effect!r}.")
        if find_spec("mcp") is None:
            raise MissingExtra("mcp", "mcp")
        redact.register_named({"headers": self.headers, **self.environment})

    def tools(self) -> tuple[Tool, ...]:
        """Connect, and make a tool of each that the server has. It stays connected until the program ends or
        nothing holds its tools any more."""
        server = _Server(self)
        told = {tool.name: tool for tool in server.tools[:MAX_TOOLS] if _NAME.fullmatch(tool.name)}
        for wanted in (*self.only, *self.effects):
            if wanted not in told:
                server.close()
                raise UnknownName(f"tool of the MCP server {self.where}", wanted, told)
        chosen = self.only or told
        return tuple(self._tool(server, told[name]) for name in chosen)

    @property
    def where(self) -> str:
        """The server, as errors name it."""
        return redact.text(self.url or " ".join(self.command))

    def _tool(self, server: "_Server", told: Any) -> Tool:
        async def run(**arguments: Any) -> ToolResult:
            return await server.call(told.name, arguments)

        limits = Limits(seconds=self.seconds, output_chars=self.output_chars)
        description = _plain(told.description or told.title or told.name)
        name = f"{self.name}_{told.name}" if self.name else told.name
        effect = self.effects.get(told.name, "once")
        return Tool(name, description, _plain_schema(told.input_schema), run, None, effect, limits)


class _Server:
    """A connected server. The connection lives in an event loop of its own, in a thread, since runs come and
    go in loops of theirs."""

    def __init__(self, settings: Mcp) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        connected: Future[tuple[Client, list[Any]]] = Future()
        held = self._loop.create_task(_held(settings, connected))
        thread = threading.Thread(target=_hold, args=(self._loop, held, connected), daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _end, self._loop, held, thread)
        try:
            self._client, self.tools = connected.result(settings.connect_seconds)
        except BaseException as error:
            self.close()
            if not isinstance(error, Exception):
                raise
            why = "it did not answer in time" if isinstance(error, TimeoutError) else _reason(error)
            raise UsageError(f"The MCP server {settings.where} cannot be used: {why}") from error

    async def call(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call one of its tools, wherever we are. Cancelling the call tells the server so."""
        return await self._there(self._call(name, redact.data(dict(arguments))))

    async def _call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        try:
            reply = await self._client.call_tool(name, arguments)
        except Exception as error:
            return ToolResult(inert(_reason(error)), ok=False)
        texts = [_text(part) for part in reply.content]
        return ToolResult(inert("\n".join(texts)), ok=not reply.is_error, value=_value(reply))

    async def _there(self, call: Coroutine[Any, Any, ToolResult]) -> ToolResult:
        if self._loop.is_closed():
            call.close()
            return ToolResult("The connection to the server is closed.", ok=False)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))


def _hold(
    loop: asyncio.AbstractEventLoop,
    held: "asyncio.Task[None]",
    connected: "Future[tuple[Client, list[Any]]]",
) -> None:
    """The thread: connect, hold the connection, end it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(held)
    except BaseException as error:
        if not connected.done():
            connected.set_exception(error if isinstance(error, Exception) else RuntimeError("it was ended"))
    finally:
        with suppress(RuntimeError):
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _held(settings: Mcp, connected: "Future[tuple[Client, list[Any]]]") -> None:
    from contextlib import AsyncExitStack

    from mcp import Client

    async with AsyncExitStack() as open_parts:
        transport = await _transport(settings, open_parts)
        # No callbacks: a server may ask for a model, for files or for the human, and is told there are none.
        client = await open_parts.enter_async_context(
            Client(transport, read_timeout_seconds=settings.seconds)
        )
        found: list[Any] = []
        cursor = None
        while len(found) < MAX_TOOLS:
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        connected.set_result((client, found))
        await asyncio.Event().wait()  # until it is cancelled


async def _transport(settings: Mcp, open_parts: Any) -> Any:
    if settings.command:
        from mcp.client.stdio import StdioServerParameters, stdio_client

        program, *words = settings.command
        program = sys.executable if program == "python" else program
        said = open_parts.enter_context(_Said())
        asked = StdioServerParameters(
            command=program,
            args=list(words),
            env=dict(settings.environment),
            encoding_error_handler="replace",
        )
        return stdio_client(asked, errlog=said.file)
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    times = httpx2.Timeout(settings.seconds, read=300.0)  # a stream of answers may be silent for long
    headers = dict(settings.headers)
    client = await open_parts.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=times))
    return streamable_http_client(settings.url, http_client=client)


class _Said:
    """Where a program complains (stderr): the end of it is kept, for the error that says why it ended."""

    def __enter__(self) -> "_Said":
        end, begin = os.pipe()
        self.file = os.fdopen(begin, "w")
        self._tail = b""
        self._thread = threading.Thread(target=self._read, args=(end,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.file.close()
        self._thread.join(1)
        lines = [line for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        if error is not None and lines:
            error.add_note(_plain(lines[-1]))

    def _read(self, end: int) -> None:
        with os.fdopen(end, "rb", buffering=0) as stream:
            while piece := stream.read(4096):
                self._tail = (self._tail + piece)[-2000:]


def _end(loop: asyncio.AbstractEventLoop, held: "asyncio.Task[None]", thread: threading.Thread) -> None:
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(held.cancel)
    if thread is not threading.current_thread():
        thread.join(5)


# ---------------------------------------------------------------- what a server says


def _plain(said: str) -> str:
    """What a server says of itself, as the model may read it: one paragraph of plain text."""
    text = " ".join(inert("".join(c if c.isprintable() else " " for c in said)).split())
    return text if len(text) <= MAX_DESCRIPTION else text[: MAX_DESCRIPTION - 1] + "…"


def _plain_schema(schema: Any, depth: int = 0) -> Any:
    """A schema with all its texts plain."""
    if isinstance(schema, str):
        return _plain(schema)
    if isinstance(schema, Mapping) and depth < 12:
        return {_plain(str(key)): _plain_schema(part, depth + 1) for key, part in list(schema.items())[:200]}
    if isinstance(schema, list) and depth < 12:
        return [_plain_schema(part, depth + 1) for part in schema[:200]]
    return schema if isinstance(schema, (bool, int, float)) or schema is None else {}


def _text(part: Any) -> str:
    text = getattr(part, "text", None)
    if isinstance(text, str):
        return text
    inside = getattr(getattr(part, "resource", None), "text", None)
    return inside if isinstance(inside, str) else f"[{getattr(part, 'type', 'data')}, not shown]"


def _value(reply: Any) -> Any:
    found = reply.structured_content
    return _inert_data(found) if isinstance(found, (dict, list, int, float, bool)) else None


def _inert_data(value: Any) -> Any:
    if isinstance(value, str):
        return inert(value)
    if isinstance(value, dict):
        return {inert(str(key)): _inert_data(part) for key, part in value.items()}
    return [_inert_data(part) for part in value] if isinstance(value, list) else value


def _reason(error: BaseException) -> str:
    notes = list(getattr(error, "__notes__", ()))
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return redact.text(". ".join([str(error) or type(error).__name__, *notes]))

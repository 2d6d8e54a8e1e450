"""llama.cpp's server inside this process, by way of xllamacpp.

    asyncio ──loopback socket, secret key──► llama.cpp's HTTP threads ──► its loop: all slots in one batch

xllamacpp opens that socket in any case. It is used here rather than xllamacpp's blocking calls since
it alone gives the tokeniser and the chat template, needs no thread for each call, and since closing a
connection ends the call's slots at their next token: that is how a cancelled task stops costing.
"""

import asyncio
import http.client
import json
import secrets
import socket
import time
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .errors import EngineError, TransientError, UsageError

JSON = Mapping[str, Any]


class LlamaServer:
    """One model, loaded and serving. Making one blocks while the model loads, about a second for 100 MB.

    `n_ctx` tokens are one pool for all `slots`. With `embedding` it serves `/embedding` and nothing else.
    Raises UsageError if llama.cpp cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int,
        n_ctx: int,
        threads: int,
        unified: bool = True,
        embedding: bool = False,
    ) -> None:
        import xllamacpp  # type: ignore[import-untyped]

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = slots
        params.n_ctx = n_ctx
        params.kv_unified = True  # one pool, in which the samples of a request keep its prompt once
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = -1  # silent: a library prints nothing
        params.warmup = False
        params.prefill_assistant = (
            False  # a last assistant message is a whole turn: `Prompt.prefix` says else
        )
        params.ui = False
        params.cache_ram_mib = 0  # its copies of old prompts: up to 8 GiB by default
        params.n_threads_http = 2 * slots + 8  # a call in flight holds one; tokenising must not queue
        self._key = secrets.token_urlsafe(16)  # other users of the machine can reach the socket
        params.api_keys = [self._key]
        if embedding:
            params.embedding = True
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
            params.n_batch = params.n_ubatch = n_ctx  # a prompt must fit into one batch
        try:
            native = xllamacpp.Server(params)
        except RuntimeError as error:
            raise UsageError(
                f"llama.cpp cannot load {path}. Is it a whole GGUF file of a text model?"
            ) from error
        where = urlsplit(native.listening_address)
        self.host, self.port = where.hostname or "127.0.0.1", where.port or 0
        self._sockets: set[socket.socket] = set()
        self._eos: int | None = None
        # Runs at exit too: llama.cpp's threads must end before the interpreter does.
        self._end = weakref.finalize(self, _end, [native], self._sockets, self.ask_slots())

    def close(self) -> None:
        """Abort what is in flight, free the model. Blocks for some milliseconds. Safe to call twice."""
        self._end()

    @property
    def closed(self) -> bool:
        """Whether the model is gone."""
        return not self._end.alive

    @property
    def eos(self) -> int:
        """The token that ends a turn."""
        if self._eos is None:
            name = _ask(self.host, self.port, self._key, "GET", "/props", None)["eos_token"]
            [self._eos] = self.ask("/tokenize", {"content": name, "parse_special": True})["tokens"]
        return self._eos

    def ask_slots(self) -> Callable[[], bool]:
        """A function that tells whether any slot is at work; it holds no reference to this object."""
        host, port, key = self.host, self.port, self._key
        return lambda: any(slot["is_processing"] for slot in _ask(host, port, key, "GET", "/slots", None))

    def ask(self, route: str, body: JSON) -> Any:
        """One call that needs no model pass (tokenise, template), about 0.4 ms. Blocks; any thread."""
        return _ask(self.host, self.port, self._key, "POST", route, body)

    async def post(self, route: str, body: JSON) -> Any:
        """One call, answered at once when it ends."""
        async with self._call(route, body) as reply:
            return json.loads(b"".join([block async for block in reply]))

    async def events(self, route: str, body: JSON, hear: Callable[[JSON], None]) -> None:
        """One streamed call; `hear` is given each event. Cancelling it ends the work at the next token."""
        rest = b""
        async with self._call(route, body) as reply:
            async for block in reply:
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: {"):
                        event = json.loads(line[6:])
                        if "error" in event:
                            raise fault(event["error"])
                        hear(event)
                    elif line.startswith(b"error: "):
                        raise fault(json.loads(line[7:]))

    @asynccontextmanager
    async def _call(self, route: str, body: JSON) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of the reply, block by block. Raises EngineError or TransientError."""
        if self.closed:
            raise EngineError("The engine was closed.")
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
            sock = writer.get_extra_info("socket")
            self._sockets.add(sock)
            try:
                writer.write(_request(route, body, self._key))
                status, blocks = await _reply(reader)
                if status != 200:
                    raise fault(json.loads(b"".join([block async for block in blocks])).get("error"))
                yield blocks
            finally:
                self._sockets.discard(sock)
                writer.transport.abort()  # a reset: the server's next write fails, and it frees the slots
        except (OSError, EOFError, ValueError) as error:
            if self.closed:
                raise EngineError("The engine was closed while the call was running.") from error
            raise TransientError(f"The connection to llama.cpp broke: {error!r}.") from error


def fault(error: Any) -> EngineError:
    """The error that a reply of llama.cpp stands for: 4xx would fail again, the rest may not."""
    told: JSON = error if isinstance(error, Mapping) else {"message": str(error)}
    message = str(told.get("message", "no message"))
    if told.get("type") == "exceed_context_size_error":
        return too_long(int(told.get("n_prompt_tokens", 0)), int(told.get("n_ctx", 0)))
    kind = EngineError if 400 <= int(told.get("code", 500)) < 500 else TransientError
    return kind(f"llama.cpp: {message}")


def too_long(n_tokens: int, context: int) -> EngineError:
    """The error of a prompt that does not fit."""
    return EngineError(
        f"The prompt has {n_tokens} tokens and the engine's context holds {context}, the reply included. "
        f"Shorten the prompt, or make the engine with a larger context: Embedded(context={2 * n_tokens})."
    )


# ---------------------------------------------------------------- the end


def _end(
    native: list[Any], sockets: set[socket.socket], busy: Callable[[], bool], patience_s: float = 10
) -> None:
    """Free the server. It must be idle first: its destructor waits for calls that nothing would end."""
    for each in list(sockets):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    give_up = time.monotonic() + 10
    with suppress(EngineError, OSError):
        while time.monotonic() < give_up and busy():
            time.sleep(0.01)
    native.clear()


# ---------------------------------------------------------------- HTTP/1.1, as much as is needed


def _ask(host: str, port: int, key: str, method: str, route: str, body: JSON | None) -> Any:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request(method, route, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        found = json.loads(reply.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TransientError(f"The connection to llama.cpp broke: {error!r}.") from error
    finally:
        connection.close()
    if reply.status != 200:
        raise fault(found.get("error"))
    return found


def _request(route: str, body: JSON, key: str) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


async def _reply(reader: asyncio.StreamReader) -> tuple[int, AsyncIterator[bytes]]:
    """Status, and the body's blocks. Raises EOFError where the connection ends early."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    async def blocks() -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") != "chunked":
            yield await reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]

    return int(first.split()[1]), blocks()


# ---------------------------------------------------------------- what is drawn


class Drawn(NamedTuple):
    """One token. `logprob` is None, and `top` empty, where llama.cpp told nothing of it."""

    token: int
    logprob: float | None = None
    top: tuple[float, ...] = ()  # the best log-probs at its place, falling


class Sample:
    """One sample of a streamed completion, put together from its events.

    llama.cpp sends an event for each token, except for tokens that leave a character unfinished: their
    ids never arrive. The text that the next event brings tells them: its own tokenisation, which is
    what the model drew in all but contrived cases. Log-probs of such tokens are unknown.
    """

    def __init__(self, tokenize: Callable[[str], Sequence[int]]) -> None:
        self._tokenize = tokenize
        self._tokens: list[Drawn] = []
        self._held: list[Drawn] = []  # since text was last sent
        self._hidden = 0  # tokens without an event, since text was last sent
        self.n_tokens = 0  # drawn, the end-of-turn token included
        self.n_cached = 0  # prompt tokens found in the cache
        self.finish = ""  # llama.cpp's word: "eos", "word", "limit"; empty while it runs
        self.stop = ""

    def hear(self, event: JSON) -> None:
        """Take in one event of this sample."""
        if event["stop"]:
            self._flush(event["stopping_word"])
            self.n_tokens = event["tokens_predicted"]
            self.finish, self.stop = event["stop_type"], event["stopping_word"]
            self.n_cached = event["timings"]["cache_n"]
            if self.finish == "eos" and self._tokens:
                self._tokens.pop()  # no text belongs to it
            return
        self._hidden += event["tokens_predicted"] - self.n_tokens - 1
        self.n_tokens = event["tokens_predicted"]
        for token in event["tokens"]:
            self._held.append(_drawn(token, event))
        if event["content"]:
            self._flush(event["content"])

    def _flush(self, text: str) -> None:
        known = self._held
        if self._hidden and text:
            ids = list(self._tokenize(text))
            tail = known[-1:] if known and ids[-1:] == [known[-1].token] else []
            known = [Drawn(token) for token in ids[: len(ids) - len(tail)]] + tail
        self._tokens += known
        self._held, self._hidden = [], 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens drawn, without the end-of-turn token."""
        return tuple(drawn.token for drawn in self._tokens)

    @property
    def logprobs(self) -> tuple[float | None, ...]:
        """Their log-probs under the model's own distribution, None where unknown."""
        return tuple(drawn.logprob for drawn in self._tokens)

    @property
    def tops(self) -> tuple[tuple[float, ...], ...]:
        """For each of them the best log-probs at its place, falling; empty where unknown."""
        return tuple(drawn.top for drawn in self._tokens)


def _drawn(token: int, event: JSON) -> Drawn:
    told = event.get("completion_probabilities")
    return Drawn(token, drawn_logprob(told[0]), best_logprobs(told[0])) if told else Drawn(token)


def best_logprobs(told: JSON) -> tuple[float, ...]:
    """The best log-probs in one entry of a reply, falling."""
    return tuple(sorted(map(drawn_logprob, told["top_logprobs"]), reverse=True))


def drawn_logprob(told: JSON) -> float:
    """The log-prob in one entry of a reply. llama.cpp's softmax is float32 and tells a probability of 0
    by the lowest float: no log-prob is below that of the smallest positive float32."""
    return max(float(told["logprob"]), -103.28)

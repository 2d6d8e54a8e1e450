"""SGLang inside this process: the same bodies as over HTTP, given to a `sglang.Engine`.

Its scheduler and detokeniser are processes of their own; what is here is its tokeniser manager, which
lives in one event loop. That loop runs in a thread of ours, so that callers may have any number of loops.
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .. import settings
from ..engram_folder import shape_in
from ..errors import EngineError, MissingExtra, TransientError, UsageError
from . import launch

_ROUTES = {"/generate": "GenerateReqInput", "/classify": "EmbeddingReqInput"}


class InProcess:
    """`model`: a folder or hub name. `options`: arguments of `sglang.Engine`; what is not given is chosen as
    for a server. Loaded at first use."""

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        self.where = f"the SGLang engine of {model}"
        self.singly = False
        self._model = model
        self._options = dict(options)
        self._loading = threading.Lock()
        self._engine: Any = None
        self._calls: set[Future[Any]] = set()
        self._tokenize: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """The reply. Cancelled, it aborts the requests."""
        await self.start()
        call = self._submit(route, body)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        try:
            return await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._engine is None and task is not None and not task.cancelling():
                raise EngineError(f"{self.where} was closed.") from None
            raise

    async def get(self, route: str) -> Any:
        """What the engine says about itself: its arguments and limits."""
        await self.start()
        info = self._engine._scheduler_init_result.scheduler_infos[0]
        arguments = self._engine.server_args
        return {
            "max_req_input_len": info.get("max_req_input_len"),
            "is_embedding": arguments.is_embedding,
            "enable_deterministic_inference": arguments.enable_deterministic_inference,
        }

    def ask(self, route: str, body: Mapping[str, Any]) -> Any:
        """`post`, waiting for a second at most."""
        if self._engine is None:
            raise TransientError(f"{self.where} is not loaded yet.")
        try:
            return self._submit(route, body).result(1.0)
        except TimeoutError:
            raise TransientError(f"{self.where} gave no quick answer.") from None

    async def start(self) -> None:
        """Load the model."""
        if self._engine is None:
            await asyncio.to_thread(self._load)

    async def close(self) -> None:
        """End the engine and its processes."""
        await asyncio.to_thread(self._free)

    # ------------------------------------------------------------ the engine's own thread

    def _load(self) -> None:
        with self._loading:
            if self._engine is not None:
                return
            if find_spec("sglang") is None:
                raise MissingExtra("sglang", "sglang")
            born = threading.Event()
            fault: list[BaseException] = []
            name = f"SGLang {self._model}"
            threading.Thread(target=self._live, args=(born, fault), name=name, daemon=True).start()
            born.wait()
            if fault:
                raise UsageError(f"SGLang cannot load {self._model!r}: {fault[0]}") from fault[0]

    def _live(self, born: threading.Event, fault: list[BaseException]) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            with_tables = shape_in(self._model) is not None
            chosen = launch.flags(gpu=launch.has_gpu(), amx=launch.has_amx(), engram=with_tables)
            settings.set_unset(launch.variables(chosen))
            engine = import_module("sglang").Engine(
                model_path=self._model, **(launch.arguments(chosen) | self._options)
            )
            tokenize = import_module("sglang.srt.entrypoints.openai.serving_tokenize")
            self._tokenize = tokenize.OpenAIServingTokenize(engine.tokenizer_manager, engine.template_manager)
            self._detokenize = tokenize.OpenAIServingDetokenize(engine.tokenizer_manager)
        except BaseException as error:
            fault.append(error)
            loop.close()
        else:
            self._engine, self._loop = engine, loop
        finally:
            born.set()
        if not fault:
            loop.run_forever()
            loop.close()

    def _free(self) -> None:
        with self._loading:
            engine, loop = self._engine, self._loop
            self._engine = self._loop = None
        if engine is not None and loop is not None:
            for call in list(self._calls):
                call.cancel()
            engine.shutdown()
            loop.call_soon_threadsafe(loop.stop)

    def _submit(self, route: str, body: Mapping[str, Any]) -> "Future[Any]":
        """The reply as a future of any thread."""
        if self._loop is None:
            raise EngineError(f"{self.where} was closed.")
        work: Coroutine[Any, Any, Any]
        work = self._generate(route, body) if route in _ROUTES else self._convert(route, body)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _generate(self, route: str, body: Mapping[str, Any]) -> Any:
        requests = import_module("sglang.srt.managers.io_struct")
        fastapi = import_module("fastapi")
        manager = self._engine.tokenizer_manager
        # Engine takes lists where the server's JSON reader has made them already.
        request = getattr(requests, _ROUTES[route])(**_lists(body))
        try:
            return await anext(manager.generate_request(request, None))
        except asyncio.CancelledError:
            rids = body["rid"] if isinstance(body["rid"], list) else [body["rid"]]
            for rid in rids:
                manager.abort_request(rid)
            raise
        except ValueError as error:
            raise EngineError(f"{self.where} says: {error}") from None
        except fastapi.HTTPException as error:
            raise TransientError(f"{self.where} says: {error.detail}") from None

    async def _convert(self, route: str, body: Mapping[str, Any]) -> Any:
        protocol = import_module("sglang.srt.entrypoints.openai.protocol")
        if route == "/v1/tokenize":
            serving, request = self._tokenize, protocol.TokenizeRequest(**body)
        else:
            serving, request = self._detokenize, protocol.DetokenizeRequest(**body)
        said = await serving._handle_non_streaming_request(request, request, None)
        if not hasattr(said, "model_dump"):
            raise EngineError(f"{self.where} says: {said.body.decode()}")
        return said.model_dump()


def _lists(body: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples of ids as lists, which SGLang's checks ask for."""
    ids = body["input_ids"]
    plain = list(ids) if isinstance(ids[0], int) else [list(each) for each in ids]
    return dict(body) | {"input_ids": plain}

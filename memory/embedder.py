"""Texts as vectors, so that an entry is found whose words are others than the query's.

| name                          | what                                                                       |
|-------------------------------|----------------------------------------------------------------------------|
| `wordllama`                   | averaged token vectors of 256 numbers, from its wheel: offline             |
| `openai:MODEL`                | any endpoint with `/embeddings` (`url`), its key in the variable `key_env` |
| `sentence-transformers:MODEL` | a model of that library, a folder or one that it fetches                   |

`auto` is wordllama where it is installed, else none: then entries are found by words alone, and reads say so.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from ..serving import settings
from ..serving.errors import EngineError, MissingExtra, TransientError, UnknownName, UsageError

if TYPE_CHECKING:
    import numpy

    Vectors: TypeAlias = "numpy.ndarray[Any, numpy.dtype[numpy.float32]]"


class Embedder(Protocol):
    """Turns texts into vectors. `name` says which: only vectors of one name can be compared. A store keeps
    them in half precision."""

    @property
    def name(self) -> str:
        """The name, model included."""
        ...

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """float32 [n texts, dims], each of length 1, or 0 for a text without anything known."""
        ...


TEXT_ONLY = "by words alone, without an embedder"


def near(embedder: Embedder | None, similarity: float) -> str:
    """What is said of an entry's vector."""
    return f"{embedder.name if embedder else 'vectors'}: cosine {similarity:.2f}"


def other_embedder(made_by: str, embedder: str) -> UsageError:
    """The error for vectors that cannot be compared."""
    return UsageError(
        f"The memory's vectors were made by {made_by}, which cannot be compared with those of {embedder}. "
        f"Write embedder: {made_by.removesuffix('-256')}, or none; or export its entries into a new one."
    )


def cosines(vectors: "Vectors", query: "Vectors") -> list[float]:
    """The cosine of each row with the query, all of length 1; to 4 decimals, so that equal texts tie."""
    found: list[float] = (vectors @ query).astype(float).round(4).tolist()
    return found


def find_embedder(spec: "str | Mapping[str, Any] | Embedder | None") -> Embedder | None:
    """The embedder of a name, or of a mapping `{name: openai:…, url: …}`. Raises UsageError for any other."""
    if spec is None or spec == "none":
        return None
    if spec == "auto":
        return wordllama() if find_spec("wordllama") and find_spec("tokenizers") else None
    if not isinstance(spec, (str, Mapping)):
        return spec
    words = {"name": spec} if isinstance(spec, str) else dict(spec)
    kind, _, model = str(words.pop("name", "")).partition(":")
    try:
        if kind == "wordllama":
            return wordllama(**words)
        if kind == "openai":
            return OpenAI(model, **words)
        if kind == "sentence-transformers":
            return SentenceTransformers(model, **words)
    except TypeError as error:
        raise UsageError(f"The embedder {kind!r} cannot be made: {error}.") from None
    raise UnknownName(
        "embedder", kind, ["auto", "none", "wordllama", "openai:MODEL", "sentence-transformers:MODEL"]
    )


def unit(vectors: Any) -> "Vectors":
    """Vectors divided by their lengths, as float32."""
    import numpy as np

    found = np.asarray(vectors, np.float32)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise EngineError("The embedder gave something else than one vector of numbers for each text.")
    return cast("Vectors", found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))


@cache
def wordllama() -> "WordLlama":
    """The one of this process: its table takes 16 MB."""
    return WordLlama()


class WordLlama:
    """The mean of a text's token vectors. Source: github.com/dleemiller/WordLlama, table l2_supercat_256."""

    name = "wordllama-256"

    def __init__(self) -> None:
        spec = find_spec("wordllama")
        if spec is None or spec.origin is None or not find_spec("tokenizers"):
            raise MissingExtra("wordllama", "memory")
        self._folder = Path(spec.origin).parent  # not imported: it would look for newer weights elsewhere
        self._loaded: tuple[Any, Any] | None = None

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """In a thread, since many take a while."""
        return self._embed(texts) if len(texts) <= _FEW else await asyncio.to_thread(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> "Vectors":
        import numpy as np

        table, tokenizer = self._loaded or self._load()
        rows = np.zeros((len(texts), table.shape[1]), np.float32)
        for i, encoded in enumerate(tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
            if encoded.ids:
                rows[i] = table[encoded.ids].mean(axis=0)
        return unit(rows)

    def _load(self) -> tuple[Any, Any]:
        import numpy as np
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        [table] = load_file(self._folder / "weights" / "l2_supercat_256.safetensors").values()
        file = self._folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(_LONGEST)
        self._loaded = np.asarray(table, np.float32), tokenizer
        return self._loaded


_FEW = 32
_LONGEST = 2048  # tokens of a text; what follows changes its mean little


class OpenAI:
    """Any server with OpenAI's `/embeddings`. A text leaves this machine with each write and search."""

    def __init__(
        self, model: str, *, url: str = "https://api.openai.com/v1", key_env: str = "OPENAI_API_KEY"
    ) -> None:
        if not model:
            raise UsageError("Which model? Write e.g. openai:text-embedding-3-small.")
        self.name = f"openai:{model}"
        self._model, self._url, self._key_env = model, url.rstrip("/"), key_env

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """In calls of at most 256 texts."""
        import aiohttp

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            rows: list[Any] = []
            for first in range(0, len(texts), 256):
                rows += await self._call(session, list(texts[first : first + 256]))
        return unit(rows)

    async def _call(self, session: Any, texts: list[str]) -> list[Any]:
        import aiohttp

        key = settings.secret(self._key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Some servers refuse an empty text.
        body = {"model": self._model, "input": [text or " " for text in texts]}
        try:
            async with session.post(f"{self._url}/embeddings", json=body, headers=headers) as reply:
                if reply.status != 200:
                    said = " ".join((await reply.text())[:300].split())
                    kind = (
                        TransientError if reply.status in (408, 429) or reply.status >= 500 else EngineError
                    )
                    raise kind(f"{self.name} at {self._url} answered {reply.status}: {said}")
                rows = (await reply.json())["data"]
                return [row["embedding"] for row in sorted(rows, key=lambda row: row["index"])]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientError(f"{self.name} at {self._url} cannot be reached: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{self.name} at {self._url} gave no embeddings: {error!r:.200}") from None


class SentenceTransformers:
    """A model of the sentence-transformers library, on this machine."""

    def __init__(self, model: str) -> None:
        if not model:
            raise UsageError("Which model? Write e.g. sentence-transformers:all-MiniLM-L6-v2.")
        if not find_spec("sentence_transformers"):
            raise UsageError(
                "sentence-transformers is not installed. Install it with: pip install sentence-transformers"
            )
        self.name = f"sentence-transformers:{model}"
        self._model = model

    async def embed(self, texts: Sequence[str]) -> "Vectors":
        """In a thread."""
        return await asyncio.to_thread(self._embed, list(texts))

    def _embed(self, texts: list[str]) -> "Vectors":
        return unit(_sentence_model(self._model).encode(texts))


@cache
def _sentence_model(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model)

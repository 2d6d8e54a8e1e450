"""Texts become vectors offline, or by a server, or not at all; and what goes wrong is told."""

import asyncio
import builtins
import importlib.util

import numpy as np
import pytest
from aiohttp import web

from abduce.memory import embedder as module
from abduce.memory.embedder import OpenAI, find_embedder, unit, wordllama
from abduce.memory.in_memory import InMemory
from abduce.serving.entries import Entry
from abduce.serving.errors import EngineError, MissingExtra, TransientError, UsageError


def table():
    pytest.importorskip("wordllama")
    pytest.importorskip("tokenizers")
    return wordllama()


async def test_the_offline_one_finds_other_words_for_the_same():
    store = InMemory(table())
    texts = {
        "tea": "He drank a cup of hot tea",
        "car": "The automobile needs fuel",
        "sea": "Waves at the beach",
    }
    await store.write([Entry(name, text) for name, text in texts.items()])
    for query, name in [("coffee mug", "tea"), ("petrol for vehicles", "car"), ("ocean shore", "sea")]:
        [found] = await store.search(query, 1)
        assert found.entry.name == name
        assert "wordllama-256: cosine 0." in found.why


async def test_its_vectors_are_unit_the_same_each_time_and_its_own_alone():
    texts = ["one text", "another", "", "one text", "x " * 50]
    vectors = await table().embed(texts)
    assert vectors.shape == (5, 256) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0, 1, 1], atol=1e-5)
    many = await table().embed(texts * 20)  # in a thread
    assert np.array_equal(many[:5], vectors) and np.array_equal(vectors[0], vectors[3])


def test_without_its_package_auto_is_none_and_its_name_tells_the_line(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "wordllama" else real(name))
    assert find_embedder("auto") is None
    with pytest.raises(MissingExtra, match=r"pip install 'abduce\[memory\]'"):
        module.WordLlama()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("wordlama", "Did you mean 'wordllama'"),
        ({"name": "openai:"}, "Which model"),
        ({"name": "openai:m", "colour": 1}, "unexpected keyword argument 'colour'"),
        ("sentence-transformers:", "Which model"),
        ({}, "No embedder named ''"),
    ],
)
def test_what_is_no_embedder_is_told(spec, said):
    with pytest.raises(UsageError, match=said):
        find_embedder(spec)


def test_a_missing_library_is_told_with_its_line(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install sentence-transformers"):
        find_embedder("sentence-transformers:all-MiniLM-L6-v2")


class Server:
    """An endpoint that answers with the lengths of texts, or with what it is told to."""

    def __init__(self):
        self.asked, self.answer = [], None

    async def embeddings(self, request):
        self.asked.append((request.headers.get("Authorization"), await request.json()))
        if self.answer is not None:
            return self.answer()
        texts = self.asked[-1][1]["input"]
        rows = [{"index": i, "embedding": [len(text), 1.0]} for i, text in enumerate(texts)]
        return web.json_response({"data": rows[::-1]})


@pytest.fixture
async def server():
    made = Server()
    app = web.Application()
    app.router.add_post("/v1/embeddings", made.embeddings)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    await runner.cleanup()


async def test_any_server_with_openais_endpoint(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-embed-0123456789")
    found = find_embedder({"name": "openai:small", "url": server.url, "key_env": "MY_KEY"})
    vectors = await found.embed([str(i) * i for i in range(300)])
    assert np.allclose(vectors, unit([[max(len(str(i) * i), 1), 1.0] for i in range(300)]))
    assert [len(asked["input"]) for _, asked in server.asked] == [256, 44]
    assert {key for key, _ in server.asked} == {"Bearer sk-embed-0123456789"}
    assert {asked["model"] for _, asked in server.asked} == {"small"} and found.name == "openai:small"


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (
            lambda: web.Response(status=401, text="no key sk-embed-0123456789"),
            EngineError,
            "answered 401: no key",
        ),
        (lambda: web.Response(status=503), TransientError, "answered 503"),
        (lambda: web.json_response({"rows": []}), EngineError, "gave no embeddings"),
        (lambda: web.Response(text="hello"), EngineError, "gave no embeddings|cannot be reached"),
    ],
)
async def test_a_server_that_fails_is_told(server, answer, error, said):
    server.answer = answer
    with pytest.raises(error, match=said) as told:
        await OpenAI("small", url=server.url).embed(["x"])
    assert "sk-embed" not in str(told.value)


async def test_nobody_there():
    with pytest.raises(TransientError, match="cannot be reached"):
        await OpenAI("small", url="http://127.0.0.1:1/v1").embed(["x"])


@pytest.mark.parametrize("rows", [[1.0, 2.0], [[float("nan")]], [[[1.0]]]])
def test_what_is_no_vector_is_refused(rows):
    with pytest.raises(EngineError, match="one vector of numbers for each text"):
        unit(rows)


def test_nothing_heavy_is_imported_before_it_is_used(monkeypatch):
    real = builtins.__import__

    def strict(name, *args, **kwargs):
        assert name.partition(".")[0] not in ("numpy", "tokenizers", "safetensors", "aiohttp")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", strict)
    find_embedder("auto"), find_embedder({"name": "openai:m"})


async def test_an_embedder_that_fails_leaves_nothing_written(server):
    server.answer = lambda: web.Response(status=500)
    store = InMemory(OpenAI("small", url=server.url))
    with pytest.raises(TransientError):
        await store.write([Entry("a", "b")])
    assert await store.version() == 0
    await asyncio.sleep(0)

"""A memory behaves as LangGraph's own store does, and outlives it."""

import asyncio
from typing import Any, TypedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.graph import END, START, StateGraph
from langgraph.store.base import BaseStore, GetOp, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore
from stores import Toy

from abduce.memory.in_memory import InMemory
from abduce.memory.langgraph_store import LangGraphStore
from abduce.memory.sqlite import SqliteStore

spaces = st.sampled_from([("users", "anna"), ("users", "bert"), ("docs",), ("docs", "old", "x")])
values = st.fixed_dictionaries(
    {"text": st.sampled_from(["tea", "coffee and tea"]), "n": st.integers(0, 3)},
    optional={"more": st.lists(st.none())},
)
keys = st.sampled_from(["a", "b", "a/b", "ü" * 250])
puts = st.builds(PutOp, spaces, keys, values | st.none(), st.sampled_from([None, False]))
conditions = st.none() | st.sampled_from(
    [{"n": 1}, {"n": {"$gte": 2}}, {"n": {"$ne": 0}, "text": "tea"}, {"no": 1}]
)
prefixes = st.sampled_from([(), ("users",), ("docs",), ("docs", "old"), ("none",)])
searches = st.builds(SearchOp, prefixes, conditions, st.integers(1, 9), st.integers(0, 2), st.none())
patterns = st.builds(
    MatchCondition,
    st.sampled_from(["prefix", "suffix"]),
    st.sampled_from([("users", "*"), ("docs",), ("*",), ("old", "x"), ("users", "anna")]),
)
listings = st.builds(
    ListNamespacesOp,
    st.none() | st.lists(patterns, max_size=2).map(tuple),
    st.none() | st.integers(1, 3),
    st.just(9),
)
reads = st.builds(GetOp, spaces, keys) | searches | listings


def told(result: Any) -> Any:
    """A result without its times, and in no order that nobody promised."""
    if isinstance(result, list):
        return sorted(map(told, result), key=repr)
    if result is None or isinstance(result, tuple):
        return result
    return result.namespace, result.key, dict(result.value)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.lists(puts, max_size=3), max_size=5), st.lists(reads, max_size=4))
def test_it_does_as_langgraphs_own(writes, reads):
    async def both():
        ours, theirs = LangGraphStore(InMemory()), InMemoryStore()
        deleted = any(put.value is None for batch in writes for put in batch)
        for batch in writes:
            await ours.abatch(batch)
            await theirs.abatch(batch)
        for op in reads:
            if isinstance(op, SearchOp):  # which items make up a page is in no promised order
                op = op._replace(limit=99, offset=0)
            if isinstance(op, ListNamespacesOp) and deleted:  # theirs lists namespaces whose items are gone
                continue
            [found], [right] = await ours.abatch([op]), await theirs.abatch([op])
            assert told(found) == told(right), (op, writes)

    asyncio.run(both())


class Talk(TypedDict, total=False):
    said: str
    known: list[str]


def talk(state: Talk, *, store: BaseStore) -> Talk:
    """A node that remembers what was said and tells what it knows of it."""
    known = [item.value["text"] for item in store.search(("facts", "anna"), query=state["said"], limit=2)]
    store.put(("facts", "anna"), state["said"][:8], {"text": state["said"]})
    return {"known": known}


async def atalk(state: Talk, *, store: BaseStore) -> Talk:
    known = [
        item.value["text"] for item in await store.asearch(("facts", "anna"), query=state["said"], limit=2)
    ]
    await store.aput(("facts", "anna"), state["said"][:8], {"text": state["said"]})
    return {"known": known}


def compiled(node: Any, store: LangGraphStore) -> Any:
    graph = StateGraph(Talk)
    graph.add_node("talk", node)
    graph.add_edge(START, "talk")
    graph.add_edge("talk", END)
    return graph.compile(store=store)


async def test_a_real_graph_remembers_from_run_to_run(tmp_path):
    memory = SqliteStore(tmp_path / "m.db", Toy())
    app = compiled(talk, LangGraphStore(memory))
    assert app.invoke({"said": "I prefer green tea"})["known"] == []
    assert (await app.ainvoke({"said": "which tea?"}))["known"] == ["I prefer green tea"]
    await memory.close()
    again = SqliteStore(tmp_path / "m.db", Toy())  # as in a later process
    assert (
        "I prefer green tea"
        in (await compiled(atalk, LangGraphStore(again)).ainvoke({"said": "tea"}))["known"]
    )
    assert next(change.name for change in await again.history()) == "facts.anna/I prefer"
    await again.close()


async def test_index_says_what_is_searched():
    store = LangGraphStore(InMemory())
    await store.aput(("d",), "a", {"title": "circle", "body": "square"}, index=["title"])
    await store.aput(("d",), "b", {"title": "circle"}, index=False)
    await store.aput(("other",), "c", {"title": ["circle", {"x": "line"}]})
    assert [item.key for item in await store.asearch(("d",), query="circles")] == ["a"]
    assert await store.asearch(("d",), query="square") == []
    assert {item.key for item in await store.asearch((), query="circle line")} == {"a", "c"}
    assert (await store.asearch((), query="circle", limit=1))[0].score > 0
    with pytest.raises(NotImplementedError):
        await store.aput(("d",), "a", {}, ttl=5)


async def test_enough_are_found_in_a_namespace_that_others_outweigh():
    store = LangGraphStore(InMemory())
    await store.abatch([PutOp(("many",), str(i), {"t": "circle circle"}) for i in range(200)])
    await store.aput(("few",), "x", {"t": "a circle among longer words that weigh less"})
    assert [item.key for item in await store.asearch(("few",), query="circle", limit=3)] == ["x"]


async def test_what_is_deleted_is_gone_but_in_the_history():
    memory = InMemory()
    store = LangGraphStore(memory)
    await store.aput(("d",), "a", {"t": "circle"})
    first = await store.aget(("d",), "a")
    await store.aput(("d",), "a", {"t": "other"})
    second = await store.aget(("d",), "a")
    assert first.created_at == second.created_at <= second.updated_at
    await store.adelete(("d",), "a")
    assert await store.aget(("d",), "a") is None
    assert await store.asearch(("d",), query="other") == []
    assert [change.entry.data["value"]["t"] for change in await memory.history()] == [
        "circle",
        "other",
        "other",
    ]

"""What the gateway grants and to whom: keys, budgets, room, time; clients that leave; many at once."""

import asyncio
import contextlib
import hashlib
import json
import time

import pytest
from gateways import ASKED, Recorded, listening, openai, passing, recipe

from abduce.orchestrator.gateway.accounts import Accounts, Hold
from abduce.orchestrator.gateway.errors import ApiError
from abduce.orchestrator.gateway.keys import Allowance, Key, Keys, load
from abduce.serving.errors import UsageError
from abduce.serving.flow import Usage

ALICE, BOB = "sk-alice-0001", "sk-bob-000002"


def key(name, secret, **limits):
    return Key(name, hashlib.sha256(secret.encode()).digest(), Allowance(**limits))


def keys(**limits):
    return Keys([key("alice", ALICE, **limits), key("bob", BOB)])


BODY = {"model": "plain", **ASKED}

# ---------------------------------------------------------------- keys


async def test_without_a_known_key_nothing_is_told_and_health_is():
    async with listening(passing("plain", Recorded()), keys=keys()) as served:
        for wrong in (None, "sk-other", ALICE[:-1], ALICE + "x"):
            for told in (
                await served.post(body=BODY, key=wrong),
                await served.post("/v1/completions", {}, wrong),
            ):
                assert told[0] == 401 and told[1]["error"]["type"] == "authentication_error"
            for path in ("/v1/models", "/metrics", "/v1/models/plain"):
                assert (await served.get(path, wrong))[0] == 401
        status, _, _ = await served.post(body=BODY, Authorization=f"Basic {ALICE}")
        assert status == 401
        for path in ("/health", "/openapi.json"):
            assert (await served.get(path))[0] == 200
        for right in (ALICE, BOB):
            assert (await served.post(body=BODY, key=right))[0] == 200
        async with served.client("sk-other") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()


async def test_metrics_name_keys_by_their_names_and_never_tell_one():
    async with listening(passing("plain", Recorded()), keys=keys()) as served:
        await served.post(body=BODY, key=ALICE)
        await served.post(body={**BODY, "model": "none"}, key=BOB)
        _, text = await served.get("/metrics", BOB)
    assert 'abduce_requests_total{model="plain",key="alice",status="200"} 1' in text
    assert 'abduce_requests_total{model="-",key="bob",status="404"} 1' in text
    assert 'abduce_output_tokens_total{model="plain",key="alice"} 5' in text
    assert 'abduce_request_seconds_count{model="plain"} 1' in text
    assert ALICE not in text and BOB not in text


def test_a_key_is_compared_with_all():
    known = keys()
    assert known.find(ALICE).name == "alice" and known.find(BOB).name == "bob"
    assert known.find("") is None and known.find("\ud800") is None
    assert ALICE not in repr(known.known)


def test_keys_are_read_from_a_file_and_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys.yaml"
    digest = hashlib.sha256(BOB.encode()).hexdigest()
    file.write_text(f"alice: {{key: {ALICE}, tokens_per_day: 100}}\nbob: {{sha256: {digest}, usd: 2}}\n")
    monkeypatch.setenv("ABDUCE_API_KEYS", "carol:sk-carol-03, dave:sk-dave-0004")
    found = load(str(file))
    assert [k.name for k in found.known] == ["alice", "bob", "carol", "dave"]
    assert found.find(ALICE).allowance == Allowance(tokens_per_day=100)
    assert found.find(BOB).allowance == Allowance(usd=2)
    assert found.find("sk-dave-0004").name == "dave"
    monkeypatch.delenv("ABDUCE_API_KEYS")
    assert load(None).known == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alice: sk-alice-0001", "write {key: …}"),
        ("alice: {tokens: 3}", "either key or sha256"),
        ("alice: {key: short}", "at least 8"),
        ("alice: {key: sk-alice-0001, token: 3}", "Did you mean 'tokens'"),
        ("alice: {key: sk-alice-0001, tokens: -1}", "from 0 on"),
        ("alice: {sha256: abc}", "64 hexadecimal"),
        ("a b: {key: sk-alice-0001}", "letters, digits"),
        ("alice: {key: sk-alice-0001}\nbob: {key: sk-alice-0001}", "same key"),
    ],
)
def test_a_wrong_file_of_keys_is_told_without_quoting_a_key(tmp_path, text, said):
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(str(file))
    assert said in str(caught.value) and ALICE not in str(caught.value)


def test_the_environments_keys_need_names(monkeypatch):
    monkeypatch.setenv("ABDUCE_API_KEYS", "sk-alice-0001")
    with pytest.raises(UsageError, match="has no name") as caught:
        load(None)
    assert "sk-alice" not in str(caught.value)


# ---------------------------------------------------------------- budgets of keys


async def test_a_key_that_has_spent_its_tokens_is_refused_and_the_others_are_not():
    async with listening(passing("plain", Recorded()), keys=keys(tokens=30)) as served:
        seen = [(await served.post(body=BODY, key=ALICE)) for _ in range(6)]
        statuses = [status for status, _, _ in seen]
        assert statuses == sorted(statuses) and statuses[0] == 200 and statuses[-1] == 429
        told = seen[-1][1]["error"]
        assert told["code"] == "insufficient_quota" and "'alice'" in told["message"]
        spent = sum(reply["usage"]["total_tokens"] for status, reply, _ in seen if status == 200)
        one = seen[0][1]["usage"]["total_tokens"]
        assert 30 <= spent < 30 + one
        assert (await served.post(body=BODY, key=BOB))[0] == 200


@pytest.mark.parametrize("strategy", ["self_consistency", "chain_of_thought"])
async def test_concurrent_requests_overshoot_a_keys_budget_by_one_request_at_most(strategy):
    engine = Recorded(latency_s=0.05)
    model = recipe(
        "plain",
        engine,
        strategy,
        budget="100 tokens",
        policy={"preset": "plain", "sampling": {"max_tokens": 20}},
    )
    async with listening(model, keys=keys(tokens=150)) as served:
        seen = await asyncio.gather(*(served.post(body=BODY, key=ALICE) for _ in range(20)))
        spent = sum(reply["usage"]["total_tokens"] for status, reply, _ in seen if status == 200)
        one = max(reply["usage"]["total_tokens"] for status, reply, _ in seen if status == 200)
        assert {status for status, _, _ in seen} == {200, 429}
        assert spent <= 150 + one
        refused = next((reply, headers) for status, reply, headers in seen if status == 429)
        assert refused[0]["error"]["code"] == "quota_reserved" and refused[1]["Retry-After"]
        assert served.gateway.accounts.account("alice").spent["tokens"] == spent
        assert served.gateway.accounts.account("alice").reserved["tokens"] == 0


def test_days_are_kept_apart_and_spending_outlives_the_process(tmp_path, monkeypatch):
    file = tmp_path / "gateway" / "spent.json"
    alice = key("alice", ALICE, usd_per_day=1.0)
    accounts = Accounts(file)

    def spend(accounts, usd):
        hold = Hold()
        with accounts.hold(alice, None, None, hold):
            hold.spent = Usage(cost_usd=usd)

    spend(accounts, 0.6)
    spend(accounts, 0.6)
    with pytest.raises(ApiError, match="1 usd a day"):
        spend(accounts, 0.1)
    accounts.save()
    later = Accounts(file)
    with pytest.raises(ApiError):
        spend(later, 0.1)
    monkeypatch.setattr(time, "strftime", lambda *_: "2099-01-01")
    spend(later, 0.1)
    assert later.account("alice").spent["usd"] == pytest.approx(1.3)
    assert later.account("alice").today["usd"] == pytest.approx(0.1)
    assert ALICE not in file.read_text()


def test_a_request_that_nothing_bounds_reserves_what_is_left():
    accounts, alice = Accounts(), key("alice", ALICE, tokens=100)
    with accounts.hold(alice, None, None, Hold()), pytest.raises(ApiError) as caught:
        accounts.hold(alice, 10, None, Hold()).__enter__()
    assert caught.value.code == "quota_reserved"
    with accounts.hold(alice, 99, None, Hold()), accounts.hold(alice, 99, None, Hold()):
        pass  # one more may start while anything is left


# ---------------------------------------------------------------- room


async def test_room_and_queue_are_bounded_and_the_rest_are_told_to_come_again():
    engine = Recorded(latency_s=0.2)
    limits = {"concurrency": 2, "queue": 3}
    async with listening(passing("plain", engine), limits=limits) as served:
        seen = await asyncio.gather(*(served.post(body=BODY) for _ in range(9)))
        assert sorted(status for status, _, _ in seen) == [200] * 5 + [503] * 4
        refused = next((reply, headers) for status, reply, headers in seen if status == 503)
        assert refused[0]["error"]["code"] == "overloaded" and int(refused[1]["Retry-After"]) >= 1
        assert (await served.post(body=BODY))[0] == 200


async def test_who_waits_too_long_is_told_so():
    limits = {"concurrency": 1, "request_s": 0.1}
    async with listening(passing("plain", Recorded(latency_s=0.5)), limits=limits) as served:
        first = asyncio.create_task(served.post(body=BODY))
        await asyncio.sleep(0.05)
        status, told, _ = await served.post(body=BODY)
        assert status == 503 and "no room" in told["error"]["message"]
        await first


async def test_a_search_that_takes_too_long_ends_with_the_best_so_far():
    from abduce.orchestrator.gateway.served import _limited

    engine = Recorded(lambda request, seed: f"The answer is {seed}.", latency_s=0.1)
    model = recipe("vote", engine, "self_consistency", n=400, rule="exact")
    model = type(model)("vote", _limited(model.chat, 0.35), model.text)
    async with listening(model) as served:
        status, told, _ = await served.post(body={**BODY, "model": "vote"})
    assert status == 200 and told["abduce"]["complete"] is False
    assert "seconds" in told["abduce"]["stopped"] and told["choices"][0]["message"]["content"]
    assert told["choices"][0]["finish_reason"] == "length"


async def test_a_body_that_does_not_come_is_waited_for_so_long():
    async with listening(passing("plain", Recorded()), limits={"body_s": 0.1}) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        line = await asyncio.wait_for(reader.readline(), 5)
        assert b" 408 " in line
        writer.close()


# ---------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strategy", ["self_consistency", "particle_filter"])
async def test_the_search_stops_within_a_second_when_its_client_leaves(stream, strategy):
    engine = Recorded(
        "A thought.\n\nAnother.", latency_s=lambda request: 0.02 if len(engine.began) < 4 else 30
    )
    reward = {} if strategy == "self_consistency" else {"reward": "self_eval"}
    model = recipe("slow", engine, strategy, **reward)
    async with listening(model) as served:
        body = {**BODY, "model": "slow", "stream": stream, "n": 2}
        request = asyncio.create_task(served.session.post(served.url + "/v1/chat/completions", json=body))
        async with asyncio.timeout(20):
            while not (engine.running and len(engine.began) >= 4):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        left = time.perf_counter()
        request.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await request).close()
        await served.session.close()
        while engine.running or served.gateway.busy:
            assert time.perf_counter() - left < 1.0
            await asyncio.sleep(0.01)
        n_asked = len(engine.began)
        await asyncio.sleep(0.1)
        assert len(engine.began) == n_asked and engine.called_off
        assert 'status="499"} 1' in served.gateway.metrics.text({})


# ---------------------------------------------------------------- many at once


async def test_many_clients_at_once_all_get_their_answers_and_leave_no_task():
    engine = Recorded(lambda request, seed: f"The answer is {seed % 7}.", latency_s=0.002)
    model = recipe("vote", engine, "self_consistency", n=8)
    async with listening(model, limits={"concurrency": 64}) as served, served.client(max_retries=0) as client:
        before, end = len(asyncio.all_tasks()), time.perf_counter() + 3.0

        async def user(i):
            done = 0
            while time.perf_counter() < end:
                if i % 4:
                    reply = await client.chat.completions.create(model="vote", **ASKED)
                    assert reply.choices[0].message.content.startswith("The answer is")
                else:
                    stream = await client.chat.completions.create(model="vote", **ASKED, stream=True)
                    chunks = [chunk async for chunk in stream]
                    assert chunks[-1].choices[0].finish_reason == "stop"
                done += 1
            return done

        done = await asyncio.gather(*(user(i) for i in range(64)))
        assert min(done) >= 1
        assert served.gateway.busy == 0 and not served.gateway._searches and engine.running == 0
        _, text = await served.get("/metrics")
    assert f'abduce_request_seconds_count{{model="vote"}} {sum(done)}' in text
    await asyncio.sleep(0.1)
    assert len(asyncio.all_tasks()) <= before + 1


async def test_cutting_off_tells_every_client_why():
    async with listening(passing("plain", Recorded(latency_s=30))) as served:
        whole = asyncio.create_task(served.post(body=BODY))
        stream = asyncio.create_task(
            served.session.post(served.url + "/v1/chat/completions", json={**BODY, "stream": True})
        )
        await asyncio.sleep(0.3)
        assert served.gateway.busy == 2
        served.gateway.draining = True
        status, text = await served.get("/health")
        assert status == 503 and json.loads(text)["status"] == "draining"
        assert (await served.post(body=BODY))[0] == 503
        await served.gateway.cut_off()
        status, told, headers = await whole
        assert status == 503 and told["error"]["code"] == "shutting_down" and headers["Retry-After"]
        response = await stream
        assert '"shutting_down"' in await response.text()

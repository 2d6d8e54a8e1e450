"""A PostgreSQL server as a store: what is written is committed, who lost a run cannot write to it, no
password is ever shown. What holds for every store is in test_runs.py and test_journal.py."""

import asyncio
import builtins
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import postgres_server
import psycopg
import pytest
from flows import Echo
from langgraph.types import Command
from workflows import workflow

from abduce.orchestrator.cli import main
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Entry
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.orchestrator.store import postgres_link
from abduce.orchestrator.store.postgres import PostgresRows
from abduce.orchestrator.trace import Called
from abduce.serving.errors import AbduceError, JournalError, UsageError
from abduce.serving.flow import Completion, Generate, Prompt, Usage

CONFIRMED = """
pipeline:
  - solve: {strategy: chain_of_thought}
  - ask: {question: "Is {answer} right?", use: verdict}
"""
PASSWORDS = (postgres_server.PASSWORD, "s3cr%3At%2Fpass", "s3cr")
ENTRY = Entry((Completion("56", n_tokens=1),), Usage(calls=1), 0.5, 0.25)
ASK = Generate(Prompt.user("7 x 8 ="))
WORDS = {
    "strategy": "particle_filter",
    "particles": 4,
    "model": {"engine": "synthetic", "alphabet": "abcd", "depth": 4},
    "policy": {"preset": "cot", "answer_kind": "text"},
    "reward": "rate",
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def runs(database):
    return Runs(database)


@pytest.fixture
def admin(database):
    """Whoever looks after the server."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def hang_up(admin):
    """End every other connection, as a restart of the server would."""
    return admin.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ).fetchone()[0]


# ---------------------------------------------------------------- the tables


def test_the_tables_are_made_on_first_use_by_however_many_at_once(database, admin):
    def first():
        with postgres_link.connect(database) as connection:
            barrier.wait()
            postgres_link.migrate(connection)

    barrier = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        for made in [pool.submit(first) for _ in range(6)]:
            made.result()
    assert admin.execute("SELECT version FROM abduce_schema").fetchall() == [(len(postgres_link.MIGRATIONS),)]


def test_an_older_store_is_brought_up_to_date(database, runs, admin, monkeypatch):
    run = runs.create({"seed": 3})
    step = "ALTER TABLE abduce_runs ADD COLUMN note text"
    monkeypatch.setattr(postgres_link, "MIGRATIONS", (*postgres_link.MIGRATIONS, step))
    with postgres_link.connect(database) as connection:
        postgres_link.migrate(connection)
        postgres_link.migrate(connection)
    assert admin.execute("SELECT name, note FROM abduce_runs").fetchall() == [(run.id, None)]


def test_a_store_of_a_newer_version_is_refused(database, runs, admin):
    runs.create({})
    admin.execute("UPDATE abduce_schema SET version = 99")
    with postgres_link.connect(database) as connection, pytest.raises(UsageError, match=r"newer .*--upgrade"):
        postgres_link.migrate(connection)


# ---------------------------------------------------------------- the journal


async def test_replies_that_arrive_while_one_is_stored_share_a_transaction(runs, monkeypatch):
    batches: list[int] = []
    append = PostgresRows.append

    def counted(self, rows):
        batches.append(len(rows))
        time.sleep(0.02)
        append(self, rows)

    monkeypatch.setattr(PostgresRows, "append", counted)
    journal = runs.create({}).journal()
    await asyncio.gather(*(journal.append((0, i), ASK, ENTRY) for i in range(50)))
    assert batches == [50]
    first = asyncio.ensure_future(journal.append((1, 0), ASK, ENTRY))
    await asyncio.sleep(0.005)
    later = [asyncio.ensure_future(journal.append((2, i), ASK, ENTRY)) for i in range(20)]
    await asyncio.gather(first, *later)
    assert batches == [50, 1, 20]
    journal.close()


async def test_a_reply_is_committed_before_the_flow_sees_it(runs, admin):
    def flow():
        for i in range(3):
            yield [ASK, ASK]
            assert admin.execute("SELECT count(*) FROM abduce_replies").fetchone() == (2 * i + 2,)

    journal = runs.create({}).journal()
    await Driver(Services({"policy": Echo()}), journal=journal).run(flow())
    journal.close()


async def test_while_a_reply_is_stored_the_loop_goes_on(runs, monkeypatch):
    append = PostgresRows.append
    monkeypatch.setattr(PostgresRows, "append", lambda self, rows: (time.sleep(0.2), append(self, rows)))
    journal = runs.create({}).journal()
    storing = asyncio.ensure_future(journal.append((0, 0), ASK, ENTRY))
    turns = 0
    while not storing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20
    journal.close()


async def test_who_lost_a_run_writes_nothing_to_it(runs, admin):
    run = runs.create({})
    with pytest.raises(JournalError, match="another process took over"), run.held():
        journal = run.journal()
        await journal.append((0, 0), ASK, ENTRY)
        admin.execute(  # the lock's connection alone breaks, as one that is idle may
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        )
        with run.held():
            second = run.journal()
            await second.append((0, 1), ASK, ENTRY)
            second.close()
            try:
                await journal.append((0, 2), ASK, ENTRY)
            finally:
                journal.close()
    assert [reply.path for reply in run.replies()] == [(0, 0), (0, 1)]


async def test_a_journal_of_a_deleted_run_is_written_no_more(runs):
    run = runs.create({})
    journal = run.journal()
    runs.delete(run)
    with pytest.raises(JournalError, match=r"took over run .* or deleted it"):
        await journal.append((0, 0), ASK, ENTRY)
    journal.close()


def test_a_run_whose_server_goes_away_ends_and_goes_on_later(runs, admin):
    pipeline = build(**WORDS)
    whole = pipeline.solve("Which?", seed=1)
    left = iter(range(9))

    def watch(event):
        if isinstance(event, Called) and next(left, None) is None:
            hang_up(admin)

    with pytest.raises(AbduceError) as told:
        pipeline.solve("Which?", seed=1, store=runs, observers=[watch])
    assert "\n" not in str(told.value)
    run = runs.open("last")
    assert run.result is None
    stored = {reply.path for reply in run.replies()}
    assert len(stored) >= 9
    events: list[Called] = []
    again = pipeline.solve(
        "Which?", seed=1, run=run, observers=[lambda e: events.append(e) if isinstance(e, Called) else None]
    )
    assert again == whole
    assert {event.path for event in events if event.replayed} == stored


# ---------------------------------------------------------------- connections


def test_a_lost_connection_is_made_anew(runs, admin):
    run = runs.create({})
    for _ in range(2):
        hang_up(admin)
        assert runs.names() == [run.id]


def test_idle_connections_stay(database, admin):
    if admin.info.server_version < 140_000:
        pytest.skip("this server never ends an idle connection")
    admin.execute(f"ALTER DATABASE {admin.info.dbname} SET idle_session_timeout = '50ms'")
    try:
        with postgres_link.connect(database) as connection:
            time.sleep(0.2)
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET idle_session_timeout")


def test_a_forked_process_has_a_connection_of_its_own(runs):
    run = runs.create({"seed": 1})
    code = (
        "import os, sys\n"
        "from abduce.orchestrator.runs import Runs\n"
        "runs = Runs(sys.argv[1])\n"
        "mine = runs.names()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert runs.names() == mine\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert runs.names() == mine == [sys.argv[2]]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, runs.store.url, run.id], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


async def test_several_open_the_checkpoints_of_a_new_database_at_once(runs):
    async def one():
        async with runs.checkpointer() as saver:
            return [found async for found in saver.alist({"configurable": {"thread_id": "1"}})]

    assert await asyncio.gather(*(one() for _ in range(4))) == [[]] * 4


async def test_a_graph_of_the_users_is_interrupted_and_goes_on_in_another_connection(runs):
    config = {"configurable": {"thread_id": "1"}}
    async with runs.checkpointer() as saver:
        app = workflow(CONFIRMED).compile(store=runs, checkpointer=saver)
        first = await app.ainvoke({"question": "?"}, config)
        assert first["__interrupt__"][0].value["question"] == "Is 7 right?"
    async with runs.checkpointer() as saver:
        app = workflow(CONFIRMED).compile(store=runs, checkpointer=saver)
        state = await app.ainvoke(Command(resume="yes"), config)
    assert (state["answer"], state["verified"]) == ("7", True)
    [name] = runs.names()
    result = runs.open(name).result
    assert result is not None
    assert result["usage"]["calls"] == 1  # nothing was asked twice


async def test_a_server_that_goes_away_under_the_checkpoints_is_one_line(runs, admin):
    with pytest.raises(AbduceError, match="The store at postgresql://") as error:
        async with runs.checkpointer() as saver:
            hang_up(admin)
            await saver.aget_tuple({"configurable": {"thread_id": "1"}})
    told(error)


# ---------------------------------------------------------------- what is said


def as_user(url, user):
    """The URL of another user, with the same password."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:s3cr%3At%2Fpass@{parts.netloc.rpartition('@')[2]}").geturl()


def told(error):
    text = str(error.value)
    assert "\n" not in text
    assert not any(password in text for password in PASSWORDS)
    assert error.value.__cause__ is None  # a traceback would show the driver's own words
    return text


def test_a_server_that_is_not_there_is_one_line(postgres):
    port = postgres_server.free_port()
    with pytest.raises(UsageError, match="Is it running") as error:
        Runs(f"postgresql://ann:s3cr%3At%2Fpass@127.0.0.1:{port}/runs").names()
    assert f"postgresql://ann@127.0.0.1:{port}/runs" in told(error)


def test_a_wrong_password_is_one_line(postgres):
    with pytest.raises(UsageError, match="password authentication failed") as error:
        Runs(as_user(postgres, "nobody")).names()
    told(error)


@pytest.mark.parametrize(
    "url", ["postgresql://ann:s3cr:t/pass@host/db", "postgresql://ann:s3cr%3At%2Fpass@host/db?nonsense=1"]
)
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(UsageError, match="cannot be read") as error:
        Runs(url)
    told(error)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://ann:s3cr%3At%2Fpass@host/db", "postgresql://ann@host/db"),
        ("postgresql://ann@a:1,b:2/db?target_session_attrs=any", "postgresql://ann@a,b:1,2/db"),
        (
            "postgresql:///runs?host=/run/postgresql&password=s3cr%3At%2Fpass",
            "postgresql:///run/postgresql/runs",
        ),
    ],
)
def test_a_url_is_shown_without_what_nobody_should_see(url, shown):
    assert str(Runs(url)) == shown
    assert "s3cr" not in repr(Runs(url))


def test_a_database_that_may_not_be_written_is_one_line(database, admin):
    [schema] = admin.execute("SELECT current_schema()").fetchone()
    admin.execute("CREATE ROLE reader LOGIN PASSWORD 's3cr:t/pass'")
    admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO reader")
    try:
        with pytest.raises(AbduceError, match="permission denied") as error:
            Runs(as_user(database, "reader")).create({})
        told(error)
    finally:
        hang_up(admin)
        admin.execute("DROP OWNED BY reader")
        admin.execute("DROP ROLE reader")


def test_without_the_driver_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("psycopg"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'abduce\[postgres\]'"):
        Runs("postgresql://host/db")


def test_the_password_is_shown_nowhere(database, home, capsys, monkeypatch):
    monkeypatch.setenv("ABDUCE_STORE", database)
    words = ["--model", "synthetic", "--set", "policy.answer_kind=text", "--reward", "rate"]
    assert main(["solve", "Which?", *words]) in (0, 1)
    for command in (
        ["runs"],
        ["runs", "show", "last"],
        ["runs", "show", "last", "--replies"],
        ["runs", "fork", "last", "--at", "1", "--set", "redraw=1"],
        ["resume", "last"],
        ["trace", "show", "last"],
        ["doctor"],
    ):
        main(command)
    runs = Runs(database)
    assert len(runs.names()) == 2
    shown = "".join(capsys.readouterr()) + repr(runs) + str(runs) + repr(runs.open("last"))
    shown += str([runs.open(name).record for name in runs.names()])
    shown += "".join(file.read_text() for file in home.rglob("*") if file.is_file())
    assert shown.count(str(runs)) >= 2  # by `doctor`, too
    assert not any(password in shown for password in PASSWORDS)


def test_it_is_only_imported_when_it_is_used():
    code = "import abduce, sys; abduce.Runs('x').names(); assert 'psycopg' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ})

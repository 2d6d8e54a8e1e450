"""Synchronous doors: they work wherever they are called, and what goes wrong comes out."""

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from abduce.orchestrator.background import wait_for
from abduce.serving.errors import AbduceError, UsageError


async def where() -> tuple[str, int]:
    await asyncio.sleep(0.001)
    return threading.current_thread().name, id(asyncio.get_running_loop())


def test_all_work_runs_in_one_loop_of_its_own():
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda _: wait_for(where()), range(32)))
    assert places == {wait_for(where())}
    assert threading.current_thread().name not in next(iter(places))


async def test_it_works_inside_a_running_loop():
    assert wait_for(where()) != await where()


def test_calls_from_several_threads_run_at_once():
    at_once = threading.Barrier(4)

    async def meet() -> int:
        return await asyncio.to_thread(at_once.wait, 10)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda _: wait_for(meet()), range(4))) == [0, 1, 2, 3]


def test_errors_come_out_as_they_are():
    async def broken() -> None:
        raise LookupError("it is gone")

    with pytest.raises(LookupError, match="it is gone"):
        wait_for(broken())


def test_work_that_cancels_itself_is_no_interrupt():
    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(AbduceError, match="cancelled from within"):
        wait_for(cancelled())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_loop_of_its_own():
    script = (
        "import asyncio, os\n"
        "from abduce.orchestrator.background import wait_for\n"
        "wait_for(asyncio.sleep(0))\n"
        "child = os.fork()\n"
        "assert wait_for(asyncio.sleep(0, 56)) == 56\n"
        "if not child: os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout == "7\n", done.stderr


def test_waiting_inside_of_what_is_waited_for_is_an_error_and_no_deadlock():
    async def nested() -> None:
        wait_for(where())

    with pytest.raises(UsageError, match="Await asolve"):
        wait_for(nested())


def test_waiting_in_a_thread_of_what_is_waited_for_works():
    async def nested() -> tuple[str, int]:
        return await asyncio.to_thread(wait_for, where())

    assert wait_for(nested()) == wait_for(where())


def test_what_still_runs_at_the_end_of_the_program_closes_in_good_order():
    script = (
        "import asyncio\n"
        "from abduce.orchestrator.background import wait_for\n"
        "async def held():\n"
        "    try: await asyncio.get_running_loop().create_future()\n"
        "    finally: await asyncio.sleep(0.01); print('closed')\n"
        "async def start():\n"
        "    global kept; kept = asyncio.create_task(held()); await asyncio.sleep(0)\n"
        "wait_for(start())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.stdout, done.stderr) == ("closed\n", "")

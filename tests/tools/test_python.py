import asyncio
import time
from pathlib import Path

import pytest

from abduce.serving.errors import UsageError
from abduce.tools import load
from abduce.tools.python import ENDED, Limits, run_python


def ended(result):
    assert not result.ok
    last = result.text.rpartition("\n")[2]
    assert last.startswith(ENDED)
    return last


def test_what_is_printed_comes_back():
    assert run_python("print('é', 2 + 2)").text == "é 4\n"
    assert run_python("x = 1").text == "(nothing was printed)"


def test_a_fault_shows_the_end_of_its_traceback_without_our_frames():
    result = run_python("print('before')\ndef f():\n    return 1 / 0\nf()")
    assert ended(result) == f"{ENDED}exit code 1]"
    assert result.text.startswith("before\nTraceback")
    assert "ZeroDivisionError: division by zero" in result.text
    assert 'File "program.py", line 3, in f' in result.text
    assert "<string>" not in result.text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("x = 'a' * 10**10", "MemoryError"),
        ("import os; os.system('echo hi')", "os.system is not allowed"),
        ("import subprocess; subprocess.run(['ls'])", "subprocess.Popen is not allowed"),
        ("import os; os.fork()", "os.fork is not allowed"),
        ("import socket; socket.socket()", "socket.__new__ is not allowed"),
        ("import os; os.kill(1, 0)", "os.kill is not allowed"),
        ("open('/tmp/abduce-test-file', 'w')", "working folder"),
        ("import os; os.remove('../program.py')", "working folder"),
        ("import os; os.rename('/etc/hosts', 'hosts')", "working folder"),
        ("import shutil; shutil.rmtree('/tmp')", "working folder"),
        ("input()", "EOFError"),
    ],
)
def test_what_is_not_allowed_is_told(code, told):
    result = run_python(code)
    assert not result.ok
    assert told in result.text
    assert ended(result)


def test_time_is_limited():
    began = time.perf_counter()
    result = run_python("import time\nprint('started', flush=True)\ntime.sleep(60)", Limits(wall_s=0.5))
    assert time.perf_counter() - began < 5
    assert ended(result) == f"{ENDED}stopped after 0.5 s]"
    assert "started" in result.text


def test_computing_is_limited():
    assert "CPU" in ended(run_python("while True: pass", Limits(cpu_s=1, wall_s=20)))


def test_output_is_limited():
    result = run_python("print('a' * 50_000)", Limits(output_bytes=1000))
    assert result.ok
    assert len(result.text) < 1100
    assert "more bytes" in result.text
    assert not run_python("while True: print('a' * 10_000)", Limits(output_bytes=1000)).ok


def test_it_sees_an_empty_folder_and_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("ABDUCE_SECRET", "s3cret")
    code = "import os; print(os.listdir(), 'ABDUCE_SECRET' in os.environ, os.getcwd(), __name__)"
    listing, secret, folder, name = run_python(code).text.split()
    assert (listing, secret, name) == ("[]", "False", "__main__")
    assert not Path(folder).exists()


def test_it_may_use_files_of_its_own():
    code = (
        "import os, tempfile\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    with open(os.path.join(d, 'x'), 'w') as f: f.write('1')\n"
        "os.mkdir('a'); os.rename('a', 'b'); os.rmdir('b')\n"
        "print(os.listdir())"
    )
    assert run_python(code).text == "[]\n"


async def test_the_tool():
    python = load("python")
    assert (await python.call({"code": "print(7 * 8)"})).text == "56\n"
    assert not (await python.call({"code": "1 / 0"})).ok


async def test_a_cancelled_run_is_killed_at_once():
    began = time.perf_counter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(load("python").call({"code": "while True: pass"}), 0.3)
    assert time.perf_counter() - began < 3


async def test_runs_do_not_wait_for_each_other():
    python = load("python")
    began = time.perf_counter()
    await asyncio.gather(*(python.call({"code": "import time; time.sleep(1)"}) for _ in range(4)))
    assert time.perf_counter() - began < 3.9


@pytest.mark.parametrize("settings", [{"wall_s": 0}, {"memory_bytes": 1}, {"output_bytes": 0}])
def test_senseless_limits_are_refused(settings):
    with pytest.raises(UsageError):
        Limits(**settings)

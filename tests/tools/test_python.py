import asyncio
import time
from pathlib import Path

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import CallTool
from abduce.tools import load, python, toolbox
from abduce.tools.python import ENDED, Limits, Python, run_python
from abduce.tools.sandbox import Sandbox, SandboxRefused


@pytest.fixture(params=["isolated", "unsafe"], autouse=True)
def walls(request, monkeypatch):
    """Everything here is seen by an honest program with walls and without."""
    monkeypatch.setenv("ABDUCE_SANDBOX", request.param)
    try:
        Sandbox(unsafe=request.param == "unsafe").isolation  # noqa: B018
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))
    return request.param


def ended(result):
    assert not result.ok
    last = result.text.rpartition("\n")[2]
    assert last.startswith(ENDED)
    return last


def tool(**settings):
    return load("python", **settings)


def test_what_is_printed_comes_back():
    assert run_python("print('é', 2 + 2)").text == "é 4\n"
    assert run_python("x = 1").text == "(nothing was printed)"


def test_a_fault_shows_the_end_of_its_traceback_without_our_frames():
    result = run_python("print('before')\ndef f():\n    return 1 / 0\nf()")
    assert ended(result) == f"{ENDED}exit code 1]"
    assert result.text.startswith("before\nTraceback")
    assert "ZeroDivisionError: division by zero" in result.text
    assert 'File "program.py", line 3, in f' in result.text
    assert "interpreter.py" not in result.text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("x = 'a' * 10**10", "MemoryError"),
        ("input()", "EOFError"),
        ("import os; os._exit(4)", "python: "),
    ],
)
def test_what_went_wrong_is_told(code, told):
    assert told in run_python(code).text
    assert ended(run_python(code))


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess; subprocess.run(['ls'])",
        "import os; os.fork()",
        "import socket; socket.socket()",
        "import os; os.kill(1, 0)",
        "import os; os.remove('../program.py')",
        "import os; os.rename('/etc/hosts', 'hosts')",
        "import os; os.mkdir('/usr/lib/mine')",
        "import shutil; shutil.rmtree('/usr')",
    ],
)
def test_what_is_not_allowed_fails(code):
    assert ended(run_python(code)) == f"{ENDED}exit code 1]"


def test_time_is_limited():
    began = time.perf_counter()
    result = run_python("import time\nprint('started', flush=True)\ntime.sleep(60)", Limits(wall_s=0.5))
    assert time.perf_counter() - began < 5
    assert ended(result) == f"{ENDED}stopped after 0.5 s]"
    assert "started" in result.text


ISOLATED = pytest.mark.parametrize("walls", ["isolated"], indirect=True)  # once is enough


@ISOLATED
def test_computing_is_limited():
    assert "CPU" in ended(run_python("while True: pass", Limits(cpu_s=1, wall_s=20)))


def test_output_is_limited():
    result = run_python("print('a' * 50_000)", Limits(output_bytes=1000))
    assert result.ok
    assert len(result.text) < 1100
    assert "more bytes" in result.text
    assert "100000 bytes" in ended(run_python("while True: print('a' * 10_000)", Limits(output_bytes=1000)))


def test_it_sees_an_empty_folder_and_environment_of_its_own(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "s3cret")
    code = "import os; print(os.listdir(), 'MY_SECRET' in os.environ, os.getcwd(), __name__)"
    listing, secret, folder, name = run_python(code).text.split()
    assert (listing, secret, name) == ("[]", "False", "__main__")
    assert not Path(folder).exists()


def test_it_may_use_files_of_its_own():
    code = (
        "import os, shutil, tempfile\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    with open(os.path.join(d, 'x'), 'w') as f: f.write('1')\n"
        "    shutil.copy2(os.path.join(d, 'x'), os.path.join(d, 'y'))\n"
        "os.mkdir('a'); os.rename('a', 'b'); os.rmdir('b')\n"
        "print(os.listdir())"
    )
    assert run_python(code).text == "[]\n"


def test_senseless_limits_are_refused():
    for settings in ({"wall_s": 0}, {"memory_bytes": 1}, {"output_bytes": 0}):
        with pytest.raises(UsageError):
            Limits(**settings)


# ---------------------------------------------------------------- the tool


async def test_the_tool():
    assert (await tool().call({"code": "print(7 * 8)"})).text == "56\n"
    assert not (await tool().call({"code": "1 / 0"})).ok


async def test_a_branch_is_named_by_what_it_has_run():
    it = tool()
    await it.call({"code": "x = 6"})
    call = CallTool("python", {"code": "print(x * 7)", "after": ["x = 6"]})
    assert (await it.call(call.arguments)).text == "42\n"
    assert (await tool().call(call.arguments)).text == "42\n"  # by another, which has only the call


def test_the_model_is_not_told_of_branches():
    assert list(tool().parameters["properties"]) == ["code"]
    assert tool().effect == "pure"


async def test_a_cancelled_run_is_killed_at_once():
    it = tool()
    began = time.perf_counter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(it.call({"code": "while True: pass"}), 0.3)
    assert time.perf_counter() - began < 3
    assert (await it.call({"code": "print(1)"})).ok


@ISOLATED
async def test_runs_do_not_wait_for_each_other():
    it = tool()
    began = time.perf_counter()
    await asyncio.gather(*(it.call({"code": "import time; time.sleep(0.6)"}) for _ in range(4)))
    assert time.perf_counter() - began < 2.3


async def test_its_settings():
    result = await tool(seconds=0.4, memory_mb=256).call({"code": "while True: pass"})
    assert ended(result) == f"{ENDED}stopped after 0.4 s]"
    assert "MemoryError" in (await tool(memory_mb=256).call({"code": "x = bytes(1 << 28)"})).text
    assert list(toolbox([{"name": "python", "sandbox": "unsafe"}])) == ["python"]


@pytest.mark.parametrize(
    "settings", [{"sandbox": "off"}, {"seconds": 0}, {"memory_mb": 1}, {"colour": "red"}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(UsageError):
        load("python", **settings)


# ---------------------------------------------------------------- with walls or not at all


async def test_without_walls_no_program_is_run(monkeypatch, caplog):
    monkeypatch.delenv("ABDUCE_SANDBOX")
    monkeypatch.setattr(python.Sandbox, "start", _refused)
    monkeypatch.setattr(python, "_said", set())
    result = await tool().call({"code": "print(1)"})
    assert not result.ok
    assert result.text.startswith(
        "No program is run: Programs cannot be isolated here: no namespaces. What would allow it: this."
    )
    await tool().call({"code": "print(2)"})
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # the user is told too, once
    with pytest.raises(SandboxRefused):
        run_python("print(1)")


def _refused(sandbox):
    raise SandboxRefused("no namespaces", "this")


def test_only_a_word_that_is_known_turns_them_off(monkeypatch):
    monkeypatch.setenv("ABDUCE_SANDBOX", "off")
    with pytest.raises(UsageError, match="ABDUCE_SANDBOX is unsafe or isolated, not 'off'"):
        run_python("print(1)")
    assert run_python("print(1)", sandbox="unsafe").ok  # said by the caller, it is not asked for


def test_a_recipe_says_it_for_itself(monkeypatch):
    monkeypatch.setattr(python.Sandbox, "start", lambda self: pytest.fail(f"{self._unsafe}"))
    for choice, unsafe in (("isolated", "False"), ("unsafe", "True")):
        with pytest.raises(pytest.fail.Exception, match=unsafe):
            run_python("", sandbox=choice)
    assert Python(sandbox="unsafe").limits == Limits()

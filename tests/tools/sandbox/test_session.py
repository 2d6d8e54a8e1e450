import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from abduce.serving.errors import UsageError
from abduce.tools.sandbox import ENDED, Limits, NoRoom, Sandbox, SandboxRefused, SessionLost, host, walls


@pytest.fixture(params=["isolated", "unsafe"])
def anywhere(request):
    """A sandbox with walls and one without: what an honest program sees is the same."""
    if request.param == "unsafe":
        return Sandbox(unsafe=True)
    return request.getfixturevalue("sandbox")


@pytest.fixture
def session(anywhere):
    with anywhere.start() as made:
        yield made


def test_variables_stay_from_program_to_program(session):
    assert session.run("x = 6\nimport math\ndef f(n): return n * x").text == "(nothing was printed)"
    assert session.run("print(f(7), math.floor(2.5), __name__)").text == "42 2 __main__\n"


def test_a_fault_leaves_what_came_before_it(session):
    assert not session.run("y = 1\n1 / 0").ok
    assert session.run("print(y)").text == "1\n"


def test_a_traceback_shows_the_lines_of_the_program_it_is_of(session):
    session.run("def f():\n    return 1 / 0  # here")
    said = session.run("f()").text
    assert 'File "program-2.py", line 1, in <module>\n    f()' in said
    assert 'File "program.py", line 2, in f\n    return 1 / 0  # here' in said


def test_a_branch_inherits_and_is_alone_from_then_on(session):
    session.run("x = [1]\nopen('f', 'w').write('mine')")
    left, right = session.fork(), session.fork()
    with left, right:
        left.run("x.append('left'); open('f', 'w').write('left'); open('g', 'w').close()")
        right.run("x.append('right')")
        look = (
            "import os\nprint(x, open('f').read(), sorted(os.listdir()), os.getcwd() == os.environ['HOME'])"
        )
        assert left.run(look).text == "[1, 'left'] left ['f', 'g'] True\n"
        assert right.run(look).text == "[1, 'right'] mine ['f'] True\n"
        assert session.run(look).text == "[1] mine ['f'] True\n"


def test_branches_of_branches(session):
    session.run("depth = 0")
    line = [session]
    for _ in range(8):
        line.append(line[-1].fork())
        line[-1].run("depth += 1")
    session.run("depth = 100")
    assert [each.run("print(depth)").text for each in line] == [f"{n}\n" for n in (100, *range(1, 9))]
    for each in line[:-1]:
        each.close()
    with line[-1].fork() as last:  # the others' end is not its own
        assert last.run("print(depth)").text == "8\n"
    line[-1].close()


def test_branches_do_not_run_anything_again(session):
    session.run("import time\nbegan = time.monotonic()")
    with session.fork() as branch:
        assert branch.run("print(began)").text == session.run("print(began)").text


def test_chance_is_the_same_for_all_branches_and_all_sessions(anywhere, session):
    program = "import random\nprint(random.random(), {'a', 'b', 'c', 'd'})"
    with session.fork() as branch, anywhere.start() as other:
        assert branch.run(program).text == session.run(program).text == other.run(program).text


def test_programs_of_several_sessions_run_at_the_same_time(anywhere):
    sessions = [anywhere.start() for _ in range(4)]
    threads = [threading.Thread(target=each.run, args=("import time; time.sleep(0.6)",)) for each in sessions]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 2.0
    for each in sessions:
        each.close()


def test_a_thread_that_is_left_behind_stands_still(session):
    session.run(
        "import threading, time\nn = 0\ndef count():\n    global n\n"
        "    while True: n += 1; time.sleep(0.001)\n"
        "threading.Thread(target=count, daemon=True).start()"
    )
    before = int(session.run("print(n)").text)
    time.sleep(0.5)
    assert int(session.run("print(n)").text) < before + 100


def test_a_program_ends_with_its_threads(session):
    program = (
        "import threading, time\n"
        "def say():\n    time.sleep(0.1); print('late')\n"
        "threading.Thread(target=say).start()"
    )
    assert session.run(program).text == "late\n"


def test_the_end_takes_the_session_with_it(session):
    with session.fork() as branch:
        ended = session.run("while True: pass", timeout_s=0.3)
        assert ended.text == f"{ENDED}stopped after 0.3 s]"
        assert session.lost
        assert not session.run("print(1)").ok
        with pytest.raises(SessionLost):
            session.fork()
        assert branch.run("print(1)").text == "1\n"


def test_it_is_killed_from_another_thread_at_once(session):
    timer = threading.Timer(0.2, session.kill, ["enough"])
    timer.start()
    began = time.monotonic()
    assert session.run("import time; time.sleep(5)").text == f"{ENDED}enough]"
    assert time.monotonic() - began < 3


def test_closing_twice_is_closing(session):
    session.close()
    session.close()
    assert session.lost


def test_leaving_well_is_well_even_by_the_back_door(session):
    assert session.run("import os; print('done', flush=True); os._exit(0)").text == "done\n"
    assert session.lost


def test_a_program_that_is_too_long_is_told_so(session):
    result = session.run("#" * (1 << 21))
    assert not result.ok
    assert "characters" in result.text
    assert session.run("print(1)").ok


@pytest.mark.parametrize("code", ["x = '\ud800'", "\0", "print('\ud800')", "raise SystemExit('\ud800')"])
def test_odd_texts(session, code):
    assert session.run(code).text
    assert session.run("print(1)").text == "1\n"


def test_numpy_if_it_is_here(session):
    numpy = pytest.importorskip("numpy")
    if not any(numpy.__file__.startswith(folder) for folder in walls.packages()):
        pytest.skip("numpy is not among the packages of this environment")
    assert session.run("import numpy; print(numpy.arange(4).sum())").text == "6\n"


# ---------------------------------------------------------------- forks that go wrong

BAD_FORKS = {
    "says it is the child": "os.fork = lambda: 0",
    "does not fork": "os.fork = lambda: 1",
    "ends": "os.fork = lambda: os._exit(0)",
    "forks twice": "real = os.fork\nos.fork = lambda: real() or real()",
}


@pytest.mark.parametrize("code", BAD_FORKS.values(), ids=BAD_FORKS)
def test_a_fork_that_was_not_ordered_ends_the_family(sandbox, monkeypatch, code):
    monkeypatch.setattr("abduce.tools.sandbox.session._FORK_S", 0.5)
    with sandbox.start() as session, session.fork() as sibling:
        space = space_of(f"/proc/{session._process.pid}")
        session.run(f"import os\n{code}")
        try:
            session.fork()
        except SessionLost:
            assert not sibling.run("print(1)").ok
        assert sum(space_of(path) == space for path in Path("/proc").glob("[0-9]*")) <= 4  # keeper, and three


def space_of(process):
    try:
        return str(Path(process, "ns/pid").readlink())
    except OSError:
        return ""


def test_what_is_not_shared_with_siblings(sandbox):
    with sandbox.start() as session:
        session.run("open('mine', 'w').write('x')\nimport os\nprint(os.getcwd())")
        with session.fork() as branch:
            assert not branch.run(f"import os; os.kill({session._process.pid}, 9)").ok
        assert session.run("print(1)").ok


# ---------------------------------------------------------------- the walls


def test_programs_are_nobody_in_namespaces_of_their_own(sandbox):
    with sandbox.start() as session:
        pid = session._process.pid
        for name in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
            inside, outside = (Path(f"/proc/{who}/ns/{name}").readlink() for who in (pid, "self"))
            assert inside != outside, name
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        if os.geteuid() == 0:
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Groups"].strip() in ("", "65534")
        seen = session.run("import os; print(sorted(os.environ), sorted(os.listdir('/dev')))").text
        assert "HOME" in seen and "USER" not in seen and "tty" not in seen


def test_all_goes_with_the_host(sandbox):
    """A host that is killed has no time to say goodbye."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        session = Sandbox().start()
        os.write(writer, str(session._process.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(writer)
    pid = int(os.read(reader, 20))
    os.close(reader)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_walls_nothing_is_run_and_the_way_out_is_told(monkeypatch):
    host.isolation.cache_clear()
    monkeypatch.setattr(host, "begin", _fails)
    try:
        with pytest.raises(SandboxRefused, match=r"cannot be isolated here: unshare.*ABDUCE_SANDBOX=unsafe"):
            Sandbox().start()
        assert issubclass(SandboxRefused, UsageError)
    finally:
        monkeypatch.undo()
        host.isolation.cache_clear()


def _fails(limits, kind):
    raise SessionLost("unshare: Operation not permitted")


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_told_why(monkeypatch, system):
    monkeypatch.setattr("sys.platform", system)
    assert "Linux" in walls.supported()


def test_bubblewrap_builds_the_same_walls(sandbox):
    if walls.bubblewrap(1 << 20) is None:
        pytest.skip("bubblewrap is not installed")
    with host.begin(Limits(), "bubblewrap") as session:
        session.run("x = 6")
        with session.fork() as branch:
            assert branch.run("print(x * 7)").text == "42\n"
        for code in (
            "import os; os.fork()",
            "open('/etc/passwd')",
            "import socket; socket.socket()",
            "open('/x', 'w')",
        ):
            assert not session.run(code).ok
        status = Path(f"/proc/{session._process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000" in status and "Seccomp:\t2" in status


@pytest.mark.parametrize("settings", [{"files_bytes": 1}, {"threads": 0}])
def test_senseless_limits_are_refused(settings):
    with pytest.raises(UsageError):
        Limits(**settings)


def test_a_sibling_that_forks_like_mad_is_not_let_through_for_another(sandbox):
    with sandbox.start() as session, session.fork() as sibling:
        mad = (
            "import os, time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end:\n"
            "    try: os.fork()\n    except OSError: pass"
        )
        thread = threading.Thread(target=sibling.run, args=(mad,))
        thread.start()
        for _ in range(12):
            session.fork().close()
        thread.join()
        assert sibling.run("print(1)").text == "1\n"


def test_root_gives_branches_folders_that_others_cannot_find(sandbox):
    if os.geteuid() != 0:
        pytest.skip("without root all branches are one user, and the folder above theirs is their own")
    with sandbox.start() as session:
        assert "Permission denied" in session.run("import os; os.listdir('/tmp')").text


@pytest.mark.usefixtures("sandbox")
def test_the_page_tells_the_truth(capsys):
    """Its blocks are not among those that every machine can run."""
    page = (Path(__file__).parents[3] / "docs/sandbox.md").read_text()
    for block in re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(block, {})
        assert capsys.readouterr().out.split() == re.findall(r"print\(.*\)  # (.+)", block)


def test_what_there_is_no_room_for_costs_no_other_branch(sandbox):
    with Sandbox(Limits(files_bytes=1 << 20, threads=8)).start() as session:
        session.run("x = 1\nopen('f', 'wb').write(bytes(600_000))")
        with pytest.raises(NoRoom, match="folder"):
            session.fork()
        session.run("import os; os.remove('f')")
        branches = [session.fork() for _ in range(3)]
        with pytest.raises(NoRoom, match="4 branches at once"):
            session.fork()
        for each in (session, *branches):
            assert each.run("print(x)").text == "1\n"
            each.close()


def test_a_branch_without_room_may_have_ended_before_it_is_looked_at(sandbox, monkeypatch):
    def ended(pid):
        raise ProcessLookupError(pid)

    with Sandbox(Limits(files_bytes=1 << 20, threads=8)).start() as session:
        session.run("x = 1\nopen('f', 'wb').write(bytes(600_000))")
        with monkeypatch.context() as patched:
            patched.setattr("abduce.tools.sandbox.session.Process", ended)
            with pytest.raises(NoRoom, match="folder"):
                session.fork()
        assert session.run("print(x)").text == "1\n"


def test_a_first_word_that_never_ends_is_not_waited_for(sandbox, monkeypatch):
    monkeypatch.setattr("abduce.tools.sandbox.session._FORK_S", 0.5)
    slow = (
        "import os, time\nreal = os.fork\ndef fork():\n    pid = real()\n    if pid: return pid\n"
        "    for _ in range(40):\n        for fd in range(3, 20):\n"
        "            try: os.write(fd, b'[')\n            except OSError: pass\n        time.sleep(0.1)\n"
        "os.fork = fork"
    )
    with sandbox.start() as session:
        session.run(slow)
        began = time.monotonic()
        with pytest.raises(SessionLost):
            session.fork()
        assert time.monotonic() - began < 2

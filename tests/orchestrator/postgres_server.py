"""A PostgreSQL server for the tests: private, in a folder of its own, gone with them."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

from abduce.serving.scratch import Scratch

PASSWORD = "s3cr:t/pass"
_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin")


@contextmanager
def found(*, durable: bool = False, programs: Path | None = None) -> Iterator[str | None]:
    """The URL of the server named in the environment, else of a private one; None if there can be none.

    Unless it is `durable` nobody cares whether it survives a power failure. `programs`: the folder of those
    to be used.
    """
    if url := os.environ.get("ABDUCE_TEST_POSTGRES"):
        yield url
    elif (programs := programs or _programs()) is not None:
        with Scratch() as folder:  # a server that a kill left behind ends when it misses its folder
            folder.chmod(0o711)  # pytest's own is closed to other users
            with _server(folder, programs, durable) as url:
                yield url
    else:
        yield None


@contextmanager
def place(url: str, name: str) -> Iterator[str]:
    """An empty place in the database, by a URL of its own: a schema, since making a database takes long."""
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")
        server.execute(f"CREATE SCHEMA {name}")
    yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"
    with psycopg.connect(url, autocommit=True) as server:  # the test may have ended all connections
        server.execute(f"DROP SCHEMA {name} CASCADE")


def free_port() -> int:
    """A port of this machine that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`; the newest, if there are several."""
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    folders = [folder for place in _PLACES for folder in Path("/").glob(place.lstrip("/"))]
    able = [folder for folder in folders if (folder / "initdb").exists()]
    return max(able, key=lambda folder: (len(str(folder)), folder), default=None)


@contextmanager
def _server(folder: Path, programs: Path, durable: bool) -> Iterator[str]:
    port, home = free_port(), folder / "postgres"
    data, password = home / "data", home / "password"
    home.mkdir()
    password.write_text(f"{PASSWORD}\n")
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for place in (home, password):
            os.chown(place, nobody.pw_uid, nobody.pw_gid)

    def run(program: str, *words: str) -> None:
        command = [str(programs / program), "-D", str(data), *words]
        done = subprocess.run(
            command, cwd=home, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **user
        )
        assert done.returncode == 0, f"{program} failed"

    run(
        "initdb",
        "-U",
        "abduce",
        f"--pwfile={password}",
        "-A",
        "scram-sha-256",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    )
    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories=''"
    options += "" if durable else " -c fsync=off"
    run("pg_ctl", "start", "-w", "-l", str(home / "log"), "-o", options)
    try:
        yield f"postgresql://abduce:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "stop", "-m", "immediate")

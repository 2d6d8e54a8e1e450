import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import postgres_server

for variable in ("ABDUCE_STORE", "ABDUCE_KEEP"):  # a developer's own runs are none of the tests' business
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, that of ABDUCE_TEST_POSTGRES or a private one; tests that need it skip
    where PostgreSQL is not installed."""
    with postgres_server.found() as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        yield url


_places = count()


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """The URL of a place of its own in a PostgreSQL server."""
    with postgres_server.place(postgres, f"abduce_test_{os.getpid()}_{next(_places)}") as url:
        yield url

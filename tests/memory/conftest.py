import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "orchestrator"))
sys.path.insert(0, str(Path(__file__).parent))

import postgres_server


@pytest.fixture(scope="session")
def pgvector() -> Iterator[str]:
    """The URL of a PostgreSQL server with pgvector, that of the wheel `pgserver` where it is installed."""
    spec = find_spec("pgserver")
    programs = Path(str(spec.origin)).parent / "pginstall" / "bin" if spec else None
    with postgres_server.found(programs=programs) as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed: pip install pgserver, or apt-get install postgresql")
        yield url


_places = count()


@pytest.fixture
def database(pgvector: str) -> Iterator[str]:
    """The URL of a place of its own in the server."""
    with postgres_server.place(pgvector, f"abduce_memory_{os.getpid()}_{next(_places)}") as url:
        yield url

import asyncio
from collections.abc import Iterator

import pytest

from abduce.serving import weights
from abduce.serving.embedded import Embedded
from abduce.serving.errors import UsageError


@pytest.fixture(scope="session")
def small_model() -> str:
    """The path of the small model, from the cache or fetched; tests that need it skip without it."""
    try:
        return str(weights.fetch_default())
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def embedded(small_model: str) -> Iterator[Embedded]:
    """One engine for the whole session, so that the model loads once."""
    engine = Embedded(small_model, slots=8, context=1024, threads=1)
    yield engine
    asyncio.run(engine.close())

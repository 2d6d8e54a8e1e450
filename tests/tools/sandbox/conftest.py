import pytest

from abduce.tools.sandbox import Limits, Sandbox, SandboxRefused


@pytest.fixture(scope="session")
def sandbox() -> Sandbox:
    """One that isolates; what needs it is skipped, with the reason, where none can be had."""
    found = Sandbox(Limits(wall_s=5.0))
    try:
        found.isolation  # noqa: B018
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))
    return found

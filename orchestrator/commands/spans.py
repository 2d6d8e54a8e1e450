"""`--otel`: what a command does is sent to an OpenTelemetry collector."""

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...serving import settings
from ...serving.errors import MissingExtra

if TYPE_CHECKING:
    from ..telemetry import OpenTelemetry


@contextmanager
def spans(chosen: argparse.Namespace) -> "Iterator[OpenTelemetry | None]":
    """The observer, if the options or the environment ask for one; at the end all is sent."""
    telemetry = _telemetry(chosen)
    if telemetry is None:
        yield None
        return
    said = logging.StreamHandler(sys.stderr)
    said.setFormatter(logging.Formatter("abduce: %(message)s"))
    log = logging.getLogger(type(telemetry).__module__.rpartition(".")[0])
    log.addHandler(said)
    try:
        with telemetry:
            yield telemetry
    finally:
        log.removeHandler(said)


def _telemetry(chosen: argparse.Namespace) -> "OpenTelemetry | None":
    """Raises MissingExtra where an option asks for it. What only the environment asks for may be meant for
    other programs: then it is said that there are none."""
    content = getattr(chosen, "otel_content", False)
    asked = content or getattr(chosen, "otel", False)
    if not asked and not settings.otel():
        return None
    from ..telemetry import OpenTelemetry

    try:
        return OpenTelemetry(content=True if content else None)
    except MissingExtra as error:
        if asked:
            raise
        told = f"abduce: no spans are sent, though the environment names a collector. {error}"
        print(told, file=sys.stderr)
        return None

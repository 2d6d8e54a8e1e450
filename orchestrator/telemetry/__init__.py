"""Runs as OpenTelemetry spans: `observer.py` makes them, `attributes.py` says what they hold, `sending.py`
where they go."""

from .observer import OpenTelemetry

__all__ = ["OpenTelemetry"]

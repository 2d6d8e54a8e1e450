"""Counters in the text format of Prometheus, version 0.0.4: three families of our own need no library."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping

from ...serving.flow import Usage

_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """What happened since the start. Keys appear by their names, never as themselves."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, int], int] = defaultdict(int)
        self._spent: dict[tuple[str, str], Usage] = defaultdict(Usage)
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS_S) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def answered(self, model: str, key: str, status: int, seconds: float, spent: Usage) -> None:
        """Count a request that ended; 499 is one whose client left."""
        self._requests[model, key, status] += 1
        self._spent[model, key] += spent
        self._buckets[model][bisect_left(_BOUNDS_S, seconds)] += 1
        self._seconds[model] += seconds

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it; `gauges` are what is true right now."""
        lines = [line for name, value in gauges.items() for line in _family(name, "gauge", [({}, value)])]
        lines += _family(
            "abduce_requests_total",
            "counter",
            (({"model": m, "key": k, "status": str(s)}, n) for (m, k, s), n in self._requests.items()),
        )
        for name in (
            "input_tokens",
            "cached_tokens",
            "output_tokens",
            "calls",
            "reward_passes",
            "tool_calls",
        ):
            lines += _family(
                f"abduce_{name}_total",
                "counter",
                (({"model": m, "key": k}, getattr(u, name)) for (m, k), u in self._spent.items()),
            )
        lines += _family(
            "abduce_cost_usd_total",
            "counter",
            (({"model": m, "key": k}, u.cost_usd) for (m, k), u in self._spent.items()),
        )
        return "\n".join([*lines, *self._histogram(), ""])

    def _histogram(self) -> Iterable[str]:
        name = "abduce_request_seconds"
        yield f"# TYPE {name} histogram"
        for model, buckets in self._buckets.items():
            total = 0
            for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), buckets, strict=True):
                total += count
                yield _line(f"{name}_bucket", {"model": model, "le": bound}, total)
            yield _line(f"{name}_sum", {"model": model}, self._seconds[model])
            yield _line(f"{name}_count", {"model": model}, total)


def _family(name: str, kind: str, rows: Iterable[tuple[Mapping[str, str], float]]) -> list[str]:
    return [f"# TYPE {name} {kind}", *(_line(name, labels, value) for labels, value in rows)]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {value!r}" if told else f"{name} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""An observer that makes spans of what happens in runs.

    run ─► visit of a node (recipes of several steps) ─► branch of a fork ─► call, note

    with OpenTelemetry() as telemetry:
        abduce.solve("7 x 8 =", observers=[telemetry])

Calls and notes are spans once they are over; visits and branches stay open until the run has gone past them.
Events don't say of which run they are. The context does (`contextvars`): whatever a run does, it does in the
context of the task that it was started in, or in copies of it. So one observer serves all runs of a program.
"""

import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING

from ... import __version__
from ...serving import redact, settings
from ..trace import Called, Event, Exhausted, NodeEnded, NodeStarted, Noted, Path, RunEnded, RunStarted
from . import attributes
from .attributes import Attributes, Served
from .sending import Sending

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = redact.guard(logging.getLogger(__name__))


class OpenTelemetry:
    """Give it to any run as an observer.

    Spans go to `provider`, else to the tracer provider that the program has set, else over HTTP (OTLP) to
    the collector at `endpoint`, with `headers`; by default what OTEL_EXPORTER_OTLP_ENDPOINT and the like say,
    else port 4318 of this machine. `content` puts prompts, completions, arguments and results into them, by
    default where OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT is true; secrets are left out of all
    (`serving/redact.py`). A run's span is a child of the span that is current where the run is started.

    Raises MissingExtra without the packages, UsageError for an endpoint that is no address.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        content: bool | None = None,
        provider: "TracerProvider | None" = None,
    ) -> None:
        settings.register_secrets()
        self._content = settings.otel_content() if content is None else content
        self._sending = Sending.to(provider, endpoint, headers)
        self._tracer = self._sending.provider.get_tracer("abduce", __version__)
        self._current: ContextVar[_Run | None] = ContextVar("run", default=None)
        self._open: weakref.WeakSet[_Run] = weakref.WeakSet()  # or lately ended
        self._end = weakref.finalize(self, self._sending.end)  # at the program's end, if not before

    def __call__(self, event: Event) -> None:
        """Make what can be made of one event. Never raises: a run must not fail of what watches it."""
        try:
            if type(event) is RunStarted:
                self._begin(event)
            elif (run := self._current.get()) is not None:
                run(event)
                if type(event) is RunEnded:
                    self._current.set(run.outer)
        except Exception:
            log.exception("No span could be made of an event of kind %s", event.kind)

    def broke_off(self, error: BaseException) -> None:
        """The run that goes on here ends without a result. Told by the run's session."""
        if (run := self._current.get()) is not None:
            self._current.set(run.outer)
            run.break_off(error)

    @contextmanager
    def called_by(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Runs started in the block belong to the trace that a request's headers name, if they name one."""
        from opentelemetry.context import attach, detach
        from opentelemetry.propagate import extract

        token = attach(extract(headers))
        try:
            yield
        finally:
            detach(token)

    def flush(self) -> None:
        """Send what is over; returns once it is sent, or given up."""
        self._sending.flush()

    def close(self, error: BaseException | None = None) -> None:
        """End the spans of runs that have not ended, and send everything. What follows makes no spans."""
        for run in list(self._open):
            run.break_off(error)
        self._end()

    def __enter__(self) -> "OpenTelemetry":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    def _begin(self, event: RunStarted) -> None:
        run = _Run(self._tracer, event, self._content, self._current.get())
        self._current.set(run)
        self._open.add(run)


@dataclass(eq=False, slots=True)
class _Part:
    """A run, a visit of a node or a branch: what has a flow of its own. Times are in nanoseconds."""

    span: "Span"
    context: "Context"  # of the spans in it
    began: int
    last: int  # when something last ended in it
    turn: int = -1  # batch of the flow
    turn_began: int = 0
    score: float | None = None
    n_input: int = 0
    n_output: int = 0
    branches: "list[tuple[Path, _Part]]" = field(default_factory=list)  # of the current batch

    def took(self, score: float) -> None:
        """Keep the best score."""
        self.score = score if self.score is None else max(self.score, score)


class _Run:
    """The spans of one run; `outer` is the run in which it was started, as by a tool."""

    def __init__(self, tracer: "Tracer", event: RunStarted, content: bool, outer: "_Run | None") -> None:
        from opentelemetry.trace import SpanKind

        self.outer = outer
        self._client, self._internal = SpanKind.CLIENT, SpanKind.INTERNAL
        self._tracer = tracer
        self._content = content
        self._limits = attributes.limits(event.settings)
        self._used = dict.fromkeys(self._limits, 0.0)
        self._served = attributes.served(event.settings)
        self._visits: dict[int, _Part] = {}
        self._branches: dict[Path, _Part] = {}
        told = {"gen_ai.operation.name": "invoke_agent", **attributes.of_start(event, content)}
        self._name = str(told.get("gen_ai.agent.name", ""))
        self._root = self._part(f"invoke_agent {self._name}".rstrip(), None, told, time_ns())
        self._over = False

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        if self._over:
            return
        if type(event) is Called:
            self._called(event)
        elif type(event) is Noted:
            self._noted(event)
        elif type(event) is Exhausted:
            part, told = self._of(event.path), {"abduce.reason": redact.text(event.reason)}
            part.span.add_event("abduce.exhausted", told)
        elif type(event) is NodeStarted:
            self._visit(event)
        elif type(event) is NodeEnded:
            self._leave(event)
        elif type(event) is RunEnded:
            self._finish(attributes.of_end(event, self._content))

    def break_off(self, error: BaseException | None) -> None:
        """End what is open, as failed; nothing happens if the run has ended."""
        if self._over:
            return
        kind = "_OTHER" if error is None else type(error).__name__
        why = "the run did not end" if error is None else redact.text(f"{kind}: {error}")
        self._fail(self._root.span, kind, why)
        self._finish({})

    # ------------------------------------------------------------ events

    def _called(self, event: Called) -> None:
        """A call that is replayed took place before: it is a point in time, its duration an attribute."""
        now = time_ns()
        part = self._of(event.path)
        request, usage = event.request, event.usage
        served = self._served.get(getattr(request, "model", "")) or self._served.get("") or _UNKNOWN
        told = attributes.of_call(event, served)
        told["abduce.path"] = _text(event.path)
        for name in self._used:
            self._spend(name, event, told)
        if self._content:
            told |= attributes.content_of_call(event)
        began = now if event.replayed else max(part.began, now - int(event.seconds * 1e9))
        span = self._tracer.start_span(
            attributes.name_of(request, served),
            part.context,
            kind=self._client if hasattr(request, "model") else self._internal,
            attributes=told,
            start_time=began,
        )
        if wrong := attributes.fault(event.reply):
            self._fail(span, told["error.type"], wrong)
        span.end(now)
        part.last = now
        part.n_input += usage.input_tokens
        part.n_output += usage.output_tokens

    def _spend(self, name: str, event: Called, told: Attributes) -> None:
        """What is used of a limit after this call, and what is left."""
        if name == "seconds":
            used = max(self._used[name], event.t + event.seconds)
        else:
            used = self._used[name] + getattr(event.usage, name)
        self._used[name] = used
        told[f"abduce.budget.{name}.used"] = used
        told[f"abduce.budget.{name}.left"] = max(0.0, self._limits[name] - used)

    def _noted(self, event: Noted) -> None:
        now = time_ns()
        part = self._of(event.path)
        told = attributes.of_note(event, self._content)
        told["abduce.path"] = _text(event.path)
        if found := attributes.scores(event):
            told["abduce.score"] = max(found)
            part.took(told["abduce.score"])
        span = self._tracer.start_span(
            f"note {event.note}", part.context, attributes=told, start_time=max(part.began, now)
        )
        span.end(now)
        part.last = now

    def _visit(self, event: NodeStarted) -> None:
        if not self._visits:  # a recipe of several steps
            self._root.span.update_name(f"invoke_workflow {self._name}".rstrip())
            told = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": self._name}
            self._root.span.set_attributes(told)
        here: Attributes = {"abduce.node": event.node, "abduce.step": event.step}
        here["abduce.visit"] = event.path[0]
        name = event.node if event.node == event.step else f"{event.step} {event.node}"
        part = self._part(name, self._root, here, time_ns())
        self._visits[event.path[0]] = part

    def _leave(self, event: NodeEnded) -> None:
        part = self._visits.get(event.path[0])
        if part is None:
            return
        now = part.last = time_ns()
        told: Attributes = {"abduce.changed": sorted(event.update)}
        for key in ("route", "verified", "complete", "score"):
            if isinstance(value := event.update.get(key), (bool, int, float, str)):
                told[f"abduce.{key}"] = redact.text(value) if isinstance(value, str) else value
        part.span.set_attributes(told)
        self._close(part)
        part.span.end(now)
        self._root.last = now

    # ------------------------------------------------------------ parts

    def _of(self, path: Path) -> _Part:
        """The part of the run that a path lies in, in the batch that the path says.

        A path is [visit,] batch, request [, branch, batch, request …]; of a batch that was refused it ends
        there, and the rest of a request's samples has one number more."""
        begin = 1 if self._visits else 0
        part = self._root
        if begin:
            part = self._visits.get(path[0], part)
        n_branches = (len(path) - begin - 1) // 3
        self._advance(part, path[begin])
        for end in range(begin + 3, begin + 3 * n_branches + 1, 3):
            branch = self._branches.get(path[:end])
            part = self._fork(part, path[:end]) if branch is None else branch
            self._advance(part, path[end])
        return part

    def _advance(self, part: _Part, turn: int) -> None:
        """Go on to a batch of the part's flow: the branches of those before it are over."""
        if turn <= part.turn:
            return
        self._join(part)
        part.turn, part.turn_began = turn, part.last

    def _fork(self, parent: _Part, path: Path) -> _Part:
        told = {
            "abduce.branch": _text(path),
            "abduce.parent": _text(path[:-3]),
            "abduce.fork": _text(path[:-1]),
        }
        part = self._branches[path] = self._part("branch", parent, told, parent.turn_began)
        parent.branches.append((path, part))
        return part

    def _join(self, part: _Part) -> None:
        for path, branch in part.branches:
            self._close(branch)
            branch.span.end(branch.last)
            self._branches.pop(path, None)
            self._add(part, branch)
        part.branches.clear()

    def _add(self, whole: _Part, part: _Part) -> None:
        whole.last = max(whole.last, part.last)
        whole.n_input += part.n_input
        whole.n_output += part.n_output
        if part.score is not None:
            whole.took(part.score)

    def _close(self, part: _Part) -> None:
        """Tell what a part came to."""
        self._join(part)
        told: Attributes = {} if part.score is None else {"abduce.score": part.score}
        told |= {"abduce.usage.input_tokens": part.n_input, "abduce.usage.output_tokens": part.n_output}
        part.span.set_attributes(told)

    def _finish(self, told: Attributes) -> None:
        """End what is open; `told` is what the run itself says of its end."""
        self._over = True
        now, root = time_ns(), self._root
        for visit in self._visits.values():
            if visit.span.is_recording():  # it was broken off
                self._close(visit)
                visit.span.end(now)
            self._add(root, visit)
        self._close(root)
        root.span.set_attributes(told)
        root.span.end(now)

    def _part(self, name: str, parent: _Part | None, told: Attributes, began: int) -> _Part:
        from opentelemetry.trace import set_span_in_context

        above = parent.context if parent is not None else None  # None: what is current here
        span = self._tracer.start_span(name, above, attributes=told, start_time=began)
        return _Part(span, set_span_in_context(span, above), began, began, turn_began=began)

    def _fail(self, span: "Span", kind: str, why: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", kind)
        span.set_status(Status(StatusCode.ERROR, why))


_UNKNOWN = Served()


def _text(path: Path) -> str:
    return ".".join(map(str, path))

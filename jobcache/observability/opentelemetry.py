"""Spans for OpenTelemetry. Needs `jobcache[opentelemetry]`.

A span is `jobcache.poll`, `jobcache.read`, `jobcache.load` or `jobcache.write`. Most operations are
not followed, and the decision is taken here: the SDK would need longer for it than a hit takes.
"""

from __future__ import annotations

import random as random_numbers
import time
from typing import TYPE_CHECKING

try:
    from opentelemetry import trace
    from opentelemetry.context import get_current
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImportError(
        "jobcache.observability.opentelemetry needs opentelemetry-api;"
        " pip install 'jobcache[opentelemetry]'"
    ) from error

from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from jobcache.observability.instrumentation import Attributes, Operation, Span

_TRACEPARENT = TraceContextTextMapPropagator()


class OpenTelemetry:
    """Makes a span of a part of the operations.

        cache = JobCache.from_url("redis://…", instrumentation=OpenTelemetry(sample_rate=0.01))

    Parts of an operation are followed if the operation is. A poll whose client sends `traceparent`
    is followed if the client follows it.

    Args:
        tracer: makes the spans; None: that of the global tracer provider.
        sample_rate: the part of all other operations, from 0 to 1, that is followed.
        most_per_second: the most operations that are followed for this rate in a second, without
            their parts: a span costs as much as many hits. None: no limit.
        random: numbers in [0, 1).
        clock: monotonic time in seconds.

    Raises:
        ValueError: the rate is not from 0 to 1.
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        *,
        sample_rate: float = 1.0,
        most_per_second: int | None = 100,
        random: Callable[[], float] = random_numbers.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 <= sample_rate <= 1:
            raise ValueError("the sample rate is a number from 0 to 1")
        self._tracer = trace.get_tracer("jobcache") if tracer is None else tracer
        self._rate = sample_rate
        self._most = most_per_second
        self._random = random
        self._clock = clock
        self._second = clock()  # when the present second began
        self._followed = 0  # in it

    def begin(self, operation: Operation, key: str = "", traceparent: str | None = None) -> Span:
        """Begin a span, or one that is not followed."""
        # An empty context has no span: to look at that first takes a quarter of the time.
        active = trace.get_current_span().get_span_context() if get_current() else None
        if active is not None and active.is_valid:
            if active.trace_flags.sampled:
                return self._start(operation, key, None, SpanKind.INTERNAL)
            return _NotFollowed(active)
        if traceparent is not None:
            context = _TRACEPARENT.extract({"traceparent": traceparent})
            client = trace.get_current_span(context).get_span_context()
            if client.is_valid:
                if client.trace_flags.sampled:
                    return self._start(operation, key, context, SpanKind.SERVER)
                return _NotFollowed(client)
        if self._random() >= self._rate or not self._has_room():
            return _NOT_FOLLOWED
        kind = SpanKind.SERVER if operation == "poll" else SpanKind.INTERNAL
        return self._start(operation, key, None, kind)

    def _has_room(self) -> bool:
        """Return whether one more operation may be followed in this second, and count it."""
        if self._most is None:
            return True
        now = self._clock()
        if now - self._second >= 1:
            self._second, self._followed = now, 0
        self._followed += 1
        return self._followed <= self._most

    def _start(
        self, operation: Operation, key: str, context: Context | None, kind: SpanKind
    ) -> Span:
        attributes = {"jobcache.key": key} if key else None
        return _Followed(
            self._tracer.start_span(f"jobcache.{operation}", context, kind, attributes)
        )


class _Followed:
    """An operation with a span."""

    __slots__ = ("_span",)
    followed = True

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def active(self) -> AbstractContextManager[object]:
        """Make the span the parent of the spans that are begun within the block."""
        return trace.use_span(self._span, record_exception=False, set_status_on_exception=False)

    def end(self, attributes: Attributes, error: BaseException | None = None) -> None:
        """End the span."""
        self._span.set_attributes(attributes)
        if error is not None:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._span.end()


class _NotFollowed:
    """An operation without a span, whose parts have none either.

    Args:
        context: of the span that it is a part of; None: it is a part of none.
    """

    __slots__ = ("_context",)
    followed = False

    def __init__(self, context: SpanContext | None) -> None:
        self._context = context

    def active(self) -> AbstractContextManager[object]:
        """Have no spans begin within the block."""
        context = self._context
        if context is None:
            numbers = random_numbers.getrandbits(128) | 1, random_numbers.getrandbits(64) | 1
            context = SpanContext(*numbers, is_remote=False, trace_flags=TraceFlags())
        return trace.use_span(NonRecordingSpan(context))

    def end(self, attributes: Attributes, error: BaseException | None = None) -> None:
        """Do nothing."""


_NOT_FOLLOWED = _NotFollowed(None)

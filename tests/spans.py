"""The spans that a test has caused, kept in memory by the SDK of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from jobcache.observability.opentelemetry import OpenTelemetry

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"
"""A `traceparent` of a client."""


class Recording:
    """An instrumentation whose spans can be looked at.

    Args:
        options: of `OpenTelemetry`.
    """

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(ALWAYS_ON)  # what is not followed is not left to the SDK
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = provider.get_tracer("tests")
        self.instrumentation = OpenTelemetry(self.tracer, **{"most_per_second": None, **options})

    def taken(self) -> list[ReadableSpan]:
        """Return the spans that have ended since the last call, in that order."""
        spans = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return spans


def names(spans: list[ReadableSpan]) -> list[str]:
    return [span.name.removeprefix("jobcache.") for span in spans]


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span, without the beginning of their names."""
    return {name.removeprefix("jobcache."): each for name, each in (span.attributes or {}).items()}


def is_part_of(part: ReadableSpan, whole: ReadableSpan) -> bool:
    return part.parent is not None and part.parent.span_id == whole.context.span_id


def dice(*numbers: float) -> Callable[[], float]:
    """Return a source of random numbers that returns these, and no others."""
    return iter(numbers).__next__

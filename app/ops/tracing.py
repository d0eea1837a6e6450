"""Spans of the service for OpenTelemetry, sent by OTLP over HTTP. Off unless they are asked for."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

from jobcache import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from jobcache.observability.instrumentation import Instrumentation

_NEEDED = (
    "opentelemetry.trace",
    "opentelemetry.sdk.trace",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class Tracing:
    """What makes spans, and sends them in a thread of its own.

    Args:
        rate: the part of the polls, reads and writes that are followed; above 0.
        most_per_second: of these, the most in a second; 0: no limit.

    Raises:
        SettingsError: OpenTelemetry is not installed.

    Attributes:
        instrumentation: for the cache.
    """

    def __init__(self, rate: float, most_per_second: int) -> None:
        self._provider, self.instrumentation = _made(rate, most_per_second)

    def close(self) -> None:
        """Send what has not been sent, and end. It may wait for the network."""
        self._provider.shutdown()


def check_installed(rate: float) -> None:
    """Check that spans can be sent, if they are asked for.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    if rate:
        try:
            for module in _NEEDED:
                import_module(module)
        except ImportError as error:
            allowed = f"needs {error.name}; pip install 'jobcache[tracing]'"
            raise SettingsError("JOBCACHE_TRACE_RATE", rate, allowed) from error


def _made(rate: float, most_per_second: int) -> tuple[TracerProvider, Instrumentation]:
    check_installed(rate)
    # Most services run without.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from jobcache.observability.opentelemetry import OpenTelemetry  # noqa: PLC0415

    # The SDK reads OTEL_SERVICE_NAME itself, and would prefer this one.
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "jobcache"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider, OpenTelemetry(
        provider.get_tracer("jobcache"),
        sample_rate=rate,
        most_per_second=most_per_second or None,
    )

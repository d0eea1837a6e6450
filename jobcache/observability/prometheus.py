"""Metrics for Prometheus, read from a cache when they are scraped. Needs `jobcache[prometheus]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
except ImportError as error:
    raise ImportError(
        "jobcache.observability.prometheus needs prometheus-client;"
        " pip install 'jobcache[prometheus]'"
    ) from error

from jobcache.observability.metrics import CACHE_METRICS, samples
from jobcache.observability.statistics import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from jobcache.observability.metrics import Measurable, Metric

_POWERS = range(9, 37)
"""The buckets end at these powers of two, in nanoseconds: from half a microsecond to 69 seconds."""

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class CacheCollector:
    """A collector for a registry of prometheus-client. It costs nothing until it is asked.

        from prometheus_client import REGISTRY

        REGISTRY.register(CacheCollector(cache))

    Args:
        cache: a `JobCache`, or a `jobcache.sync.JobCache`.
        labels: labels for each metric, such as a name if a process has several caches.
    """

    def __init__(self, cache: Measurable, labels: Mapping[str, str] | None = None) -> None:
        self._cache = cache
        self._labels = {} if labels is None else dict(labels)

    def describe(self) -> Iterable[Family]:
        """Return nothing: the registry need not ask the cache when it gets the collector."""
        return ()

    def collect(self) -> Iterator[Family]:
        """Yield the metrics as they are now."""
        measured = self._cache.measure()
        for metric in CACHE_METRICS:
            if metric.name in measured:
                yield family(metric, [(self._labels, measured[metric.name])])


def family(
    metric: Metric, measured: Iterable[tuple[Mapping[str, str], Any]], name: str = ""
) -> Family:
    """Return one metric in the form of prometheus-client.

    Args:
        metric: the metric.
        measured: measurements of it, each with the labels that it has besides the metric's.
        name: in place of the metric's.
    """
    parts = list(measured)
    more = tuple(parts[0][0]) if parts else ()
    names, title = (*more, *metric.labels), name or metric.name
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(title, metric.help, labels=names)
        for labels, value in parts:
            for values, counts in samples(metric, value):
                buckets, total = _buckets(counts)
                histogram.add_metric((*labels.values(), *values), buckets, total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    numbers = kind(title, metric.help, labels=names)
    for labels, value in parts:
        for values, number in samples(metric, value):
            numbers.add_metric((*labels.values(), *values), number)
    return numbers


def _buckets(counts: Mapping[str, int]) -> tuple[list[tuple[str, float]], float]:
    """Return the upper bounds with the number of durations below them, and the sum, in seconds."""
    histogram = Histogram.of(counts)
    bounds = [
        (f"{nanoseconds / 1e9:.9f}".rstrip("0"), float(number))
        for nanoseconds, number in histogram.below_powers(_POWERS)
    ]
    return [*bounds, ("+Inf", float(histogram.count))], histogram.total() / 1e9

"""What a linter of Prometheus says about a page of metrics, and about their names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
NOT_BASE_UNITS = re.compile(
    r"_(nanoseconds|microseconds|milliseconds|minutes|hours|days|kilobytes|megabytes|bits|percent|ns|us|ms|s|kb|mb)(_|$)"
)
KINDS = re.compile(r"_(counter|gauge|histogram|summary)(_|$)")
MOST_SERIES = 64  # of one metric and process: more would be an unbounded label


def complaints(page: str) -> list[str]:
    """Return what is wrong with a page; nothing if a linter accepts it."""
    assert page.endswith("\n")
    found: list[str] = []
    seen: set[str] = set()
    for family in text_string_to_metric_families(page):
        if family.name in seen:
            found.append(f"{family.name} comes twice")
        seen.add(family.name)
        found += (f"{family.name} {complaint}" for complaint in _of_family(family))
    helped = re.findall(r"^# HELP (\S+) \S", page, re.MULTILINE)
    typed = re.findall(r"^# TYPE (\S+) (\w+)$", page, re.MULTILINE)
    if [name for name, _ in typed] != helped:
        found.append("a metric has no help or no type")
    found += (
        f"{name} is a {kind}, and does not say so in its last word"
        for name, kind in typed
        if name.endswith("_total") is not (kind == "counter")
    )
    return found


def _of_family(family: Metric) -> Iterator[str]:
    yield from _of_name(family)
    yield from _of_series(family)
    if family.type == "histogram":
        yield from _of_histogram(family)


def _of_name(family: Metric) -> Iterator[str]:
    if not NAME.fullmatch(family.name):
        yield "is no name in small letters"
    if NOT_BASE_UNITS.search(family.name):
        yield "is not in a base unit"
    if KINDS.search(family.name) or re.search(r"_(count|sum|bucket)$", family.name):
        yield "has a word that belongs to the format"
    if not family.documentation.endswith("."):
        yield "has no sentence"
    if family.type not in {"counter", "gauge", "histogram"}:
        yield "has no type"


def _of_series(family: Metric) -> Iterator[str]:
    label_sets = [(each.name, tuple(sorted(each.labels.items()))) for each in family.samples]
    if len(set(label_sets)) != len(label_sets):
        yield "has a series twice"
    if len({names for _, names in label_sets if "le" not in dict(names)}) > MOST_SERIES:
        yield "has a label without a bound"
    if len({frozenset(dict(names)) - {"le"} for _, names in label_sets}) > 1:
        yield "has series with different labels"
    for name, labels in label_sets:
        for label in dict(labels):
            if not NAME.fullmatch(label) or (label == "le" and not name.endswith("_bucket")):
                yield f"has the label {label}"


def _of_histogram(family: Metric) -> Iterator[str]:
    buckets = [
        (float(each.labels["le"]), each.value)
        for each in family.samples
        if each.name.endswith("_bucket")
    ]
    (count,) = (each.value for each in family.samples if each.name.endswith("_count"))
    if buckets != sorted(buckets) or buckets[-1] != (float("inf"), count):
        yield "has buckets that do not add up"

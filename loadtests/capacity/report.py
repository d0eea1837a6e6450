"""Tables of what the model computes, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtests.capacity.bottlenecks import margin
from loadtests.capacity.workload import WITH_REDIS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loadtests.capacity.bottlenecks import Hardware, Resource
    from loadtests.capacity.model import Prediction
    from loadtests.capacity.workload import Workload


def report(
    workload: Workload,
    prediction: Prediction,
    used: Sequence[Resource],
    hardware: Hardware,
    origin: Mapping[str, str],
) -> str:
    """Return the whole report of one prediction.

    Args:
        workload: what was asked.
        prediction: what one cell needs.
        used: the resources, the one that runs out first at the head.
        hardware: what the machines have.
        origin: of the coefficients.
    """
    parts = [
        _deployment(workload),
        "",
        *_table(("each second, in all", "number"), _totals(workload, prediction)),
        "",
        *_table(
            ("resource", "needed", "available", "used"),
            (
                (
                    each.name,
                    f"{_number(each.needed)} {each.unit}",
                    f"{_number(each.available)} {each.unit}",
                    f"{100 * each.used:.1f} %",
                )
                for each in used
            ),
        ),
        "",
        verdict(used[0], hardware),
        "",
        "Costs measured on: " + ", ".join(f"{name} {text}" for name, text in origin.items()) + ".",
    ]
    return "\n".join(parts) + "\n"


def verdict(first: Resource, hardware: Hardware) -> str:
    """Return the sentence that names the first bottleneck and its margin."""
    room = margin(first, hardware.limit)
    allowed = f"{100 * hardware.limit:g} % may be used"
    said = f"First bottleneck: {first.name}, {100 * first.used:.1f} % used; {allowed}"
    if room < 1:
        return f"{said}. DOES NOT FIT: {_number(1 / room)} times as much is needed."
    return f"{said}: margin {_number(room)}."


def _deployment(workload: Workload) -> str:
    cells = "" if workload.cells == 1 else f" in each of {workload.cells:,} cells"
    redis = f", {workload.redis:,} Redis" if workload.backend in WITH_REDIS else ""
    return (
        f"{workload.pollers:,} pollers every {workload.interval:g} s, {workload.jobs:,} jobs of"
        f" {workload.seconds:g} s with {workload.updates:g} updates and {workload.body:,} bytes"
        f" each, on {workload.backend}: {workload.nodes:,} nodes with {workload.processes:,}"
        f" processes{redis}{cells}."
    )


def _totals(workload: Workload, prediction: Prediction) -> list[tuple[str, str]]:
    rates, cells = prediction.rates, workload.cells
    processes = workload.all_processes
    rows = [
        ("polls", rates.polls),
        ("of these, answered 304", rates.not_modified),
        ("updates of jobs", rates.updates),
        ("queries that polls cause", rates.loads),
        ("service processors, busy", prediction.process_cores * processes),
        ("database processors, busy", prediction.database_cores),
        ("megabytes to pollers", rates.response_bytes / 1e6),
    ]
    if workload.backend in WITH_REDIS:
        rows += [
            ("keys read from Redis", rates.gets),
            ("scripts run by Redis", rates.scripts),
            ("Redis processors, busy", prediction.redis_cores * workload.redis),
            ("megabytes to and from Redis", rates.redis_bytes / 1e6),
        ]
    if workload.backend == "tiered":
        rows += [
            ("entries read again after a change", rates.refills),
            ("changes reported by the feed", rates.changes),
            ("reports, one for each change and process", rates.reports),
        ]
    return [(name, _number(value * cells)) for name, value in rows]


def _number(value: float) -> str:
    """Return three significant digits, with thousands separated."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---' for _ in head)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]

"""Figures that are derived from a measurement: rates, ratios and percentiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtests.report.document import Bucket, Measurement, Sample

Series: TypeAlias = list[tuple[float, float]]
"""Values by the second of the run."""


def percentile(buckets: Sequence[Bucket], percent: float) -> float | None:
    """Return the duration in milliseconds that `percent` of the requests do not exceed."""
    total = sum(bucket.count for bucket in buckets)
    seen = 0
    for bucket in buckets:
        seen += bucket.count
        if bucket.count and seen * 100 >= total * percent:
            return bucket.upper_ms
    return None


def loads_per_job(run: Measurement) -> float | None:
    """Return the queries that polls caused, divided by the jobs; None without a job."""
    return run.statements.get("load", 0) / run.jobs if run.jobs else None


def statements(run: Measurement) -> int:
    """Return the number of statements that the service sent to the database."""
    return sum(run.statements.values())


def polls_per_update(run: Measurement) -> float | None:
    """Return how many polls a client sent for each newer version; None without one."""
    return run.update_polls / run.updates if run.updates else None


def cpu_seconds(run: Measurement, process: str) -> float | None:
    """Return the processor time of a process in the run; None if it was not sampled twice."""
    taken = [s.cpu_seconds[process] for s in run.samples if process in s.cpu_seconds]
    return taken[-1] - taken[0] if len(taken) > 1 else None


def others_percent(run: Measurement) -> float | None:
    """Return the processor time of programs that are not of the test, in percent of one core."""
    names = {name for sample in run.samples for name in sample.cpu_seconds}
    # When the last sample is taken, the clients have ended, and their time is not known.
    whole = [sample for sample in run.samples if sample.cpu_seconds.keys() == names]
    if len(whole) < 2:
        return None
    first, last = whole[0], whole[-1]
    machine = last.machine_seconds - first.machine_seconds
    ours = sum(last.cpu_seconds[name] - first.cpu_seconds[name] for name in names)
    return max(0.0, 100 * (machine - ours) / (last.second - first.second))


def peak_megabytes(run: Measurement, process: str) -> float | None:
    """Return the largest resident memory of a process in MB; None if it was not sampled."""
    return max(
        (s.resident_bytes[process] / 1e6 for s in run.samples if process in s.resident_bytes),
        default=None,
    )


def hit_rates(run: Measurement) -> Series:
    """Return the percentage of hits among the reads of each second in which there were reads."""
    return [
        (late.second, 100 * (late.hits - early.hits) / (late.reads - early.reads))
        for early, late in _pairs(run)
        if late.reads > early.reads
    ]


def query_rates(run: Measurement) -> Series:
    """Return the statements per second of each second."""
    return _rates(run, lambda sample: sample.statements)


def cpu_percent(run: Measurement, process: str) -> Series:
    """Return the processor time of a process in percent of one core, for each second."""
    return [
        (second, 100 * rate)
        for second, rate in _rates(run, lambda sample: sample.cpu_seconds.get(process, 0.0))
    ]


def _rates(run: Measurement, count: Callable[[Sample], float]) -> Series:
    return [
        (late.second, (count(late) - count(early)) / (late.second - early.second))
        for early, late in _pairs(run)
    ]


def _pairs(run: Measurement) -> list[tuple[Sample, Sample]]:
    return [
        (early, late)
        for early, late in zip(run.samples, run.samples[1:], strict=False)
        if late.second > early.second
    ]

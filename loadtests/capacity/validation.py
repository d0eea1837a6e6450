"""Compares what the model predicts with what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadtests.capacity.model import predict
from loadtests.capacity.workload import WITH_REDIS, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.capacity.coefficients import Coefficients
    from loadtests.capacity.laboratory import Point
    from loadtests.capacity.observation import Observation

LARGEST_ERROR = 0.2

LEAST_CORES = 0.02
"""Processor time below this is not judged: it is never a bottleneck, and mostly error."""

_LEAST_RATE = 5.0
"""Events per second below this are not judged, except where polls cause them: see `_queries`."""

_LIFE = 3600.0
"""Seconds that a job of the measured loads lives, in the terms of the model."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One quantity of one load.

    Attributes:
        load: the backend and the name of the load.
        quantity: what is compared.
        predicted: by the model.
        measured: on the machine.
        least: where both are below, the error is not judged.
    """

    load: str
    quantity: str
    predicted: float
    measured: float
    least: float

    @property
    def error(self) -> float | None:
        """The relative error of the prediction; None if both values are too small to judge."""
        if max(self.predicted, self.measured) < self.least:
            return None
        if self.measured <= 0:
            return float("inf")
        return self.predicted / self.measured - 1

    @property
    def too_large(self) -> bool:
        """Whether the error is larger than it may be."""
        return self.error is not None and abs(self.error) > LARGEST_ERROR


def compare(
    coefficients: Coefficients, point: Point, observation: Observation, body: int
) -> list[Comparison]:
    """Return what the model says of a load that was measured.

    Polls and updates are those that were sent. Everything else is predicted.
    """
    workload = Workload(
        pollers=max(1, round(observation.polls * 1000)),
        interval=1000.0,
        jobs=point.jobs,
        updates=observation.updates / point.jobs * _LIFE,
        seconds=_LIFE,
        body=body,
        etags=float(point.etags),
        backend=observation.backend,
        processes=observation.processes,
    )
    found = predict(workload, coefficients)
    rates, many = found.rates, 0.01 * observation.polls
    rows = [
        ("cores of a service process", found.process_cores, observation.process_cores, LEAST_CORES),
        ("cores of the database", found.database_cores, observation.database_cores, LEAST_CORES),
        ("queries of polls", rates.loads, observation.loads, max(many, _LEAST_RATE)),
    ]
    if observation.backend in WITH_REDIS:
        rows += [
            ("cores of Redis", found.redis_cores, observation.redis_cores, LEAST_CORES),
            ("keys read from Redis", rates.gets, observation.gets, _LEAST_RATE),
            ("scripts run by Redis", rates.scripts, observation.scripts, _LEAST_RATE),
            ("bytes of Redis", rates.redis_bytes, observation.redis_bytes, 1000.0),
        ]
    if observation.backend == "tiered":
        rows += [
            ("entries read again", rates.refills, observation.refills, _LEAST_RATE),
            ("changes reported", rates.changes, observation.changes, _LEAST_RATE),
        ]
    load = f"{observation.backend}, {observation.name}"
    return [
        Comparison(load=load, quantity=name, predicted=said, measured=was, least=least)
        for name, said, was, least in rows
    ]


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as Markdown."""
    lines = [
        "| load | per second | predicted | measured | error |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in comparisons:
        error = "too small to judge" if each.error is None else f"{100 * each.error:+.0f} %"
        mark = " TOO LARGE" if each.too_large else ""
        lines.append(
            f"| {each.load} | {each.quantity} | {each.predicted:,.4g} | {each.measured:,.4g} |"
            f" {error}{mark} |"
        )
    return "\n".join(lines) + "\n"

"""Fits the costs of single operations to measured loads, by least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadtests.capacity.coefficients import DatabaseCost, RedisCost, ServiceCost

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadtests.capacity.observation import Observation

LEAST_CORES = 0.005
"""Processor time below this counts as much as this: it is mostly error of measurement."""


def service_cost(
    observations: Sequence[Observation], known: Mapping[str, float] | None = None
) -> ServiceCost:
    """Return the costs of a service process from loads of one backend.

    The loads must differ in each kind of operation that they contain.

    Args:
        observations: the loads.
        known: costs that are not fitted, by their names.
    """
    given = {} if known is None else known
    terms: dict[str, Callable[[Observation], float]] = {
        "idle": lambda _: 1.0,
        "wakeup": lambda each: (each.polls / each.processes + each.changes) * _free(each),
        "poll": lambda each: each.polls / each.processes,
        "conditional": lambda each: each.conditional / each.processes,
        "load": lambda each: each.loads / each.processes,
        "refill": lambda each: each.refills / each.processes,
        "update": lambda each: each.updates / each.processes,
        "report": lambda each: each.changes,
    }
    if all(each.backend == "null" for each in observations):
        del terms["load"]  # each poll is one: its cost is part of the poll's
    fitted = {name: term for name, term in terms.items() if name not in given}
    found = least_squares(
        observations,
        lambda each: max(
            0.0,
            each.process_cores - sum(cost * terms[name](each) for name, cost in given.items()),
        ),
        fitted,
    )
    return ServiceCost(**{"load": 0.0, **given, **found})


def redis_cost(observations: Sequence[Observation], report: float) -> RedisCost:
    """Return the costs of Redis.

    Args:
        observations: of backends with Redis.
        report: seconds for each changed key and process, measured apart.
    """
    terms: dict[str, Callable[[Observation], float]] = {
        "idle": lambda _: 1.0,
        "wakeup": lambda each: (each.commands + each.scripts) * max(0.0, 1 - each.redis_cores),
        "get": lambda each: each.gets,
        "script": lambda each: each.scripts,
    }
    found = least_squares(
        observations,
        lambda each: max(0.0, each.redis_cores - each.changes * each.processes * report),
        terms,
    )
    return RedisCost(**found, report=report)


def database_cost(observations: Sequence[Observation]) -> DatabaseCost:
    """Return the costs of the database."""
    terms: dict[str, Callable[[Observation], float]] = {
        "select": lambda each: each.loads,
        "update": lambda each: each.updates,
    }
    found = least_squares(observations, lambda each: each.database_cores, terms)
    return DatabaseCost(**found)


def least_squares(
    observations: Sequence[Observation],
    measured: Callable[[Observation], float],
    terms: Mapping[str, Callable[[Observation], float]],
) -> dict[str, float]:
    """Return the cost of each term; the sum of relative errors squared is least.

    A term that would have a negative cost costs nothing, and the others are fitted again.
    """
    values = np.array([measured(each) for each in observations])
    weights = 1 / np.maximum(values, LEAST_CORES)
    left = list(terms)
    while True:
        matrix = np.array([[terms[name](each) for name in left] for each in observations])
        solved, *_ = np.linalg.lstsq(matrix * weights[:, None], values * weights, rcond=None)
        shares = dict(zip(left, solved * np.abs(matrix).mean(axis=0), strict=True))
        worst = min(shares, key=lambda name: shares[name])
        if shares[worst] >= 0:
            costs = dict(zip(left, map(float, solved), strict=True))
            return {name: costs.get(name, 0.0) for name in terms}
        left.remove(worst)


def _free(observation: Observation) -> float:
    """Return the part of the time in which a service process waits for events.

    A process that waits for a processor, which others have, finds more events at once.
    """
    return max(0.0, 1 - observation.process_cores - observation.waiting)

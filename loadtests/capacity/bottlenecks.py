"""Compares what a deployment needs with what its machines have, and names the first bottleneck."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from jobcache import CacheSettings
from loadtests.capacity.workload import WITH_REDIS, InvalidWorkload

if TYPE_CHECKING:
    from loadtests.capacity.model import Prediction
    from loadtests.capacity.workload import Workload

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the machines have.

    Attributes:
        cores: of each node with service processes.
        memory: of each node, in gigabytes.
        network: of each node and each Redis primary, in gigabits a second.
        redis_memory: of each Redis primary, in gigabytes.
        database_cores: of the database server.
        connections: that one service process accepts.
        entries: that one service process may hold (`JOBCACHE_MAX_ENTRIES`).
        limit: the part of each resource, above 0 and at most 1, that may be used.

    Raises:
        InvalidWorkload: a value is not above 0.
    """

    cores: int = 8
    memory: float = 16.0
    network: float = 10.0
    redis_memory: float = 16.0
    database_cores: int = 16
    connections: int = 11_000
    entries: int = CacheSettings().max_entries
    limit: float = 0.7

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InvalidWorkload(field.name, f"is {value:g}; it must be above 0")
        if self.limit > 1:
            raise InvalidWorkload("limit", f"is {self.limit:g}; it must be at most 1")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One thing that can run out.

    Attributes:
        name: for people.
        needed: what the load needs of it.
        available: what there is.
        unit: of both.
    """

    name: str
    needed: float
    available: float
    unit: str

    @property
    def used(self) -> float:
        """The part that is used; above 1, the load does not fit."""
        return self.needed / self.available


def resources(workload: Workload, prediction: Prediction, hardware: Hardware) -> list[Resource]:
    """Return the resources of one cell, the one that runs out first at the head."""
    rates, processes = prediction.rates, workload.processes
    found = [
        Resource(
            name="processor of a service process",
            needed=prediction.process_cores,
            available=1.0,
            unit="cores",
        ),
        Resource(
            name="processors of a node",
            needed=prediction.process_cores * processes,
            available=hardware.cores,
            unit="cores",
        ),
        Resource(
            name="connections of a service process",
            needed=prediction.connections,
            available=hardware.connections,
            unit="connections",
        ),
        Resource(
            name="entries of a service process",
            needed=prediction.entries,
            available=hardware.entries,
            unit="entries",
        ),
        Resource(
            name="memory of a node",
            needed=prediction.process_bytes * processes / GIGA,
            available=hardware.memory,
            unit="GB",
        ),
        Resource(
            name="network of a node",
            needed=_gigabits(rates.response_bytes / workload.nodes),
            available=hardware.network,
            unit="Gbit/s",
        ),
        Resource(
            name="processors of the database",
            needed=prediction.database_cores,
            available=hardware.database_cores,
            unit="cores",
        ),
    ]
    if workload.backend in WITH_REDIS:
        found += [
            Resource(
                name="processor of a Redis primary",
                needed=prediction.redis_cores,
                available=1.0,
                unit="cores",
            ),
            Resource(
                name="network of a Redis primary",
                needed=_gigabits(rates.redis_bytes / workload.redis),
                available=hardware.network,
                unit="Gbit/s",
            ),
            Resource(
                name="memory of a Redis primary",
                needed=prediction.redis_memory / GIGA,
                available=hardware.redis_memory,
                unit="GB",
            ),
        ]
    return sorted(found, key=lambda resource: -resource.used)


def margin(resource: Resource, limit: float) -> float:
    """Return the allowed use divided by the use; below 1, the load does not fit."""
    return limit / resource.used


def _gigabits(byte_rate: float) -> float:
    return byte_rate * 8 / GIGA

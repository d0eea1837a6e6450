"""The load and the deployment that the capacity model is asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

BACKENDS = ("null", "memory", "redis", "tiered")
"""The backends that the model covers."""

WITH_REDIS = frozenset({"redis", "tiered"})


class InvalidWorkload(ValueError):  # noqa: N818 - says what is the matter
    """A value makes no sense; the message says what is valid.

    Args:
        name: of the field.
        reason: the rest of the sentence.

    Attributes:
        name: of the field.
        reason: the rest of the sentence.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Pollers, jobs, and the machines that serve them.

    Attributes:
        pollers: clients that poll, each one job, through a connection that it keeps.
        interval: seconds between two polls of a client.
        jobs: jobs that are running at any time.
        updates: changes of a job during its life.
        seconds: the life of a job.
        body: bytes of a job's document, as it is stored.
        etags: the part of the pollers, from 0 to 1, that send `If-None-Match`.
        backend: one of `BACKENDS`.
        processes: service processes on each node.
        nodes: machines that run service processes.
        redis: primaries of the Redis cluster; 1 is a single server.
        cells: independent deployments, each with nodes, a Redis and a database of its own. A proxy
            in front chooses the cell by the job's id, so each cell has an equal part of the load.

    Raises:
        InvalidWorkload: a value is not valid.
    """

    pollers: int
    interval: float = 3.0
    jobs: int
    updates: float = 20.0
    seconds: float = 120.0
    body: int = 500
    etags: float = 1.0
    backend: str = "tiered"
    processes: int = 1
    nodes: int = 1
    redis: int = 1
    cells: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidWorkload(field.name, f"is {value}; a finite number is needed")
        for name in ("pollers", "jobs", "body", "processes", "nodes", "redis", "cells"):
            if getattr(self, name) < 1:
                raise InvalidWorkload(name, f"is {getattr(self, name)}; it must be at least 1")
        for name in ("interval", "seconds"):
            if getattr(self, name) <= 0:
                raise InvalidWorkload(name, f"is {getattr(self, name):g}; it must be above 0")
        self._check_choices()

    def _check_choices(self) -> None:
        if self.updates < 0:
            raise InvalidWorkload("updates", f"is {self.updates:g}; it must be at least 0")
        if not 0 <= self.etags <= 1:
            raise InvalidWorkload("etags", f"is {self.etags:g}; it must be from 0 to 1")
        if self.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise InvalidWorkload("backend", f"is {self.backend!r}; it must be one of {known}")
        if self.backend == "memory" and self.processes * self.nodes > 1:
            raise InvalidWorkload(
                "backend",
                f"is memory, with {self.processes} x {self.nodes} processes; it is"
                " coherent for 1 process and 1 node only: choose redis or tiered, or more cells",
            )

    @property
    def all_processes(self) -> int:
        """The service processes of one cell."""
        return self.processes * self.nodes

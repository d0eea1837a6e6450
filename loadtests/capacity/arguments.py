"""The command-line arguments that describe a load and its deployment."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.capacity.bottlenecks import Hardware
from loadtests.capacity.workload import BACKENDS, Workload

if TYPE_CHECKING:
    import argparse

CALIBRATION = Path(__file__).with_name("calibration.json")
"""The calibration that comes with the project."""

_HARDWARE = {
    "cores": (int, "processors of each node"),
    "memory": (float, "gigabytes of memory of each node"),
    "network": (float, "gigabits a second of each node and Redis primary"),
    "redis_memory": (float, "gigabytes of memory of each Redis primary"),
    "database_cores": (int, "processors of the database server"),
    "connections": (int, "connections that a service process accepts"),
    "entries": (int, "entries that a service process may hold, as JOBCACHE_MAX_ENTRIES"),
    "limit": (float, "part of each resource that may be used"),
}
_WORKLOAD = {
    "interval": (float, "seconds between two polls of a client"),
    "updates": (float, "changes of a job during its life"),
    "seconds": (float, "life of a job"),
    "body": (int, "bytes of a job's document"),
    "etags": (float, "part of the pollers that send If-None-Match, from 0 to 1"),
    "processes": (int, "service processes on each node"),
    "nodes": (int, "machines that run service processes"),
    "redis": (int, "primaries of the Redis cluster"),
    "cells": (int, "independent deployments that share the load by job id"),
}


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a workload, and the file of the measured costs."""
    parser.add_argument("--pollers", type=int, default=1000, help="clients that poll")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs running at any time")
    parser.add_argument("--backend", choices=BACKENDS, default="tiered", help="of the cache")
    _add(parser, Workload, _WORKLOAD)
    parser.add_argument(
        "--calibration", type=Path, default=CALIBRATION, help="file of measured costs"
    )


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the machines."""
    _add(parser, Hardware, _HARDWARE)


def workload_of(options: argparse.Namespace) -> Workload:
    """Return the workload.

    Raises:
        InvalidWorkload: a value is not valid.
    """
    names = ("pollers", "jobs", "backend", *_WORKLOAD)
    return Workload(**{name: getattr(options, name) for name in names})


def hardware_of(options: argparse.Namespace) -> Hardware:
    """Return the machines.

    Raises:
        InvalidWorkload: a value is not valid.
    """
    return Hardware(**{name: getattr(options, name) for name in _HARDWARE})


def flag(name: str) -> str:
    """Return the argument of a field."""
    return f"--{name.replace('_', '-')}"


def _add(
    parser: argparse.ArgumentParser,
    kind: type[Workload | Hardware],
    table: dict[str, tuple[type[int | float], str]],
) -> None:
    defaults = {field.name: field.default for field in fields(kind)}
    for name, (read, meaning) in table.items():
        parser.add_argument(flag(name), type=read, default=defaults[name], help=meaning)

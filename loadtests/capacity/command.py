"""The command that computes what a number of pollers needs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.capacity import coefficients
from loadtests.capacity.bottlenecks import Hardware, resources
from loadtests.capacity.model import predict
from loadtests.capacity.report import report
from loadtests.capacity.workload import BACKENDS, InvalidWorkload, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

CALIBRATION = Path(__file__).with_name("calibration.json")
"""The calibration that comes with the project."""

DESCRIPTION = """Compute what a number of pollers needs, and name the first bottleneck.

python -m loadtests capacity --pollers 100000 --jobs 10000 --backend tiered --nodes 2 --processes 4
"""


def main(arguments: Sequence[str]) -> int:
    """Print the requests, processors, commands, queries and memory that a load needs; return 0."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    path: Path = options.pop("calibration")
    machine = {name: options.pop(name) for name in _HARDWARE}
    try:
        workload, hardware = Workload(**options), Hardware(**machine)
        costs = coefficients.load(path)
    except InvalidWorkload as error:
        parser.error(f"argument {_flag(error.name)}: {error.reason}")
    except coefficients.InvalidCalibration as error:
        parser.error(str(error))
    prediction = predict(workload, costs)
    used = resources(workload, prediction, hardware)
    sys.stdout.write(report(workload, prediction, used, hardware, costs.origin))
    return 0


_HARDWARE = {
    "cores": (int, "processors of each node"),
    "memory": (float, "gigabytes of memory of each node"),
    "network": (float, "gigabits a second of each node and Redis primary"),
    "redis_memory": (float, "gigabytes of memory of each Redis primary"),
    "database_cores": (int, "processors of the database server"),
    "connections": (int, "connections that a service process accepts"),
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests capacity",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pollers", type=int, default=1000, help="clients that poll")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs running at any time")
    parser.add_argument("--backend", choices=BACKENDS, default="tiered", help="of the cache")
    for kind, table in ((Workload, _WORKLOAD), (Hardware, _HARDWARE)):
        defaults = {field.name: field.default for field in fields(kind)}
        for name, (read, meaning) in table.items():
            parser.add_argument(_flag(name), type=read, default=defaults[name], help=meaning)
    parser.add_argument(
        "--calibration", type=Path, default=CALIBRATION, help="file of measured costs"
    )
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

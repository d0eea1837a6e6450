"""The command that simulates a deployment, and compares it with the model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from loadtests.capacity import coefficients
from loadtests.capacity.arguments import add_workload, flag, workload_of
from loadtests.capacity.model import predict
from loadtests.capacity.simulation import Scene, simulate
from loadtests.capacity.workload import InvalidWorkload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.capacity.model import Prediction
    from loadtests.capacity.simulation import Counted
    from loadtests.capacity.workload import Workload

_LATE = (
    "The queries are a lower limit: after a command that Redis answers too late, a process asks the"
    " database, which is not simulated."
)

DESCRIPTION = """Simulate many service processes on one Redis or a cluster; same seed, same result.

python -m loadtests capacity simulate --pollers 10000 --jobs 1000 --backend redis --nodes 20 --cold
"""


def main(arguments: Sequence[str]) -> int:
    """Simulate one cell and print what was counted; return 1 if nobody was served, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests capacity simulate",
        description=DESCRIPTION,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_workload(parser)
    scene = Scene()
    parser.add_argument("--cold", action="store_true", help="begin with an empty cache")
    parser.add_argument("--for", dest="lasting", type=float, default=scene.seconds, help="seconds")
    parser.add_argument("--seed", type=int, default=scene.seed, help="of all random choices")
    parser.add_argument(
        "--delay", type=float, default=scene.delay, help="seconds of a message to Redis"
    )
    parser.add_argument(
        "--load-seconds", type=float, default=scene.load_seconds, help="that a query takes"
    )
    parser.add_argument(
        "--database-connections",
        type=int,
        default=scene.connections,
        help="queries that the database works on at the same time",
    )
    options = parser.parse_args(arguments)
    try:
        workload = workload_of(options)
        scene = Scene(
            cold=options.cold,
            seconds=options.lasting,
            delay=options.delay,
            load_seconds=options.load_seconds,
            connections=options.database_connections,
            seed=options.seed,
        )
        costs = coefficients.load(options.calibration)
    except InvalidWorkload as error:
        named = {"seconds": "--for", "connections": "--database-connections"}
        parser.error(f"argument {named.get(error.name, flag(error.name))}: {error.reason}")
    except coefficients.InvalidCalibration as error:
        parser.error(str(error))
    outcome = simulate(workload, scene, costs)
    sys.stdout.write(_text(workload, scene, outcome, predict(workload, costs)))
    return 0 if outcome.polls else 1


def _text(workload: Workload, scene: Scene, outcome: Counted, prediction: Prediction) -> str:
    rates = prediction.rates
    rows = [
        ("polls answered", outcome.polls, rates.polls),
        ("updates", outcome.updates, rates.updates),
        ("queries that polls caused", outcome.loads, None if scene.cold else rates.loads),
        ("keys read from Redis", outcome.gets, rates.gets),
        ("scripts run by Redis, without heartbeats", outcome.scripts, None),
        ("entries read again after a change", outcome.refills, rates.refills),
        ("reports of changes, without heartbeats", outcome.reports, None),
    ]
    title = (
        f"{workload.pollers:,} pollers, {workload.jobs:,} jobs, {workload.all_processes:,}"
        f" processes on {workload.backend}, {'cold' if scene.cold else 'warm'},"
        f" {scene.seconds:g} s, seed {scene.seed}; one of {workload.cells:,} cells."
    )
    lines = [
        title,
        "",
        "| | simulated | by the model |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {counted:,} | {'' if rate is None else f'{rate * scene.seconds:,.0f}'} |"
            for name, counted, rate in rows
        ),
        "",
        "| | |",
        "| --- | --- |",
        f"| most queries for one job | {outcome.loads_of_job} |",
        f"| most queries for one job by one process | {outcome.loads_of_job_and_process} |",
        f"| polls that failed because the database took too long | {outcome.failed:,} |",
        f"| polls older than acknowledged | {outcome.stale:,} |",
        f"| last query answered after | {outcome.warm_after:.3f} s |",
        f"| slowest poll | {1000 * outcome.slowest:.1f} ms |",
        f"| longest wait for Redis | {1000 * outcome.redis_wait:.2f} ms |",
        f"| commands that Redis answered too late for the cache | {outcome.late:,} |",
        f"| longest wait for the database | {1000 * outcome.database_wait:.1f} ms |",
    ]
    if outcome.late:
        lines += ["", _LATE]
    return "\n".join(lines) + "\n"

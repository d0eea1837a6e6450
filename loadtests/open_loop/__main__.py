"""Load one service process with many pollers, open loop, while their jobs are updated.

python -m loadtests.open_loop --pollers 10000 --interval 3 --jobs 1000 --backend memory
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import ServerFailed
from benchmarks.backends import NEEDS_REDIS
from benchmarks.machine import surroundings
from benchmarks.process import exit_at_sigterm
from benchmarks.service import ServiceFailed
from loadtests.arguments import count, positive
from loadtests.open_loop import report, trial
from loadtests.open_loop.files import TooManyConnections, allow_files, check_connections
from loadtests.open_loop.load import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run one trial; return 1 if it failed, or missed a goal with `--goals`, else 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        check_connections(options.pollers)
    except TooManyConnections as error:
        parser.error(str(error))
    allow_files()
    plan = Plan(
        pollers=options.pollers,
        interval=options.interval,
        jobs=options.jobs,
        update_interval=None if options.no_updates else options.update_interval,
        conditional=options.etag,
        seed=options.seed,
    )
    warm_up = options.interval if options.warm_up is None else options.warm_up
    around = surroundings()
    try:
        figures = trial.run(plan, options.backend, options.database, options.seconds, warm_up)
    except (ServerFailed, ServiceFailed) as error:
        sys.stderr.write(f"nothing was measured: {error}\n")
        return 1
    failed = report.failures(figures)
    doubts = report.doubts(figures, options.noise)
    missed = report.missed_goals(figures) if options.goals else []
    if options.goals and doubts:
        missed.append("the goals cannot be judged by this run")
    sys.stdout.write(report.text(figures))
    for line in doubts:
        sys.stdout.write(f"{line}\n")
    for line in (*failed, *missed):
        sys.stdout.write(f"FAILED: {line}\n")
    document = {
        "command": f"python -m loadtests.open_loop {shlex.join(arguments)}",
        "surroundings": around,
        **figures,
        "noise_limit": options.noise,
        "noisy": report.is_noisy(figures, options.noise),
        "doubts": doubts,
        "failures": failed,
        "missed_goals": missed,
    }
    results: Path = options.results
    results.mkdir(parents=True, exist_ok=True)
    taken = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = results / f"{taken}-open-loop-{options.backend}-{options.pollers}.json"
    path.write_text(json.dumps(document, indent=1), "utf-8")
    return 1 if failed or missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.open_loop",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pollers", type=count, default=1000, help="each has a connection")
    parser.add_argument("--interval", type=positive, default=3.0, help="seconds between polls")
    parser.add_argument("--jobs", type=count, default=100, help="polled by the pollers in turn")
    parser.add_argument(
        "--update-interval", type=positive, default=10.0, help="seconds between updates of a job"
    )
    parser.add_argument("--no-updates", action="store_true", help="nothing changes")
    parser.add_argument("--seconds", type=positive, default=30.0, help="how long to measure")
    parser.add_argument(
        "--warm-up", type=positive, help="seconds of load before that; default: one interval"
    )
    parser.add_argument("--backend", choices=sorted(NEEDS_REDIS), default="memory")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--etag", action="store_true", help="poll with If-None-Match")
    parser.add_argument("--seed", type=int, default=1, help="of the times of the polls")
    parser.add_argument(
        "--noise",
        type=positive,
        default=0.1,
        help="cores that other processes may use before the run is marked as noisy",
    )
    parser.add_argument(
        "--goals",
        action="store_true",
        help=f"fail unless p99 is below {report.P99_MS:g} ms, during a change below"
        f" {report.P99_CHANGING_MS:g} ms, and statements equal updates plus 1 %% at most",
    )
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parents[1] / "results", help="where they go"
    )
    return parser


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))

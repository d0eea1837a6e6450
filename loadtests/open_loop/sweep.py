"""Repeat the trial with different numbers of pollers, and plot what stays the same.

python -m loadtests.open_loop.sweep --backends memory,tiered --pollers 10,100,1000,10000
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.devservers import ServerFailed
from benchmarks.backends import NEEDS_REDIS
from benchmarks.machine import surroundings
from benchmarks.process import exit_at_sigterm
from benchmarks.service import ServiceFailed
from loadtests.arguments import count, positive
from loadtests.open_loop import plot, report, trial
from loadtests.open_loop.files import TooManyConnections, allow_files, check_connections
from loadtests.open_loop.load import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEADS = (
    *("backend", "pollers", "polls/s", "hits %", "p50 ms", "p99 ms", "p99 ms during a change"),
    *("statements/s", "statements per update", "cores of the service", "cores of others", "doubts"),
)


def main(arguments: Sequence[str]) -> int:
    """Run all trials; return 1 if one of them has failed, else 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        check_connections(max(options.pollers))
    except TooManyConnections as error:
        parser.error(str(error))
    allow_files()
    trials: list[dict[str, Any]] = []
    failed: list[str] = []
    document = {
        "command": f"python -m loadtests.open_loop.sweep {shlex.join(arguments)}",
        "surroundings": surroundings(),
        "noise_limit": options.noise,
        "trials": trials,
        "failures": failed,
    }
    results: Path = options.results
    results.mkdir(parents=True, exist_ok=True)
    taken = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = results / f"{taken}-open-loop-sweep.json"
    points = list(itertools.product(options.backends, options.pollers))
    for number, (backend, pollers) in enumerate(points, 1):
        name = f"{backend}, {pollers} pollers"
        sys.stderr.write(f"trial {number} of {len(points)}: {name}\n")
        plan = Plan(
            pollers=pollers,
            interval=options.interval,
            jobs=options.jobs,
            update_interval=options.update_interval,
            conditional=False,
        )
        try:
            found = trial.run(plan, backend, options.database, options.seconds, options.interval)
        except (ServerFailed, ServiceFailed) as error:
            failed.append(f"{name}: {error}")  # the other trials still count
        else:
            doubts = report.doubts(found, options.noise)
            sys.stdout.write("".join(f"{name}: {doubt}\n" for doubt in doubts))
            trials.append({**found, "doubts": doubts})
            failed += [f"{name}: {failure}" for failure in report.failures(found)]
        path.write_text(json.dumps(document, indent=1), "utf-8")  # in case it is interrupted
    sys.stdout.write(_table(trials))
    for failure in failed:
        sys.stdout.write(f"FAILED: {failure}\n")
    if trials:
        plot.draw(trials, path.with_suffix(".svg"))
    return 1 if failed else 0


def _table(trials: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(_HEADS)} |", f"| {' | '.join(['---'] * len(_HEADS))} |"]
    for each in trials:
        total = sum(each["service"]["statements"].values())
        updates = each["updates"]["acknowledged"]
        processors = each["processors"]
        cells = (
            each["backend"],
            str(each["plan"]["pollers"]),
            f"{each['polls']['answered'] / each['took']:.0f}",
            f"{plot.hit_rate(each):.2f}",
            _milliseconds(each["rows"]["all"]["p50"]),
            _milliseconds(each["rows"]["all"]["p99"]),
            _milliseconds(each["rows"]["during a change"]["p99"]),
            f"{plot.statements_per_second(each):.1f}",
            f"{total / updates:.3f}" if updates else "-",
            f"{processors['roles']['service']:.2f}",
            f"{processors['others'] + processors['stolen']:.2f}",
            ", ".join(doubt.partition(":")[0] for doubt in each["doubts"]) or "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.open_loop.sweep",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backends", type=_backends, default="memory,tiered", help="in turn")
    parser.add_argument("--pollers", type=_counts, default="10,100,1000,10000", help="in turn")
    parser.add_argument("--interval", type=positive, default=3.0, help="seconds between polls")
    parser.add_argument("--jobs", type=count, default=1000, help="polled by the pollers in turn")
    parser.add_argument(
        "--update-interval", type=positive, default=10.0, help="seconds between updates of a job"
    )
    parser.add_argument("--seconds", type=positive, default=30.0, help="for each trial")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument(
        "--noise",
        type=positive,
        default=0.1,
        help="cores that other processes may use before a trial is marked as noisy",
    )
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parents[1] / "results", help="where they go"
    )
    return parser


def _backends(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in NEEDS_REDIS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(NEEDS_REDIS)}")
    return names


def _counts(text: str) -> list[int]:
    return [count(part) for part in text.split(",")]


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))

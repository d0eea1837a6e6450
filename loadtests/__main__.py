"""Run the load test for every backend, mode and number of users, and print tables.

python -m loadtests --backends null,memory,redis --users 1,10,100 --scenario shared
python -m loadtests --backends memory,redis --users 100 --scenario shared --modes plain,etag,wait

python -m loadtests capacity --help: compute what a number of pollers needs
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import signal
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import PostgresServer
from benchmarks.backends import NEEDS_REDIS
from benchmarks.machine import surroundings
from benchmarks.service import ServiceFailed
from loadtests import table, trial
from loadtests.arguments import positive
from loadtests.capacity import command as capacity
from loadtests.pollers.options import POLL_MODES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def main(arguments: Sequence[str]) -> int:
    """Run all load tests; return 1 if a response was wrong or waiting does not pay, else 0."""
    if arguments and arguments[0] == "capacity":
        return capacity.main(arguments[1:])
    options = _parser().parse_args(arguments)
    plan = trial.Plan(
        scenario=options.scenario,
        seconds=options.seconds,
        updates=options.updates,
        interval=options.interval,
    )
    runs = list(itertools.product(options.users, options.backends, options.modes))
    around = surroundings()
    rows, complaints = [], []
    with ExitStack() as stack:
        postgres = None
        if options.database == "postgres":
            postgres = stack.enter_context(PostgresServer())
        for number, (users, backend, mode) in enumerate(runs, 1):
            name = f"{users} users, {backend}, {mode}"
            sys.stderr.write(f"run {number} of {len(runs)}: {name}\n")
            try:
                rows.append(trial.run(plan, mode, backend, users, postgres))
            except (ServiceFailed, trial.LocustFailed) as error:
                complaints.append(f"{name}: {error}")  # the other runs still count
    complaints += [complaint for row in rows for complaint in table.complaints(row)]
    worth, not_worth = table.worth_of_waiting(rows)
    complaints += not_worth
    command = f"python -m loadtests {shlex.join(arguments)}"
    polled = f"a poll every {plan.interval:g} s, unless waiting"
    jobs = f"jobs of {plan.seconds:g} s, {plan.updates} updates each"
    notes = [
        f"Scenario {plan.scenario} on {options.database}: {jobs}, {polled}.",
        f"Taken with: {', '.join(f'{name} {text}' for name, text in around.items())}.",
        f"Command: `{command}`",
        *worth,
        *(f"FAILED: {complaint}" for complaint in complaints),
    ]
    text = table.markdown(rows, notes)
    sys.stdout.write(text)
    results: Path = options.results
    results.mkdir(parents=True, exist_ok=True)
    taken = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = results / f"{taken}-{plan.scenario}-{options.database}"
    stem.with_suffix(".md").write_text(text, "utf-8")
    document = {
        "surroundings": around,
        "command": command,
        "runs": rows,
        "complaints": complaints,
    }
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1), "utf-8")
    return 1 if complaints else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--backends", type=_backends, default="null,memory,redis", help="in turn")
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="postgres")
    parser.add_argument("--users", type=_numbers, default="1,10,100", help="in turn")
    parser.add_argument("--seconds", type=positive, default=120, help="how long a job takes")
    parser.add_argument("--interval", type=positive, default=3, help="seconds between polls")
    parser.add_argument("--updates", type=int, default=20, help="progress reports of a job")
    parser.add_argument(
        "--scenario",
        choices=trial.SCENARIOS,
        default="own",
        help="own: every user polls a job of its own; shared: all poll one",
    )
    parser.add_argument(
        "--modes",
        type=_modes,
        default="plain",
        help="in turn: plain, etag (poll with If-None-Match), wait (and with Prefer: wait)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).with_name("results"), help="where they go"
    )
    return parser


def _backends(text: str) -> list[str]:
    return _names(text, NEEDS_REDIS)


def _modes(text: str) -> list[str]:
    return _names(text, POLL_MODES)


def _names(text: str, known: Collection[str]) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return names


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("there must be at least 1")
    return numbers


def _end(*_: object) -> None:
    sys.exit(143)


if __name__ == "__main__":
    # Stop in order, so that no server is left behind.
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main(sys.argv[1:]))

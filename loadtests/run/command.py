"""Run scenarios on backends, and write a report.

It starts PostgreSQL, Redis, the service and the clients, and stops them again.

python -m loadtests run --quick                                      a demonstration
python -m loadtests run --scenarios users_10,users_100               two scenarios in real time
python -m loadtests run --scenarios etags --backends memory,redis    two backends
python -m loadtests run --quick --workers 2                          two service processes
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import signal
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import PostgresServer, ServerFailed
from app.settings import MOST_WORKERS
from benchmarks.backends import NEEDS_REDIS, ONE_DATABASE_ONLY, ONE_PROCESS_ONLY
from benchmarks.machine import surroundings
from benchmarks.service import ServiceFailed
from loadtests.arguments import count_up_to
from loadtests.report.document import Described, Document
from loadtests.report.files import write, write_json
from loadtests.run.clients import ClientsFailed
from loadtests.run.measuring import measure
from loadtests.run.progress import RunProgress, Schedule
from loadtests.scenarios import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from types import FrameType

    from loadtests.report.document import Measurement
    from loadtests.scenario import Scenario

_AROUND = 5.0  # seconds that a run takes beside its scenario, for the remaining time
_RESULTS = Path(__file__).parents[1] / "results"


class Interrupted(BaseException):
    """A signal asks the command to end. Not an error: nothing but the command handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str]) -> int:
    """Run the command; return 0, 1 if a run failed, or 128 and the number of a signal."""
    parser = _parser()
    options = parser.parse_args(arguments)
    scenarios = _chosen(options.scenarios, quick=options.quick)
    try:
        backends = _able(options.backends, options.workers, options.database)
    except ValueError as error:
        parser.error(str(error))
    runs = list(itertools.product(scenarios, backends))
    document = Document(
        command=f"python -m loadtests run {shlex.join(arguments)}".strip(),
        surroundings=surroundings(),
        quick=options.quick,
        interrupted=True,
        planned=len(runs),
        scenarios=[
            Described(name=one.name, description=one.description, settings=one.settings())
            for one in scenarios
        ],
        runs=[],
        problems=[],
    )
    taken = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    results = Results(document, options.results / taken)
    ended_by = 0
    try:
        with _interruptible():
            _run_all(
                runs, results, workers=options.workers, postgres=options.database == "postgres"
            )
            results.complete()
    except Interrupted as interrupted:
        ended_by = interrupted.number
    except ServerFailed as error:  # PostgreSQL did not start, or did not end
        results.failed(str(error))
    page = write(results.document, results.place)
    problems = results.document.all_problems
    for problem in problems:
        sys.stderr.write(f"FAILED: {problem}\n")
    sys.stdout.write(f"{page}\n")
    if ended_by:
        return 128 + ended_by
    return 1 if problems else 0


def _chosen(names: Sequence[str] | None, *, quick: bool) -> list[Scenario]:
    if not quick:
        return [SCENARIOS[name] for name in names or SCENARIOS]
    shown = [name for name, scenario in SCENARIOS.items() if scenario.in_demonstration]
    return [SCENARIOS[name].compressed() for name in names or shown]


def _able(names: Sequence[str] | None, workers: int, database: str) -> list[str]:
    """Return the backends to run: those that were named, or all that work in such a service.

    Raises:
        ValueError: one that was named does not.
    """
    reasons = {}
    if workers > 1:
        reasons[f"right with one service process only, not with {workers}"] = ONE_PROCESS_ONLY
    if database != "postgres":
        reasons[f"right with PostgreSQL only, not with {database}"] = ONE_DATABASE_ONLY
    left_out = frozenset().union(*reasons.values())
    able = [name for name in NEEDS_REDIS if name not in left_out]
    for reason, unable in reasons.items():
        found = [name for name in names or NEEDS_REDIS if name in unable]
        if found and names:
            choice = ", ".join(able)
            raise ValueError(
                f"argument --backends: {', '.join(found)}: {reason}; choose from {choice}"
            )
        if found:
            sys.stderr.write(f"left out {', '.join(found)}: {reason}\n")
    return list(names or able)


class Results:
    """The results so far, which are also kept as a file.

    Attributes:
        document: what was measured.
        place: the folder of the files.
    """

    def __init__(self, document: Document, place: Path) -> None:
        self.document = document
        self.place = place

    def add(self, run: Measurement) -> None:
        """Keep a finished run."""
        self.document = replace(self.document, runs=[*self.document.runs, run])
        write_json(self.document, self.place)

    def failed(self, problem: str) -> None:
        """Keep the reason why a run has not finished."""
        self.document = replace(self.document, problems=[*self.document.problems, problem])

    def complete(self) -> None:
        """Note that no run is missing."""
        self.document = replace(self.document, interrupted=False)


def _run_all(
    runs: Sequence[tuple[Scenario, str]], results: Results, *, workers: int, postgres: bool
) -> None:
    schedule = Schedule([scenario.job_seconds + _AROUND for scenario, _ in runs])
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer()) if postgres else None
        progress = stack.enter_context(RunProgress(schedule, len(runs)))
        for scenario, backend in runs:
            name = f"{scenario.name} on {backend}"
            with progress.run(name):
                try:
                    results.add(measure(scenario, backend, server, workers=workers))
                # The other runs still count.
                except (ServerFailed, ServiceFailed, ClientsFailed) as error:
                    results.failed(f"{name}: {error}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise `Interrupted` at the first SIGINT or SIGTERM, and ignore further ones.

    The servers then end in order, and what was measured is written.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--scenarios",
        type=_scenarios,
        help=f"names, separated by commas: {', '.join(SCENARIOS)}; by default all,"
        " or some of them with --quick",
    )
    parser.add_argument(
        "--backends",
        type=_backends,
        help=f"names, separated by commas: {', '.join(NEEDS_REDIS)}; by default all that work"
        " with so many workers, and with the database",
    )
    parser.add_argument(
        "--workers",
        type=count_up_to(MOST_WORKERS),
        default=1,
        help=f"processes of the service, up to {MOST_WORKERS}; 1 by default. With more,"
        f" {', '.join(ONE_PROCESS_ONLY)} is left out",
    )
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a demonstration of a few minutes: jobs take seconds, and no goals are judged",
    )
    parser.add_argument(
        "--results", type=Path, default=_RESULTS, help="folder for results; each has its own in it"
    )
    return parser


def _scenarios(text: str) -> list[str]:
    return _names(text, SCENARIOS)


def _backends(text: str) -> list[str]:
    return _names(text, NEEDS_REDIS)


def _names(text: str, known: Collection[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return list(dict.fromkeys(names))

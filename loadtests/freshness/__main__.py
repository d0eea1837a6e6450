"""Start services, break them again and again, and check every response meanwhile.

python -m loadtests.freshness --reads 1000000
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from app.devservers import PostgresServer
from benchmarks.backends import NEEDS_REDIS
from benchmarks.process import exit_at_sigterm
from loadtests.arguments import count, positive
from loadtests.freshness import report
from loadtests.freshness.checker import Kind
from loadtests.freshness.cluster import POSTGRES, Cluster, new_redis
from loadtests.freshness.faults import FAULTS
from loadtests.freshness.older_version import FIRST, NoHistory, older_version
from loadtests.freshness.run import Plan, run
from loadtests.freshness.switches import BREAKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.freshness.incident import Needs

_FEEDS: dict[str, Needs] = {"tiered": "tracking", "postgres": "notifications"}
"""The backends with a change feed, and which one that is."""
_QUICK_READS = 100_000
_BESIDE_OLDER = 600.0  # seconds of load
_OLDER_FRESHNESS = 30.0  # seconds, which the first version does not let anybody choose


def main(arguments: Sequence[str]) -> int:
    """Run the check; return 1 if a promise was broken or the run was incomplete."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.older is not None and not NEEDS_REDIS.get(options.backend):
        parser.error("--older needs a backend that both versions share: redis or tiered")
    possible = _possible(options)
    if impossible := [name for name in options.faults or () if name not in possible]:
        parser.error(
            f"argument --faults: {', '.join(impossible)}: not with these options on"
            f" {options.backend}; choose from {', '.join(possible)}"
        )
    plan = _plan(options)
    sys.stderr.write(f"seed {plan.seed}\n")
    settings = {
        "JOBCACHE_BACKEND": options.backend,
        "JOBCACHE_RENDERER": "simulated",
        "JOBCACHE_CLAIM_SECONDS": "2",
        "FRESHNESS_SECONDS": str(plan.freshness),
        "FRESHNESS_BREAK": options.broken or "",
        "FRESHNESS_VALUES": "1" if options.values else "",
    }
    with ExitStack() as stack:
        # In the main thread, so that they end with it however it ends.
        postgres = stack.enter_context(PostgresServer(settings=POSTGRES))
        redis = None
        if NEEDS_REDIS.get(options.backend):
            redis = stack.enter_context(new_redis())
        older = None
        if plan.older is not None:
            try:
                older = stack.enter_context(older_version(plan.older))
            except NoHistory as error:
                sys.stderr.write(f"{error}\n")
                return 2
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.stderr.write("starting services\n")
            cluster = Cluster(postgres, redis, plan.processes, settings, older)
            try:
                outcome = runner.run(run(plan, cluster))
            except asyncio.CancelledError:
                return 130
    command = f"python -m loadtests.freshness {shlex.join(arguments)}".rstrip()
    return report.publish(plan, outcome, command, options.results)


def _possible(options: argparse.Namespace) -> list[str]:
    """Return the faults of the servers and processes that there will be."""
    have: set[Needs] = {""}
    if NEEDS_REDIS.get(options.backend):
        have.add("redis")
    if options.backend in _FEEDS:
        have.add(_FEEDS[options.backend])
    if options.older is not None:
        have.add("older")
    return [name for name, fault in FAULTS.items() if fault.needs in have]


def _plan(options: argparse.Namespace) -> Plan:
    names = _possible(options)
    if options.older is not None:
        # Those during which no response may be old, and none 5xx.
        names = [
            name
            for name in names
            if FAULTS[name].invariants == "fresh" and not FAULTS[name].takes_source
        ]
    if options.faults is not None:
        names = options.faults
    rounds = 1 if options.quick else 3
    reads = _QUICK_READS if options.quick else 1_000_000
    processes = 1 if options.backend == "memory" else 3
    # With a feed, more than it may lag: or nothing old would be served for that long.
    freshness = 4.0 if options.backend in _FEEDS else 2.0
    seconds = 0.0
    if options.older is not None:
        reads, processes, freshness = _QUICK_READS, 4, _OLDER_FRESHNESS
        seconds = 0.0 if options.quick else _BESIDE_OLDER
    idle = 2.0 if options.quick else 10.0
    return Plan(
        backend=options.backend,
        broken=options.broken,
        older=options.older,
        faults=names,
        rounds=rounds if options.rounds is None else options.rounds,
        reads=reads if options.reads is None else options.reads,
        seconds=seconds if options.seconds is None else options.seconds,
        processes=processes if options.processes is None else options.processes,
        seed=secrets.randbelow(10**9) if options.seed is None else options.seed,
        jobs=options.jobs,
        pollers=options.pollers,
        pause=options.pause,
        freshness=freshness if options.freshness is None else options.freshness,
        calm=options.calm,
        poll_pause=options.poll_pause,
        until=None if options.until is None else Kind(options.until),
        values=options.values,
        idle=idle if options.idle is None else options.idle,
        limit=options.limit,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.freshness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--reads", type=count, help="reads to check; 1000000, or 100000 with --quick")
    add("--seconds", type=positive, help="of load, at least; 600 with --older, but not --quick")
    add(
        "--older",
        metavar="COMMIT",
        nargs="?",
        const=FIRST,
        help=f"half of the processes run this version: the first one, {FIRST}, or another",
    )
    add("--faults", type=_names, help=f"which, in any order; all: {','.join(FAULTS)}")
    add("--rounds", type=count, help="the least of each fault; 3, or 1 with --quick")
    add("--quick", action="store_true", help="each fault once")
    add("--seed", type=int, help="of all choices; printed, another one in every run")
    add("--backend", choices=NEEDS_REDIS, default="redis")
    add("--processes", type=count, help="how many services; 3, of memory 1, with --older 4")
    add("--jobs", type=count, default=12, help="at a time (12)")
    add("--pollers", type=count, default=16, help="clients (16), a quarter of them with ETags")
    add("--pause", type=positive, default=0.3, help="mean seconds between reports (0.3)")
    add(
        "--freshness",
        type=positive,
        help="seconds an entry is fresh; 2, or 4 with a feed, or 30 with --older",
    )
    add("--calm", type=positive, default=1.0, help="seconds of calm around each fault (1)")
    add("--idle", type=positive, help="seconds without load, with a feed; 10, or 2 with --quick")
    add(
        "--poll-pause", type=positive, default=0.0, help="seconds of a poller between two polls (0)"
    )
    add("--values", action="store_true", help="values without a version, too, invalidated")
    add("--until", choices=list(Kind), help="end at the first violation of this kind")
    add("--limit", type=positive, default=3600.0, help="seconds after which it ends anyway (3600)")
    add(
        *("--break",),
        dest="broken",
        choices=BREAKS,
        help="take a guard away: the run must fail. "
        + "; ".join(f"{name}: {what}" for name, what in BREAKS.items()),
    )
    add(
        "--results",
        type=Path,
        default=Path(__file__).parents[1] / "results",
        help="where tables go (loadtests/results)",
    )
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",") if text != "none" else []
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FAULTS)}, or none")
    return names


if __name__ == "__main__":
    # Until there is a loop that takes care of it.
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))

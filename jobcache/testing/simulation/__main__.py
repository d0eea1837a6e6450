"""Explore a backend from the command line; exits with 1 if something is wrong."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from jobcache.backends.compare_and_set import CompareAndSetBackend
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.errors import CacheUnavailable
from jobcache.protocol.capabilities import SupportsPurgeAll
from jobcache.settings import GROUP, CacheSettings, backend_names
from jobcache.testing.invariants import Violation
from jobcache.testing.simulation.configuration import FAULTS, Simulator
from jobcache.testing.simulation.explorer import Explorer

if TYPE_CHECKING:
    from jobcache.backends.registry import Factory
    from jobcache.protocol.backend import CacheBackend


@dataclass(frozen=True)
class _Subject:
    """A backend in a namespace of its own, and a way to lose a cell of it."""

    backend: CacheBackend

    async def evict(self, key: str) -> None:
        backend = self.backend
        if isinstance(backend, NullBackend):
            return  # no process shares anything
        if isinstance(backend, SupportsPurgeAll):
            await backend.purge_all()  # no other cell of the namespace is in use
        elif isinstance(backend, CompareAndSetBackend):
            found = await backend.read(key)
            if found is not None:
                await backend.delete(key, found[1])
        else:
            raise NotImplementedError("the backend has no operation that loses a cell")

    async def elapse(self, seconds: float) -> None:
        raise NotImplementedError(f"no schedule lets {seconds} s pass in the store")


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobcache.testing.simulation",
        description="Run the real cache on a backend through schedules of a few processes. On a"
        " server the keys have a random prefix, so the data of others is safe.",
    )
    add = parser.add_argument
    add("--backend", default="memory", choices=backend_names())
    add("--redis-url", default=CacheSettings.redis_url, help="default: %(default)s")
    add("--memcached-url", default=CacheSettings.memcached_url, help="default: %(default)s")
    add(
        "--processes",
        default="R R W W",
        help='its processes, such as "RRW W"; default: %(default)s',
    )
    add("--faults", type=int, default=2, help="in one schedule; default: %(default)s")
    add("--kinds", default=",".join(sorted(FAULTS)), help="of faults; default: %(default)s")
    add("--reads", type=int, default=1, help="each reader makes; default: %(default)s")
    add("--warm", action="store_true", help="the cell holds an entry at the beginning")
    add("--late-fence", action="store_true", help="writers change the row before they fence")
    add("--guarded", action="store_true", help="each process has a guard")
    add("--tiered", action="store_true", help="each process has a local tier in front, and a feed")
    add("--unnotified", action="store_true", help="on postgres, statements do not notify")
    add("--unversioned", action="store_true", help="documents have no version")
    add("--seed", help="of the search; a new one, printed, if it is left out")
    add("--runs", type=int, default=1000, help="schedules to search; default: %(default)s")
    add("--exhaust", action="store_true", help="play all schedules instead")
    add("--switches", type=int, help="with --exhaust: leave out those with more")
    add("--most", type=int, help="with --exhaust: give up after so many")
    add("--schedule", help="play this one only")
    return parser.parse_args(arguments)


def _explorer(chosen: argparse.Namespace) -> Explorer:
    if chosen.backend == "memory":
        memory = MemoryBackend(clock=lambda: 0.0)  # nothing expires
        snapshot = memory._cell  # noqa: SLF001 - nobody else may look behind a fence
        return Explorer(_Subject(memory), waits=False, snapshot=snapshot)
    if chosen.backend == "postgres":  # the database and the feed are simulated, too
        return Explorer(_Subject(NullBackend()), waits=False)
    (point,) = entry_points(group=GROUP, name=chosen.backend)
    settings = CacheSettings(
        backend=chosen.backend,
        redis_url=chosen.redis_url,
        memcached_url=chosen.memcached_url,
        prefix=f"jobcache-schedules-{secrets.token_hex(4)}:",
    )
    backend = cast("Factory", point.load())(settings)
    if not isinstance(backend, SupportsPurgeAll | CompareAndSetBackend):
        sys.exit(
            f"{chosen.backend} has no operation that loses a cell: call Explorer from code, with"
            " a subject that has one"
        )
    return Explorer(_Subject(backend))


def main(arguments: list[str] | None = None) -> int:
    """Explore, and return 1 if something is wrong, else 0."""
    chosen = _arguments(arguments)
    try:
        simulator = Simulator(
            processes=tuple(chosen.processes.split()),
            faults=chosen.faults,
            kinds=frozenset(filter(None, chosen.kinds.split(","))),
            reads=chosen.reads,
            warm=chosen.warm,
            late_fence=chosen.late_fence,
            guarded=chosen.guarded,
            tiered=chosen.tiered,
            postgres=chosen.backend == "postgres",
            unnotified=chosen.unnotified,
            unversioned=chosen.unversioned,
        )
    except ValueError as error:
        sys.exit(f"--processes, --kinds: {error}")
    logging.getLogger("jobcache").setLevel(logging.CRITICAL)  # a guard reports every fault
    try:
        with _explorer(chosen) as explorer:
            return _explore(explorer, simulator, chosen)
    except CacheUnavailable as error:
        sys.exit(f"{chosen.backend} cannot be explored: {error}")


def _explore(explorer: Explorer, simulator: Simulator, chosen: argparse.Namespace) -> int:
    if chosen.schedule is not None:
        try:
            explorer.replay(replace(simulator, faults=len(chosen.schedule)), chosen.schedule)
        except (Violation, LookupError) as error:
            sys.stdout.write(f"WRONG: {error}\n")
            return 1
        sys.stdout.write("nothing wrong\n")
        return 0
    if chosen.exhaust:
        report = explorer.exhaust(simulator, switches=chosen.switches, most=chosen.most)
    else:
        seed = secrets.token_hex(4) if chosen.seed is None else chosen.seed
        report = explorer.search(simulator, seed=seed, runs=chosen.runs)
        sys.stdout.write(f"seed {seed}: ")
    sys.stdout.write(f"{report}\n")
    return 0 if report.finding is None else 1


if __name__ == "__main__":
    sys.exit(main())

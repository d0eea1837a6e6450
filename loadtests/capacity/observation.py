"""What one measured load has cost, per second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.process_cpu import processor_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from benchmarks.service import Service

_LOOKS = 100
_LOOK = 0.05  # seconds


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Rates and processor time of one load, per second.

    Attributes:
        name: of the load.
        backend: of the service.
        processes: of the service.
        polls: requests of pollers.
        conditional: of these, the ones with `If-None-Match`.
        loads: queries that polls caused.
        refills: on tiered, polls that were answered by Redis, and keys that were read ahead.
        updates: committed updates.
        changes: changes of keys that the feed of tiered has reported to each process.
        gets: keys that Redis was asked for by readers.
        commands: commands that read these keys, one or several each.
        scripts: scripts that Redis ran.
        redis_bytes: bytes that Redis received and sent.
        process_cores: processor time of each service process, on average.
        waiting: of each service process, the time in which it could have run, but had no processor.
        redis_cores: processor time of Redis.
        database_cores: processor time of all processes of the database.
        failures: signs that the machine was too busy for the limits of the cache: operations that
            failed or took too long, polls that did not wait for the end of a change, and feeds
            that were interrupted.
        foreign: processor time of all other processes of the machine, but for this one.
    """

    name: str
    backend: str
    processes: int
    polls: float
    conditional: float
    loads: float
    refills: float
    updates: float
    changes: float
    gets: float
    commands: float
    scripts: float
    redis_bytes: float
    process_cores: float
    waiting: float
    redis_cores: float
    database_cores: float
    failures: float
    foreign: float


class Observer:
    """Reads the counters of all processes at the beginning and at the end of a load.

    Args:
        backend: of the services.
        services: one for each process.
        redis: the client of the Redis server, and the server's process id; None without one.
        database: the first process of the database server.
    """

    def __init__(
        self,
        backend: str,
        services: Sequence[Service],
        redis: tuple[Redis, int] | None,
        database: int,
    ) -> None:
        self._backend = backend
        self._services = services
        self._redis = redis
        self._database = database
        self._processes = [int(service.stats()["process"]) for service in services]
        self.start()

    def start(self) -> None:
        """Begin to observe, once the feeds of all processes are live."""
        for _ in range(_LOOKS):
            if all(_live(service) for service in self._services):
                break
            time.sleep(_LOOK)
        self._before = self._look()
        self._began = time.perf_counter()

    def finish(
        self, name: str, *, polls: int, updates: int, conditional: bool = False
    ) -> Observation:
        """Return what has happened since `start`.

        Args:
            name: of the load.
            polls: that were answered.
            updates: that were acknowledged.
            conditional: whether the polls had `If-None-Match`.
        """
        seconds = time.perf_counter() - self._began
        after = self._look()
        grown = {key: (after[key] - self._before[key]) / seconds for key in after}
        count = len(self._processes)
        feeds = self._backend == "tiered"
        return Observation(
            name=name,
            backend=self._backend,
            processes=count,
            polls=polls / seconds,
            conditional=polls / seconds if conditional else 0.0,
            loads=grown["loads"],
            refills=grown["remote hits"] + grown["reads ahead"] if feeds else 0.0,
            updates=updates / seconds,
            changes=grown["changed"] if feeds else 0.0,
            gets=grown["lookups"] - grown["scripts"],
            commands=grown["commands"] - grown["scripts"],  # each script reads its cell
            scripts=grown["scripts"],
            redis_bytes=grown["bytes"],
            process_cores=grown["service"] / count,
            waiting=grown["waiting"] / count,
            redis_cores=grown["redis"],
            database_cores=grown["database"],
            failures=grown["failures"],
            foreign=max(
                0.0,
                grown["machine"]
                - sum(grown[role] for role in ("service", "redis", "database", "own")),
            ),
        )

    def _look(self) -> dict[str, float]:
        times = psutil.cpu_times()
        found = {
            "service": sum(map(processor_seconds, self._processes)),
            "waiting": sum(map(waiting_seconds, self._processes)),
            "database": sum(map(processor_seconds, family(self._database))),
            "machine": times.user + times.nice + times.system,
            "own": time.process_time(),
            **dict.fromkeys(("redis", "lookups", "commands", "scripts", "changed", "bytes"), 0.0),
        }
        statistics = [service.stats()["statistics"] for service in self._services]
        found["loads"] = sum(each["database_loads"] for each in statistics)
        found["failures"] = sum(
            each["errors"] + each["bypasses"] + (each["feed"] or {}).get("interruptions", 0)
            for each in statistics
        )
        found["remote hits"] = sum(each["tier_hits"].get("redis", 0) for each in statistics)
        found["reads ahead"] = sum(each["reads_ahead"] or 0 for each in statistics)
        if self._redis is not None:
            client, process = self._redis
            found |= _redis_counters(client)
            found["redis"] = processor_seconds(process)
        return found


def _live(service: Service) -> bool:
    feed = service.stats()["statistics"]["feed"]
    return feed is None or feed["state"] == "live"


def _redis_counters(client: Redis) -> dict[str, float]:
    found: Any = client.info("stats")
    commands: Any = client.info("commandstats")

    def calls(*names: str) -> float:
        return float(sum(commands.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names))

    return {
        "lookups": found["keyspace_hits"] + found["keyspace_misses"],
        "commands": calls("get", "mget"),
        "scripts": calls("evalsha", "eval"),
        "changed": calls("set", "del"),
        "bytes": found["total_net_input_bytes"] + found["total_net_output_bytes"],
    }


def family(process: int) -> list[int]:
    """Return the process and its descendants."""
    first = psutil.Process(process)
    return [first.pid, *(child.pid for child in first.children(recursive=True))]


def waiting_seconds(process: int) -> float:
    """Return the time that the threads of a process have waited for a processor, in seconds.

    It is 0 if the kernel does not count it.
    """
    try:
        tasks = Path(f"/proc/{process}/task").iterdir()
        return sum(int((task / "schedstat").read_text("ascii").split()[1]) for task in tasks) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0

"""Measure what an outage of Redis costs pollers, and how soon it is over.

    python -m benchmarks.outage --rounds 8

Two services run on one PostgreSQL under the same open-loop load: one without a cache, one with its
own Redis. Each has two processes. Writes go to both in turn and polls to the first, so half of the
polled versions were written by the other process. In each round Redis is taken away for some
seconds: `hang` freezes its process, `kill` ends it and starts another one.

The median of the rounds decides, because the differences are a few milliseconds and a busy machine
may delay a single round. One wrong response is a failure, however. Polls of both services alternate
within milliseconds, so a delay of the machine affects both, and each round compares them. Comparing
every other poll of the service without a cache with the rest shows how large a difference by chance
may be.

The exit status is 1 if a limit was not kept, and 2 if the run is inconclusive.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import math
import os
import shlex
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil
import uvloop

from app.devservers import PostgresServer, RedisServer, ServerFailed
from benchmarks.machine import surroundings
from benchmarks.open_loop import Side, steady_load
from benchmarks.process import exit_at_sigterm
from benchmarks.service import Service, ServiceFailed
from jobcache.resilience.guarded_backend import GuardedBackend
from loadtests import percentiles
from loadtests.arguments import count, positive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.open_loop import Poll

OPEN_WITHIN_MS = 300.0
"""From the beginning of an outage to the breaker being open."""
P99_RATIO = 1.2
"""Of polls with the breaker open, to polls of the service without a cache at the same time."""
HITS_WITHIN_S = 2.0
"""From Redis being back to hits."""
DEADLINE_MS: float = 1000 * inspect.signature(GuardedBackend).parameters["deadline"].default
"""What a poll may lose by Redis hanging, beside its database load."""

FAULTS = {
    "hang": (RedisServer.pause, RedisServer.resume),
    "kill": (RedisServer.kill, RedisServer.start),
}
"""What takes Redis away, and what brings it back."""

_LOOK = 0.05  # seconds between two evaluations of the polls
_STEADY = 20  # polls in a row, of which one may miss, because a writer may be active
_PROMPT = "A fox crosses a frozen river at night, meets a bear and shares its fish."


@dataclass(frozen=True, slots=True)
class Round:
    """One outage. All times are medians or extremes of that round's polls, in milliseconds.

    Attributes:
        fault: one of `FAULTS`.
        open_after_ms: from the beginning of the outage to the breaker being open.
        longest_ms: the longest poll that was under way during the outage.
        null_longest_ms: the same, of the service without a cache.
        p50_ms, p99_ms: of polls from the breaker being open to the end of the outage.
        null_p50_ms, null_p99_ms: the same, of the service without a cache.
        null_apart: how many times the p99 of every other poll of that service is that of the
            others, or they are its: at least 1, and by chance only.
        compared: how many polls these percentiles are of.
        cpu_ratio: processor time of the polled process in the second half of the outage, to that
            of the polled process without a cache.
        closed_after_s: from the end of the outage to the breaker being closed; 0 if a server that
            was started answered the breaker before its start was reported.
        hit_after_s: from there to the first answer that was a hit; None if there was none.
        steady_after_s: and to the first from which on nearly all were.
    """

    fault: str
    open_after_ms: float
    longest_ms: float
    null_longest_ms: float
    p50_ms: float
    p99_ms: float
    null_p50_ms: float
    null_p99_ms: float
    null_apart: float
    compared: int
    cpu_ratio: float
    closed_after_s: float
    hit_after_s: float | None
    steady_after_s: float | None


class Untold(Exception):  # noqa: N818 - says what is the matter
    """The run is inconclusive."""


# --- one run ---


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds; return them, and the counts over all of them.

    Raises:
        ServiceFailed: a service did not start or did not answer.
        Untold: nothing could be compared.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer())
        redis = stack.enter_context(RedisServer())
        services = {
            name: [stack.enter_context(Service(_settings(name, postgres, redis))) for _ in range(2)]
            for name in _created(postgres, ("null", "redis"))
        }
        for pair in services.values():
            for service in pair:
                service.wait_until_ready()
        null, cached = (
            Side(
                name,
                polled=pair[0].port,
                written=[service.port for service in pair],
                jobs=[*pair[0].rendering(options.jobs, _PROMPT)],
                seed=options.seed,
            )
            for name, pair in services.items()
        )
        polled = [services[name][0] for name in ("null", "redis")]
        outages = _Outages(redis, polled, (null, cached), curt=options.curt)
        rounds = []
        async with steady_load([null, cached], options.polls, options.writes):
            await outages.watch(time.monotonic(), options.after)
            for number in range(options.rounds):
                for fault in options.faults:
                    rounds.append(await outages.one(fault, options.seconds, options.after))
                    sys.stderr.write(f"round {number + 1} of {options.rounds}: {rounds[-1]}\n")
    return {
        "rounds": [asdict(one) for one in rounds],
        "sides": {side.name: _counted(side) for side in (null, cached)},
    }


class _Outages:
    """Outages of the Redis behind one of two sides.

    Args:
        redis: the server that is taken away.
        polled: the processes that are polled, the one without a cache first.
        sides: their sides, in the same order.
        curt: whether to watch only until hits are steady.
    """

    def __init__(
        self, redis: RedisServer, polled: Sequence[Service], sides: Sequence[Side], *, curt: bool
    ) -> None:
        self._curt = curt
        self._redis = redis
        self._service = polled[1]
        self._processes = [psutil.Process(service.stats()["process"]) for service in polled]
        self._null, self._cached = sides

    async def one(self, fault: str, seconds: float, after: float) -> Round:
        """Take Redis away for the given seconds, then watch for `after` seconds."""
        take, bring_back = FAULTS[fault]
        if not self._cached.polls[-1].hit or (await self._breaker())[0] != "closed":
            raise Untold(f"before a {fault}, polls were not answered from the cache")
        began = time.monotonic()
        await asyncio.to_thread(take, self._redis)
        await asyncio.sleep(seconds / 2)
        computed = self._computed()
        await asyncio.sleep(seconds / 2)
        null_computed, own_computed = (
            b - a for a, b in zip(computed, self._computed(), strict=True)
        )
        state, opened = await self._breaker()
        if state != "open":
            raise Untold(f"the breaker was not open at the end of a {fault} of {seconds:g} s")
        ended = time.monotonic()
        await asyncio.to_thread(bring_back, self._redis)
        back = time.monotonic() if fault == "kill" else ended
        await self.watch(back, after)
        state, closed = await self._breaker()
        if state != "closed":
            raise Untold(f"the breaker was not closed {after:g} s after a {fault}")
        own = [poll.took for poll in _due(self._cached.polls, opened, ended)]
        null = [poll.took for poll in _due(self._null.polls, opened, ended)]
        first, steady = _hits([poll for poll in self._cached.polls if poll.due >= back])
        return Round(
            fault,
            open_after_ms=1e3 * (opened - began),
            longest_ms=1e3 * max(_under_way(self._cached.polls, began, ended)),
            null_longest_ms=1e3 * max(_under_way(self._null.polls, began, ended)),
            p50_ms=1e3 * percentile(own, 50),
            p99_ms=1e3 * percentile(own, 99),
            null_p50_ms=1e3 * percentile(null, 50),
            null_p99_ms=1e3 * percentile(null, 99),
            null_apart=_apart(percentile(null[::2], 99), percentile(null[1::2], 99)),
            compared=len(own),
            cpu_ratio=own_computed / null_computed,
            closed_after_s=max(closed - back, 0.0),
            hit_after_s=None if first is None else first - back,
            steady_after_s=None if steady is None else steady - back,
        )

    async def watch(self, since: float, seconds: float) -> None:
        """Watch polls for the given seconds; if `curt`, only until hits are steady."""
        deadline = time.monotonic() + seconds
        while self._curt and time.monotonic() < deadline:
            polls = [poll for poll in self._cached.polls if poll.due >= since]
            if _hits(polls)[1] is not None and all(poll.hit for poll in polls[-_STEADY:]):
                return
            await asyncio.sleep(_LOOK)
        await asyncio.sleep(deadline - time.monotonic())

    def _computed(self) -> list[float]:
        """Return the processor time of the polled processes so far, in seconds."""
        times = (process.cpu_times() for process in self._processes)
        return [used.user + used.system for used in times]

    async def _breaker(self) -> tuple[str, float]:
        """Return the breaker's state and the time of its last change, to about a millisecond."""
        asked = time.monotonic()
        breaker = (await asyncio.to_thread(self._service.stats))["statistics"]["breaker"]
        return breaker["state"], (asked + time.monotonic()) / 2 - breaker["age_seconds"]


def _created(postgres: PostgresServer, names: Iterable[str]) -> Iterable[str]:
    for name in names:
        postgres.create_database(name)
        yield name


def _settings(backend: str, postgres: PostgresServer, redis: RedisServer) -> dict[str, str]:
    return {
        "JOBCACHE_BACKEND": backend,
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.url(backend),
    }


# --- evaluation of polls ---


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the percentile of `values`.

    Raises:
        Untold: there are none.
    """
    found = percentiles.percentile(values, percent)
    if found is None:
        raise Untold("there was no poll to compare")
    return found


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _due(polls: Iterable[Poll], since: float, until: float) -> list[Poll]:
    return [poll for poll in polls if since <= poll.due < until]


def _under_way(polls: Iterable[Poll], since: float, until: float) -> list[float]:
    return [poll.took for poll in polls if poll.due < until and poll.due + poll.took >= since]


def _hits(polls: Sequence[Poll]) -> tuple[float | None, float | None]:
    """Return the times of the first hit, and of the first after which nearly all polls hit."""
    answered = sorted(polls, key=lambda poll: poll.due + poll.took)
    hits = [n for n, poll in enumerate(answered) if poll.hit]
    steady = [n for n in hits if sum(p.hit for p in answered[n : n + _STEADY]) >= _STEADY - 1]
    first, on = (answered[found[0]] if found else None for found in (hits, steady))
    return first and first.due + first.took, on and on.due + on.took


def _counted(side: Side) -> dict[str, Any]:
    took = [poll.took for poll in side.polls]
    return {
        "polls": len(took),
        "hits": sum(poll.hit for poll in side.polls),
        "stale": sum(poll.stale for poll in side.polls),
        "errors": sum(poll.status >= 500 for poll in side.polls),
        "others": sum(
            poll.status not in range(200, 300) and poll.status < 500 for poll in side.polls
        ),
        "writes": len(side.writes),
        "unacknowledged": side.unacknowledged,
        "p99.9_ms": 1e3 * percentile(took, 99.9),
        "longest_ms": 1e3 * max(took),
        "longest_write_ms": 1e3 * max(side.writes, default=0.0),
    }


# --- the verdict, and the table ---


def broken_limits(result: dict[str, Any]) -> list[str]:
    """Return a sentence for each limit that was not kept."""
    null, cached = result["sides"]["null"], result["sides"]["redis"]
    sentences = []
    sentences += [
        f"answers that were {words}: {cached[name]} of {cached['polls']}"
        for name, words in _WRONG.items()
        if cached[name]
    ]
    for fault, rounds in _by_fault(result).items():
        longest = median(_all(rounds, "longest_ms"))
        if longest > DEADLINE_MS + null["longest_ms"]:
            sentences.append(
                f"{fault}: the longest poll took {longest:.0f} ms, more than {DEADLINE_MS:.0f} ms"
                f" beyond the longest without a cache, {null['longest_ms']:.0f} ms"
            )
        opened = median(_all(rounds, "open_after_ms"))
        if opened > OPEN_WITHIN_MS:
            sentences.append(
                f"{fault}: the breaker was open after {opened:.0f} ms, not {OPEN_WITHIN_MS:.0f}"
            )
        ratio = median(_ratios(rounds, "p99_ms"))
        if ratio > P99_RATIO:
            sentences.append(f"{fault}: p99 was {ratio:.2f} x null's, not {P99_RATIO:g} x")
        for name, what in (("hit_after_s", "a hit"), ("steady_after_s", "steady hits")):
            resumed = [math.inf if one[name] is None else one[name] for one in rounds]
            if median(resumed) > HITS_WITHIN_S:
                sentences.append(
                    f"{fault}: {what} took {median(resumed):.1f} s, not {HITS_WITHIN_S:g} s"
                )
    return [f"FAILED: {sentence}." for sentence in sentences]


_WRONG = {"errors": "5xx, or none at all", "others": "neither 2xx nor 5xx", "stale": "stale"}


def _by_fault(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in result["rounds"]:
        found.setdefault(one["fault"], []).append(one)
    return found


def _all(rounds: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [one[name] for one in rounds]


def _ratios(rounds: Iterable[dict[str, Any]], name: str) -> list[float]:
    return [one[name] / one[f"null_{name}"] for one in rounds]


def report(result: dict[str, Any]) -> list[str]:
    """Return the table and its notes, in Markdown."""
    null, cached = result["sides"]["null"], result["sides"]["redis"]
    outages = _by_fault(result)

    def row(what: str, limit: str, tell: Callable[[list[dict[str, Any]]], str]) -> str:
        return f"| {' | '.join([what, limit, *map(tell, outages.values())])} |"

    def spread(name: str, style: str) -> Callable[[list[dict[str, Any]]], str]:
        def tell(rounds: list[dict[str, Any]]) -> str:
            found = [math.inf if one[name] is None else one[name] for one in rounds]
            return _spread(found, style)

        return tell

    def of_null(name: str) -> Callable[[list[dict[str, Any]]], str]:
        return lambda rounds: _spread(_ratios(rounds, name), ".2f")

    longest = f"{DEADLINE_MS:.0f} + {null['longest_ms']:.0f}"
    head = [f"{fault}, {len(rounds)} rounds" for fault, rounds in outages.items()]
    return [
        "## Outages of Redis (median of the rounds, least to most)",
        "",
        f"| {' | '.join(['', 'limit', *head])} |",
        f"|{' --- |' * (2 + len(outages))}",
        row("longest poll, ms", longest, spread("longest_ms", ".0f")),
        row("the same without a cache, ms", "", spread("null_longest_ms", ".0f")),
        row("breaker open after, ms", f"{OPEN_WITHIN_MS:.0f}", spread("open_after_ms", ".0f")),
        row("p50 from then on, ms", "", spread("p50_ms", ".2f")),
        row("p50, times null", "", of_null("p50_ms")),
        row("p99 from then on, ms", "", spread("p99_ms", ".2f")),
        row("p99, times null", f"{P99_RATIO:g}", of_null("p99_ms")),
        row("p99 of half of null's, times the rest's", "", spread("null_apart", ".2f")),
        row("processor time, times null", "", spread("cpu_ratio", ".2f")),
        row("breaker closed after, s", "", spread("closed_after_s", ".2f")),
        row("first hit after, s", f"{HITS_WITHIN_S:g}", spread("hit_after_s", ".2f")),
        row("steady hits after, s", f"{HITS_WITHIN_S:g}", spread("steady_after_s", ".2f")),
        "",
        "| all polls | null | redis |",
        "| --- | --- | --- |",
        *(
            f"| {what} | {null[name]:{style}} | {cached[name]:{style}} |"
            for what, name, style in _COUNTS
        ),
        "",
        f"Taken with: {', '.join(f'{k} {v}' for k, v in result['surroundings'].items())}.",
        f"Command: `{result['command']}`",
        f"Load of the machine: {result['load'][0]:.1f} before, {result['load'][1]:.1f} at the end.",
    ]


_COUNTS = [
    ("polls", "polls", "d"),
    ("of them hits", "hits", "d"),
    ("answered 5xx, or not at all", "errors", "d"),
    ("answered otherwise, but not 2xx", "others", "d"),
    ("stale", "stale", "d"),
    ("p99.9, ms", "p99.9_ms", ".1f"),
    ("longest, ms", "longest_ms", ".0f"),
    ("writes acknowledged", "writes", "d"),
    ("writes not acknowledged", "unacknowledged", "d"),
    ("longest write, ms", "longest_write_ms", ".0f"),
]


def _spread(values: Sequence[float], style: str) -> str:
    return f"{median(values):{style}} ({min(values):{style}} to {max(values):{style}})"


def main(arguments: Sequence[str]) -> int:
    """Run the measurement and print the table; return the exit status."""
    options = _parser().parse_args(arguments)
    around, load = surroundings(), os.getloadavg()[0]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(run(options))
    except (ServerFailed, ServiceFailed, Untold) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    result |= {
        "surroundings": around,
        "command": f"python -m benchmarks.outage {shlex.join(arguments)}".rstrip(),
        "load": [load, os.getloadavg()[0]],
        "broken": broken_limits(result),
    }
    sys.stdout.write("\n".join([*report(result), "", *result["broken"]]).rstrip() + "\n")
    results: Path = options.results
    results.mkdir(parents=True, exist_ok=True)
    taken = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    (results / f"{taken}-outage.json").write_text(json.dumps(result, indent=1), "utf-8")
    return 1 if result["broken"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=count, default=8, help="of each fault; 8")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seconds", type=positive, default=8.0, help="an outage lasts; 8")
    parser.add_argument("--after", type=positive, default=4.0, help="seconds watched after it; 4")
    parser.add_argument("--curt", action="store_true", help="watch only until hits are steady")
    parser.add_argument("--polls", type=positive, default=100.0, help="a second on each side; 100")
    parser.add_argument("--writes", type=positive, default=4.0, help="a second on each side; 4")
    parser.add_argument("--jobs", type=count, default=20, help="on each side; 20")
    parser.add_argument("--seed", type=int, default=1, help="of the order of jobs; 1")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).with_name("results"), help="for the JSON"
    )
    return parser


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))

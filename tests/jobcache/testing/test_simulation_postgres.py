"""Backend "postgres" in every schedule of small simulations, and in some of larger ones.

The database is the only remote: loads, commits, notifications in the order of the commits, cuts of
the feed, a silent feed, a failover, and writers that die.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import pytest

from jobcache.testing.simulation import Components, Explorer, Simulator
from jobcache.testing.simulation.__main__ import main
from tests.jobcache.testing.broken_postgres import BROKEN, SUPERFLUOUS, postgres_parts
from tests.jobcache.testing.exploring import found, in_order, simulator
from tests.subjects import NullSubject


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "jobcache")  # a feed tells of every interruption


def explore(parts: Components | None = None) -> Explorer:
    return Explorer(NullSubject(), waits=False, parts=parts)


def listening(processes: str, faults: int, kinds: str = "feed silence", **ways: Any) -> Simulator:
    return simulator(processes, faults, kinds, postgres=True, **ways)


# With notifications of their own transactions, and all kinds of faults that there are.
NOTIFIED = "evict age die cancel load commit feed silence failover"
# A notification after the commit may also be lost, or go to the former primary.
LATER = f"{NOTIFIED} lose"


@pytest.mark.parametrize(
    ("small", "states"),
    [
        (listening("RW", 0), 50),
        (listening("RR W", 0, warm=True), 30),
        (listening("R W", 1, warm=True), 300),
        (listening("RW", 1, "die commit cancel evict", warm=True), 100),
        (listening("RW", 1, "die commit lose", unnotified=True), 100),
        (listening("RW", 0, unversioned=True, reads=2), 50),
        *(
            pytest.param(small, states, marks=pytest.mark.long)
            for small, states in [
                (listening("RW", 1, warm=True), 1000),
                (listening("R W", 2, warm=True), 1000),
                (listening("R W", 2, "feed silence failover", warm=True), 2000),
                (listening("R W W", 1, reads=2), 1000),
                (listening("RW", 1, unversioned=True), 1000),
                (listening("RRW", 0, reads=2), 500),
            ]
        ),
    ],
    ids=str,
)
def test_no_schedule_of_few_processes_goes_wrong(small: Simulator, states: int) -> None:
    with explore() as explorer:
        report = explorer.exhaust(small)
    in_order(report)
    assert report.complete
    assert report.states > states, "it is a simulation of some size"


LARGE = [
    listening("RRW RW", 4, NOTIFIED, warm=True, reads=2),
    listening("MRW RW", 4, NOTIFIED),
    listening("RW W R", 4, NOTIFIED, late_fence=True),
    listening("RRW RW", 4, LATER, unnotified=True, warm=True),
    listening("RRW RW", 4, LATER, unversioned=True, warm=True),
    listening("RW R", 4, "feed silence failover", warm=True, reads=2),
]


@pytest.mark.parametrize(
    "seed",
    [pytest.param("fixed", marks=pytest.mark.long), secrets.token_hex(4)],
    ids=["fixed", "fresh"],
)
@pytest.mark.parametrize("large", LARGE, ids=str)
def test_no_schedule_found_at_random_goes_wrong(large: Simulator, seed: str, *, long: bool) -> None:
    with explore() as explorer:
        in_order(explorer.search(large, seed=seed, runs=1000 if long else 40))


CUT = listening("R W", 1)
WARM = listening("R W", 0, warm=True)
WARM_CUT = listening("R W", 1, warm=True)
SEVERAL = listening("MR W", 0)
OWN = listening("RW", 0, warm=True, reads=2)
PURGES = listening("RW", 0, unversioned=True, warm=True, reads=2)
UNNOTIFIED = listening("R W", 1, "commit lose", unnotified=True, warm=True)
FAILOVER = listening("R W", 2, "feed failover", warm=True)

FOUND_IN: dict[str, Simulator] = {
    "a report empties the cell": WARM,
    "a report removes the lease of a load": listening("R W", 0),
    "a result removes the lease of another load": SEVERAL,
    "a result removes an older entry": SEVERAL,
    "a result is published even while the feed is not live": CUT,
    "a writer acknowledges what this process cannot overlook": OWN,
    "a writer waits for its report": OWN,
    "a writer whose report does not come empties the cell": OWN,
    "the entry of a write is stored over the lease that its report has taken": listening(
        "RW W", 0, warm=True
    ),
    "only what is part of the commit takes the lease": listening(
        "RW W", 0, unnotified=True, warm=True
    ),
    "the notification is part of the commit": listening("R RW", 1, "die", warm=True),
    "a notification that the transaction has not sent is sent late": listening(
        "R RW", 0, warm=True
    ),
    "without it, the backend notifies": UNNOTIFIED,
    "after a commit of unknown result, the backend notifies": UNNOTIFIED,
    "a notification that failed is repeated": UNNOTIFIED,
    "a notification that only a former primary has accepted is repeated": listening(
        "R W", 3, "feed silence failover", unnotified=True, warm=True
    ),
    "a purge notifies": listening("R W", 0, unversioned=True, warm=True),
    "a purge empties the cell": PURGES,
    "a purge waits for its report": PURGES,
    "a break ends the proof at once": WARM_CUT,
    "no entry is served while the feed is not live": WARM_CUT,
    "an interruption removes entries": WARM_CUT,
    "an interruption removes leases": CUT,
    "an interruption removes leases, or none is taken meanwhile": CUT,
    "the proof counts from the sending": listening("R W", 3, "silence", warm=True),
    "the first heartbeat is sent once LISTEN is answered": CUT,
    "the feed is live after a heartbeat": FAILOVER,
    "heartbeats are sent from the pool": FAILOVER,
    "another server has the pool renewed": FAILOVER,
    "a missing heartbeat has the pool renewed": FAILOVER,
    "a pooler is refused, or heartbeats expose it": listening("R W", 2, "feed"),
}

# By guard, a seed whose first schedules show that it is missing. Seeds only save time.
SEEDS = {
    "a notification that only a former primary has accepted is repeated": 3,
    "another server has the pool renewed": 62,
    "the feed is live after a heartbeat": 62,
    "the proof counts from the sending": 271,
    "only what is part of the commit takes the lease": 2,
    "the first heartbeat is sent once LISTEN is answered": 1234,
    "an interruption removes leases, or none is taken meanwhile": 655,
    "a break ends the proof at once": 13,
    "heartbeats are sent from the pool": 62,
    "a pooler is refused, or heartbeats expose it": 73,
}


@pytest.mark.parametrize("guard", BROKEN)
def test_every_guard_that_is_missing_is_found(guard: str) -> None:
    where = FOUND_IN[guard]
    seeds = {(guard, str(where)): SEEDS[guard]} if guard in SEEDS else {}
    with explore(postgres_parts(BROKEN[guard])) as explorer:
        found(explorer, seeds, guard, (where, None))


@pytest.mark.long
@pytest.mark.parametrize("guard", SUPERFLUOUS)
def test_a_guard_that_serves_another_end_is_not_needed_for_coherence(guard: str) -> None:
    with explore(postgres_parts(SUPERFLUOUS[guard])) as explorer:
        in_order(explorer.exhaust(listening("R W", 2, warm=True)))
        in_order(explorer.search(LARGE[0], seed=guard, runs=500))


def test_the_command_explores_the_feed_of_postgresql(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--backend", "postgres", "--processes", "R W", "--warm"]
    assert main([*arguments, "--exhaust", "--faults", "0"]) == 0
    assert "R W warm postgres, 0 faults: " in capsys.readouterr().out
    schedule = (
        "W0 begins -> W0 update -> R0's feed is cut -> W0 commit -> R0 connects -> R0 listens"
    )
    assert main([*arguments, "--schedule", schedule]) == 0
    assert main([*arguments, "--unnotified", "--runs", "10", "--seed", "1"]) == 0

"""The real cache in every schedule of small simulations, and in some of larger ones.

What a failure prints is a schedule: `Explorer.replay` plays it again, and so does
`python -m jobcache.testing.simulation --processes "…" --schedule "…"`.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from app.devservers.memcached import MemcachedServer
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.redis import namespace
from jobcache.testing.simulation import GUARDS, Components, Explorer, Simulator, Violation
from jobcache.testing.simulation.__main__ import main
from tests.jobcache.testing.broken import (
    BROKEN_SCRIPTS,
    BROKEN_TABLE,
    BROKEN_UNVERSIONED_TABLE,
    CACHE,
    FLIGHT,
    GUARD,
    TIERED,
    UNVERSIONED_CACHE,
    UNVERSIONED_GUARD,
    Fault,
    broken_table,
    memory_on,
    parts,
)
from tests.jobcache.testing.exploring import found, in_order, simulator
from tests.subjects import MemorySubject, NullSubject, RedisSubject


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "jobcache")  # a guard tells of every fault


def in_memory(
    kind: type[MemoryBackend] = MemoryBackend, parts: Components | None = None
) -> Explorer:
    subject = MemorySubject(kind)
    return Explorer(subject, waits=False, snapshot=subject.backend._cell, parts=parts)


@contextmanager
def on_redis(url: str) -> Iterator[Explorer]:
    subject = RedisSubject(url)
    explorer = Explorer(subject, snapshot=lambda key: subject.raw.get(f"test:{key}"))
    with subject.raw, explorer:
        yield explorer


# --- whole simulations ---


@pytest.mark.parametrize(
    ("small", "states"),
    [
        (simulator("R W", 1), 800),
        (simulator("R W", 2, "evict die"), 300),
        (simulator("R W", 1, warm=True, late_fence=True), 500),
        (simulator("RW", 1, warm=True), 800),
        (simulator("R R W", 0), 500),
        (simulator("RRW", 0, warm=True), 500),
        (simulator("R W W", 0), 400),
        (simulator("W W", 1, "evict die lose commit cancel", warm=True), 300),
        (simulator("R W", 1, "lose", guarded=True, warm=True), 1000),
        (simulator("R R W", 0, tiered=True, warm=True), 500),
        (simulator("RW", 1, "evict cancel", tiered=True, warm=True), 400),
        (simulator("R W", 1, unversioned=True), 300),
        (simulator("R R W", 0, unversioned=True), 400),
        (simulator("RRW", 0, unversioned=True), 700),
        (simulator("R R W", 1, "age", unversioned=True, warm=True), 100),
        (simulator("R W", 1, "lose", unversioned=True, guarded=True), 500),
        (simulator("R W", 1, "feed", unversioned=True, tiered=True), 400),
        *(
            pytest.param(small, states, marks=pytest.mark.long)
            for small, states in [
                (simulator("R W", 2, "evict die lose late"), 1000),
                (simulator("R W", 1, "feed", tiered=True), 1000),
                (simulator("R R W", 1, unversioned=True), 2000),
                (simulator("RW R", 1, "evict cancel", tiered=True, unversioned=True), 500),
                (simulator("RRW", 0), 1000),
                (simulator("R W W", 1, "evict die"), 1000),
                (simulator("RW R", 0, tiered=True, warm=True), 500),
                (simulator("RR W", 0, tiered=True, warm=True), 5000),
                (simulator("R W", 1, "feed slow", tiered=True), 1000),
                (simulator("RW", 1, "evict die cancel feed", tiered=True, warm=True), 1000),
                (simulator("R W", 1, "feed lose", tiered=True, warm=True, guarded=True), 1000),
            ]
        ),
    ],
    ids=str,
)
def test_no_schedule_of_few_processes_goes_wrong(small: Simulator, states: int) -> None:
    with in_memory() as explorer:
        report = explorer.exhaust(small)
    in_order(report)
    assert report.complete
    assert report.states > states, "it is a simulation of some size"


@pytest.mark.parametrize(
    "large",
    [
        simulator("R W W", 1),
        simulator("RRW", 1, warm=True),
        simulator("RW W", 1, "time lose evict", guarded=True),
        simulator("MR W", 2, "feed slow", tiered=True, warm=True),
    ],
    ids=str,
)
def test_no_schedule_with_few_switches_goes_wrong(large: Simulator, *, long: bool) -> None:
    """No switch in the short run: an actor goes on as long as it can."""
    with in_memory() as explorer:
        if long:
            in_order(explorer.exhaust(large, switches=1, most=2500))
        in_order(explorer.exhaust(large, switches=0, most=2500 if long else 400))


# --- larger simulations, at random ---

LARGE = [
    simulator("R R W W", 4),
    simulator("RRWW", 4, warm=True),
    simulator("RRW W", 3, late_fence=True),
    simulator("RW RW", 4, warm=True),
    simulator("RRWW", 4, warm=True, guarded=True),
    simulator("RW RW", 4, guarded=True, late_fence=True),
    simulator("R R W W", 3, warm=True, guarded=True),
    simulator("RMW W", 4, tiered=True, late_fence=True),
    simulator("RMW RW", 4, tiered=True, warm=True),
    simulator("RRW RW", 4, tiered=True, warm=True, guarded=True),
    simulator("RRW R W", 4, unversioned=True),
    simulator("RRW RW", 4, unversioned=True, tiered=True, warm=True, guarded=True),
]


@pytest.mark.parametrize(
    "seed",
    [pytest.param("fixed", marks=pytest.mark.long), secrets.token_hex(4)],
    ids=["fixed", "fresh"],
)
@pytest.mark.parametrize("large", LARGE, ids=str)
def test_no_schedule_found_at_random_goes_wrong(large: Simulator, seed: str, *, long: bool) -> None:
    with in_memory() as explorer:
        in_order(explorer.search(large, seed=seed, runs=500 if long else 60))


@pytest.mark.parametrize(
    "large",
    [
        simulator("RRW RW", 3),
        simulator("RW W", 4, guarded=True),
        simulator("RMW W", 3, tiered=True),
    ],
    ids=str,
)
def test_no_schedule_found_at_random_goes_wrong_on_redis(
    large: Simulator, redis_url: str, *, long: bool
) -> None:
    with on_redis(redis_url) as explorer:
        in_order(explorer.search(large, seed=secrets.token_hex(4), runs=60 if long else 30))


def test_no_schedule_of_few_processes_goes_wrong_on_redis(redis_url: str) -> None:
    with on_redis(redis_url) as explorer:
        report = explorer.exhaust(simulator("R W", 1, "evict die lose late"))
    in_order(report)
    assert report.complete


def test_a_backend_that_keeps_nothing_is_always_right() -> None:
    with Explorer(NullSubject(), waits=False) as explorer:
        in_order(explorer.search(simulator("RRW W", 3), seed="null", runs=100))


# --- every fault in the code is found ---

# A small simulation whole; then a larger one, in which nobody is left waiting more than once.
BACKENDS = [(simulator("R W", 2, "evict die"), None), (simulator("R W W", 2, "evict die"), 1)]

FOUND_IN: list[tuple[str, Fault, Simulator, int]] = [
    ("acknowledges before it publishes", CACHE, simulator("RW", 2, "lose", warm=True), 1),
    ("a reader returns before it publishes", CACHE, simulator("RRW", 2, "lose", warm=True), 2),
    (
        "a cancelled writer does not publish after its commit",
        CACHE,
        simulator("RW", 2, "lose cancel", warm=True),
        1,
    ),
    ("an unsure writer publishes its body", CACHE, simulator("R W W", 2, "late evict"), 1),
    (
        "an unsure writer publishes its body",
        CACHE,
        simulator("W W", 2, "time evict", warm=True, guarded=True),
        2,
    ),
    ("an unsure reader publishes nothing", CACHE, simulator("RRW", 2, "lose", warm=True), 1),
    (
        "a writer withdraws although its commit may have happened",
        CACHE,
        simulator("R W W", 1, "commit"),
        1,
    ),
    ("a reader joins a load that has begun, as in Go", FLIGHT, simulator("RRW", 1, "evict"), 1),
    ("one cancelled reader cancels them all", FLIGHT, simulator("RRR", 1, "cancel"), 2),
    ("a call that has ended is never forgotten", FLIGHT, simulator("RRW", 0), 1),
    (
        "the guard purges instead of repeating",
        GUARD,
        simulator("W W", 2, "lose", warm=True, guarded=True),
        1,
    ),
    (
        "the guard forgets missed publishes",
        GUARD,
        simulator("RW", 2, "lose", warm=True, guarded=True),
        1,
    ),
    (
        "the guard reads a pending key",
        GUARD,
        simulator("RW", 2, "lose", warm=True, guarded=True),
        1,
    ),
]


FEED = simulator("RR W", 1, "feed", tiered=True, warm=True)
LOSING = simulator("RW", 1, "lose", tiered=True, warm=True, guarded=True)
LOSING_FEED = simulator("RR W", 2, "feed lose", tiered=True, warm=True, guarded=True)

LOCAL_FOUND_IN: list[tuple[str, Simulator, int | None]] = [
    ("reports are ignored", simulator("R W", 0, tiered=True, warm=True), None),
    ("a cut is ignored", FEED, None),
    ("a fill takes no lease", simulator("MR W", 2, "feed slow", tiered=True, warm=True), 0),
    ("an answer spares an older entry", FEED, 0),
    ("an answer is not published while the feed is not live", FEED, 0),
    ("an answer of a lease spares what is local", FEED, None),
    ("a publish spares what is local", simulator("RW", 0, tiered=True, warm=True), None),
    ("a publish drops what is local only before", LOSING, 1),
    ("a publish that fails spares what is local", LOSING, None),
    ("what is remembered spares what is local", LOSING_FEED, 1),
    ("the local tier is read while the feed is not live", FEED, 0),
    ("the local tier is filled while the feed is not live", FEED, 0),
]


# By fault and simulation, a seed whose first schedules show the fault. Seeds only save time: if a
# change of the cache changes what a seed leads to, all schedules are played.
SEEDS = {
    ("a fill takes no lease", "MR W warm tiered"): 1,
    ("an unsure writer publishes its body", "R W W"): 12,
    ("an unsure reader publishes nothing", "RRW warm"): 1215,
    ("a reader returns before it publishes", "RRW warm"): 223,
    ("the guard reads a pending key", "RW warm guarded"): 52,
    ("an answer of a lease spares what is local", "RR W warm tiered"): 74,
    ("what is remembered spares what is local", "RR W warm guarded tiered"): 54,
    ("a fence holds every writer's token", "R W W"): 21,
    ("a publish raises the fence's version", "R W W"): 0,
    ("an unversioned publish removes the entry of another load", "R R R W unversioned"): 290,
    ("an unversioned publish removes the leases of others", "R R R W unversioned"): 310,
}


@pytest.mark.parametrize("guard", GUARDS)
def test_a_transition_table_without_a_guard_is_detected(guard: str) -> None:
    with in_memory(memory_on(broken_table(BROKEN_TABLE[guard]))) as explorer:
        found(explorer, SEEDS, guard, *BACKENDS)


@pytest.mark.parametrize("guard", GUARDS)
def test_a_script_without_a_guard_is_detected(
    guard: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, whole, broken = BROKEN_SCRIPTS[guard]
    texts = dict(namespace.script_texts())
    assert whole in texts[script], "the script has changed; say anew how to break it"
    texts[script] = texts[script].replace(whole, broken)
    monkeypatch.setattr(namespace, "script_texts", lambda: texts)
    with on_redis(redis_url) as explorer:
        found(explorer, SEEDS, guard, *BACKENDS)


@pytest.mark.parametrize(
    ("name", "among", "where", "switches"),
    FOUND_IN,
    ids=[f"{name}, {where}".replace(" ", "-") for name, _, where, _ in FOUND_IN],
)
def test_a_broken_cache_or_guard_is_detected(
    name: str, among: dict[str, Fault], where: Simulator, switches: int
) -> None:
    with in_memory(parts=parts(among[name])) as explorer:
        found(explorer, SEEDS, name, (where, switches))


@pytest.mark.parametrize(
    ("name", "where", "switches"),
    LOCAL_FOUND_IN,
    ids=[name.replace(" ", "-") for name, _, _ in LOCAL_FOUND_IN],
)
def test_broken_tiers_are_detected(name: str, where: Simulator, switches: int | None) -> None:
    with in_memory(parts=parts(TIERED[name])) as explorer:
        found(explorer, SEEDS, name, (where, switches))


def test_a_read_ahead_that_a_report_overtakes_is_not_kept() -> None:
    """Two writers and a late reply: hardly a schedule that is found at random has both."""
    written = "W{0} begins -> W{0} fence -> W{0} update -> W{0} commit -> W{0} publish v{1}"
    reported = "P0 is notified -> P0 is notified"
    schedule = (
        f"R0 begins -> {written.format(0, 2)} -> {reported} -> A0 wait -> A0 get is slow"
        f" -> {written.format(1, 3)} -> {reported} -> A0 get reply"
    )
    where = simulator("RR W W", 1, "slow", tiered=True, warm=True)
    fault = TIERED["an entry is read ahead without a lease"]
    with in_memory(parts=parts(fault)) as explorer, pytest.raises(Violation, match="v2 stays in"):
        explorer.replay(where, schedule)
    with in_memory() as explorer:
        explorer.replay(where, f"{schedule} -> R1 begins")


UNVERSIONED = simulator("R R W", 0, unversioned=True)
THREE = simulator("R R R W", 1, "evict", unversioned=True)
UNVERSIONED_TIERS = simulator("RR W", 1, "feed", unversioned=True, tiered=True, warm=True)


@pytest.mark.parametrize("guard", BROKEN_UNVERSIONED_TABLE)
def test_a_table_without_a_guard_of_unversioned_entries_is_detected(guard: str) -> None:
    with in_memory(memory_on(broken_table(BROKEN_UNVERSIONED_TABLE[guard]))) as explorer:
        where = (THREE, 2) if "removes" in guard else (UNVERSIONED, None)
        found(explorer, SEEDS, guard, where)


UNVERSIONED_FOUND_IN: list[tuple[str, dict[str, Fault], Simulator]] = [
    (
        "a reader joins a load that has begun, as in Go",
        FLIGHT,
        replace(UNVERSIONED, processes=("RRW",)),
    ),
    (
        "an invalidation is cut off with its caller",
        UNVERSIONED_CACHE,
        simulator("R W", 1, "cancel", unversioned=True, warm=True),
    ),
    (
        "the guard forgets missed purges",
        UNVERSIONED_GUARD,
        simulator("RW", 1, "lose", unversioned=True, guarded=True, warm=True),
    ),
    ("reports are ignored", TIERED, replace(UNVERSIONED_TIERS, faults=0)),
    ("a cut is ignored", TIERED, UNVERSIONED_TIERS),
    ("a publish spares what is local", TIERED, UNVERSIONED_TIERS),
    ("the local tier is read while the feed is not live", TIERED, UNVERSIONED_TIERS),
    ("the local tier is filled while the feed is not live", TIERED, UNVERSIONED_TIERS),
]


@pytest.mark.parametrize(
    ("name", "among", "where"),
    UNVERSIONED_FOUND_IN,
    ids=[name.replace(" ", "-") for name, *_ in UNVERSIONED_FOUND_IN],
)
def test_with_unversioned_documents_a_broken_cache_is_detected(
    name: str, among: dict[str, Fault], where: Simulator
) -> None:
    with in_memory(parts=parts(among[name], unversioned=True)) as explorer:
        found(explorer, SEEDS, name, (where, None))


def test_a_value_that_was_loaded_without_the_store_hides_no_older_one() -> None:
    schedule = (
        "R0 begins -> W0 begins -> W0 update -> W0 commit -> R0 get is lost -> R0 load"
        " -> R1 begins -> R1 get"
    )
    where = simulator("RR W", 1, "lose", unversioned=True, guarded=True, warm=True)
    fault = UNVERSIONED_CACHE["a read without the store removes nothing"]
    with in_memory(parts=parts(fault)) as explorer, pytest.raises(Violation, match="returns v1"):
        explorer.replay(where, schedule)
    with in_memory() as explorer:
        explorer.replay(where, schedule)  # R0 has not returned: it waits for the store


def test_a_result_that_leaves_the_lease_of_another_is_detected() -> None:
    # Two fills side by side, the slower with the older version: of all schedules a random few.
    where = replace(simulator("MR W", 1, "slow", tiered=True), reads=2)
    with in_memory(parts=parts(TIERED["an answer spares the lease of another"])) as explorer:
        report = explorer.search(where, seed=5, runs=10_000)
        print(report)  # noqa: T201 - pytest -rP shows the schedules
        assert report.finding is not None
        with pytest.raises(Violation, match=re.escape(report.finding.reason)):
            explorer.replay(where, report.finding.schedule)


def test_a_random_search_finds_a_broken_backend_and_says_how_to_replay_it() -> None:
    where = simulator("R R W W", 2)
    table = broken_table(BROKEN_TABLE["a publish raises the fence's version"])
    with in_memory(memory_on(table)) as explorer:
        report = explorer.search(where, seed=7, runs=3000)
        again = explorer.search(where, seed=7, runs=3000)
        assert report.finding is not None
        assert report.finding == again.finding
        with pytest.raises(Violation, match=re.escape(report.finding.reason)):
            explorer.replay(where, " -> ".join(report.finding.schedule))


# --- the tool ---


def test_the_same_seed_leads_to_the_same_schedules() -> None:
    with in_memory() as explorer:
        one = explorer.search(simulator("RRW W", 3), seed="x", runs=50)
        two = explorer.search(simulator("RRW W", 3), seed="x", runs=50)
        other = explorer.search(simulator("RRW W", 3), seed="y", runs=50)
    assert one.steps == two.steps != other.steps


def test_a_step_that_cannot_be_taken_is_named() -> None:
    with in_memory() as explorer, pytest.raises(LookupError, match="'W0 publish v2' cannot"):
        explorer.replay(simulator("R W", 0), "W0 begins -> W0 publish v2")


def test_the_command_explores_and_says_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "1", "--runs", "20"]) == 0
    assert capsys.readouterr().out.startswith("seed 1: R R W W, 2 faults: 20 schedules, ")
    assert main(["--exhaust", "--processes", "R W", "--faults", "0"]) == 0
    assert "(every schedule): nothing wrong" in capsys.readouterr().out
    assert main(["--processes", "R W", "--schedule", "W0 begins -> W0 fence is lost"]) == 0
    tiered = ["--processes", "R W", "--tiered", "--warm"]
    stale = (
        "W0 begins -> W0 fence -> R0's feed is silent -> R0 begins -> R0 get -> R0's feed is back"
    )
    assert main([*tiered, "--schedule", stale]) == 0
    assert main(["--exhaust", "--faults", "0", *tiered]) == 0
    assert "R W warm tiered" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no such fault: flood"):
        main(["--kinds", "flood"])
    with pytest.raises(SystemExit, match="a word of R, M and W"):
        main(["--processes", "R X"])
    capsys.readouterr()
    assert main(["--processes", "R W", "--schedule", "W0 begins -> W0 publish v2"]) == 1
    assert capsys.readouterr().out.startswith("WRONG: ")


def test_the_command_explores_redis_in_a_namespace_of_its_own(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = RedisSubject(redis_url)
    with subject.raw as raw:
        raw.set("others", "1")
        arguments = ["--backend", "redis", "--redis-url", redis_url, "--runs", "10"]
        assert main([*arguments, "--guarded"]) == 0
        assert raw.keys("*") == [b"others"]
        raw.delete("others")
    assert "10 schedules" in capsys.readouterr().out


def test_the_command_explores_memcached(
    memcached_server: MemcachedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--backend", "memcached", "--memcached-url", memcached_server.url]
    assert main([*chosen, "--runs", "10"]) == 0
    assert "10 schedules" in capsys.readouterr().out
    schedule = "R0 begins -> R0 get -> R0 lease -> R0 load -> R0 publish v1 -> evict -> R1 begins"
    assert main([*chosen, "--schedule", f"{schedule} -> R1 get -> R1 lease"]) == 0


def test_the_command_says_that_a_store_is_away(unused_tcp_port: int) -> None:
    for name, option in (("redis", "--redis-url"), ("memcached", "--memcached-url")):
        url = f"{name}://127.0.0.1:{unused_tcp_port}"
        with pytest.raises(SystemExit, match=f"{name} cannot be explored: "):
            main(["--backend", name, option, url, "--runs", "1"])

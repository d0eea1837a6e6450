"""Reading ahead: an entry that is in use is read again when it has changed, before it is polled."""

from __future__ import annotations

import asyncio

import pytest

from jobcache import Document, JobCache
from jobcache.backends.tiered import TieredBackend
from jobcache.protocol.capabilities import SupportsReadAhead
from jobcache.protocol.entry import Entry
from jobcache.testing.simulation import entry_of
from tests.jobcache.backends.hand_tiers import Tiered, turns
from tests.jobcache.bench import Bench, Source, Transaction, document
from tests.subjects import PATIENCE


@pytest.fixture
def tiered() -> Tiered:
    return Tiered()


# --- what is read ahead ---


async def test_after_a_change_the_next_poll_of_a_used_entry_is_a_local_hit(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    asked = tiered.remote.asked
    for version in (2, 3, 4):
        await tiered.change("k", version=version)
        assert tiered.version() == version
    assert tiered.remote.asked == asked + 3, "one read for each change"
    assert isinstance(tiered.backend, SupportsReadAhead)
    assert tiered.backend.reads_ahead() == 3


async def test_an_entry_that_nobody_polls_any_more_is_read_once(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    for version in range(2, 12):
        await tiered.change("k", version=version)
    assert tiered.backend.reads_ahead() == 1
    assert await tiered.poll() == 11


async def test_an_entry_that_is_polled_less_often_than_it_changes_is_not_read_ahead(
    tiered: Tiered,
) -> None:
    await tiered.remote.hold("k", entry_of(1))
    for version in range(2, 6):
        await tiered.poll()
        await tiered.change("k", version=version)
    assert tiered.backend.reads_ahead() == 0


async def test_nothing_is_read_while_a_writer_is_at_work(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    await tiered.remote.cells.fence("k", "writer")
    tiered.feed.tell("k")
    await turns()
    assert tiered.backend.reads_ahead() == 0


async def test_two_writers_at_once_cause_one_read(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    for writer in ("one", "other"):
        await tiered.remote.cells.fence("k", writer)
        tiered.feed.tell("k")
        await turns()
    for writer in ("one", "other"):
        await tiered.remote.cells.publish("k", writer, entry_of(2))
        tiered.feed.tell("k")
        await turns()
    assert tiered.backend.reads_ahead() == 1
    assert await tiered.poll() == 2


async def test_a_poll_ends_a_change_of_which_one_report_has_come(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    tiered.feed.tell("k")
    await tiered.fill_and_use(version=2)
    tiered.feed.tell("k")  # the first report of another change
    await turns()
    assert tiered.backend.reads_ahead() == 0


async def test_changes_that_are_reported_together_are_read_together(tiered: Tiered) -> None:
    for key in ("a", "b", "c"):
        await tiered.fill_and_use(key)
    asked = tiered.remote.asked
    await tiered.change("a", "b", "c", version=2)
    assert tiered.remote.asked == asked + 1
    assert [tiered.version(key) for key in "abc"] == [2, 2, 2]


async def test_a_read_ahead_is_no_read_of_the_cache_and_loads_nothing(tiered: Tiered) -> None:
    bench = Bench(tiered)
    bench.source.versions["k"] = 1
    for _ in range(3):
        await bench.read("k")
    counted, loads = bench.cache.info().counters, bench.source.loads
    await tiered.change("k", version=2)
    await tiered.remote.purge(["k"])
    tiered.feed.tell("k")
    tiered.feed.tell("k")
    await turns()
    assert tiered.backend.reads_ahead() == 1
    assert bench.cache.measure()["jobcache_reads_ahead_total"] == 1
    assert bench.cache.info().counters == counted
    assert bench.source.loads == loads


# --- together with readers and writers ---


@pytest.mark.parametrize(
    "event", ["changed", "cut", "cut and back", "published here", "purged here"]
)
async def test_a_read_ahead_that_a_change_overtakes_is_not_kept(tiered: Tiered, event: str) -> None:
    await tiered.fill_and_use()
    tiered.remote.at_gate.clear()
    tiered.remote.gate.clear()
    await tiered.change("k", version=2)
    await tiered.remote.at_gate.wait()
    change: asyncio.Future[object] | None = None
    if event == "changed":
        tiered.feed.tell("other", "k")
    elif event == "published here":
        change = asyncio.ensure_future(tiered.backend.publish("k", "w", entry_of(3)))
    elif event == "purged here":
        change = asyncio.ensure_future(tiered.backend.purge(["k"]))
    else:
        tiered.feed.cut()
        if event == "cut and back":
            tiered.feed.resume()
    tiered.remote.gate.set()
    await turns()
    if change is not None:
        await change
    assert await tiered.holds_nothing_local()


async def test_a_change_of_this_process_is_read_once_its_publish_has_returned(
    tiered: Tiered,
) -> None:
    await tiered.fill_and_use()
    await tiered.backend.fence("k", "w")
    tiered.feed.tell("k")
    tiered.awake.clear()
    tiered.remote.gate.clear()
    publishing = asyncio.ensure_future(tiered.backend.publish("k", "w", entry_of(2)))
    await turns()
    tiered.feed.tell("k")  # before the reply
    await turns()
    tiered.remote.gate.set()
    await publishing
    tiered.awake.set()
    await turns()
    assert tiered.version() == 2
    assert tiered.backend.reads_ahead() == 1


async def test_what_a_poll_reads_meanwhile_is_not_read_again(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    tiered.awake.clear()
    await tiered.change("k", version=2)
    assert await tiered.poll() == 2
    tiered.awake.set()
    await turns()
    await tiered.change("k", version=3)
    assert tiered.backend.reads_ahead() == 0, "v2 was not used after it was stored"


async def test_what_a_poll_is_reading_is_not_read_twice(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    tiered.awake.clear()
    await tiered.change("k", version=2)
    tiered.remote.gate.clear()
    poll = asyncio.ensure_future(tiered.poll())
    await turns()
    tiered.awake.set()
    await turns()
    assert tiered.backend.reads_ahead() == 0
    tiered.remote.gate.set()
    assert await poll == 2


async def test_a_long_poll_that_the_same_report_has_woken_reads_the_entry(tiered: Tiered) -> None:
    bench = Bench(tiered)
    bench.source.versions["k"] = 1
    for _ in range(3):
        await bench.read("k")
    tiered.awake.clear()
    waiting = asyncio.ensure_future(
        bench.cache.wait_for_newer("k", lambda: bench.source.load("k"), 1, timeout=PATIENCE)
    )
    await turns()
    await tiered.change("k", version=2)
    tiered.awake.set()
    result = await waiting
    assert result is not None
    assert result.entry.version == 2
    await turns()
    assert tiered.backend.reads_ahead() == 0
    await bench.cache.aclose()


# --- faults and limits ---


async def test_nothing_is_read_ahead_while_the_feed_is_not_live(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    tiered.awake.clear()
    await tiered.change("k", version=2)
    tiered.clock.now = tiered.feed.live_until
    asked = tiered.remote.asked
    tiered.awake.set()
    await turns()
    assert tiered.remote.asked == asked
    assert tiered.backend.reads_ahead() == 0


async def test_a_cut_forgets_what_was_to_be_read(tiered: Tiered) -> None:
    for key in ("wanted", "due"):
        await tiered.fill_and_use(key)
    tiered.awake.clear()
    tiered.feed.tell("wanted", "due")
    tiered.feed.tell("due")
    tiered.feed.cut()
    tiered.feed.resume()
    tiered.feed.tell("wanted")
    tiered.awake.set()
    await turns()
    assert tiered.backend.reads_ahead() == 0


async def test_a_read_ahead_that_fails_leaves_no_lease_and_is_not_the_last(tiered: Tiered) -> None:
    await tiered.fill_and_use()
    tiered.remote.away = True
    await tiered.change("k", version=2)
    assert await tiered.holds_nothing_local()
    tiered.remote.away = False
    await tiered.fill_and_use(version=3)
    await tiered.change("k", version=4)
    assert tiered.version() == 4
    assert tiered.backend.reads_ahead() == 2


async def test_after_a_read_ahead_that_fails_the_keys_behind_it_are_read(tiered: Tiered) -> None:
    for key in ("a", "b"):
        await tiered.fill_and_use(key)
    tiered.remote.away = True
    tiered.remote.gate.clear()
    await tiered.change("a", version=2)
    tiered.awake.clear()
    await tiered.change("b", version=2)
    tiered.remote.gate.set()
    await turns()
    tiered.remote.away = False
    tiered.awake.set()
    await turns()
    assert [tiered.version(key) for key in "ab"] == [None, 2]


@pytest.mark.parametrize("when", ["before the read", "during the read"])
async def test_closing_ends_a_read_ahead(tiered: Tiered, when: str) -> None:
    await tiered.fill_and_use()
    others = asyncio.all_tasks()
    if when == "before the read":
        tiered.awake.clear()
    tiered.remote.gate.clear()
    await tiered.change("k", version=2)
    assert asyncio.all_tasks() > others
    async with asyncio.timeout(PATIENCE):
        await tiered.backend.aclose()
    assert asyncio.all_tasks() == others
    assert tiered.backend.reads_ahead() == (when == "during the read")


async def test_few_keys_are_read_ahead_at_a_time_and_the_others_left_to_their_polls(
    tiered: Tiered,
) -> None:
    keys = [f"k{number}" for number in range(60)]
    for key in keys:
        await tiered.fill_and_use(key)
    asked = tiered.remote.asked
    await tiered.change(*keys, version=2)
    assert tiered.remote.asked == asked + 1
    assert tiered.backend.reads_ahead() == 50
    assert [await tiered.poll(key) for key in keys] == [2] * 60


async def test_keys_whose_second_report_never_comes_do_not_pile_up(tiered: Tiered) -> None:
    keys = [f"k{number}" for number in range(1001)]
    for key in keys:
        await tiered.fill_and_use(key)
    tiered.feed.tell(*keys)
    tiered.feed.tell(keys[0], keys[1], keys[-1])
    await turns()
    assert tiered.backend.reads_ahead() == 2
    assert [tiered.version(key) for key in (keys[0], keys[1], keys[-1])] == [None, 1, 1]


# --- with Redis ---


async def test_on_redis_a_poll_finds_the_new_version_in_its_own_process(redis_url: str) -> None:
    source = Source()
    source.versions["k"] = 1
    here, there = (JobCache.from_url(f"tiered+{redis_url}", prefix="ahead:") for _ in range(2))
    backend = here.backend
    assert isinstance(backend, TieredBackend)

    async def load() -> Document | None:
        return await source.load("k")

    async def read_ahead(version: int) -> Entry:
        while True:
            entry = backend.peek("k")
            if entry is not None and entry.version == version:
                return entry
            await asyncio.sleep(0.005)

    async with here, there, asyncio.timeout(PATIENCE):
        while not backend.feed().live:
            await asyncio.sleep(0.005)
        while True:
            for _ in range(2):
                await here.read("k", load)
            transaction = Transaction(source, "k")
            async with there.write(transaction, "k") as write:
                write.publish("k", document(transaction.version))
            try:
                async with asyncio.timeout(2):
                    await read_ahead(transaction.version)
            except TimeoutError:
                continue  # on a busy machine the feed is interrupted at times
            break
    assert backend.reads_ahead() >= 1

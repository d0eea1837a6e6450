"""What every backend must do, as checks that need no test framework.

    from jobcache.testing import conformance

    @pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
    def test_conformance(check):
        asyncio.run(check(MySubject()))

A check takes a `Subject`: the backend, empty, and the two things that a test does to it and no
caller can do. A backend that keeps nothing passes `SAFETY`; a useful one passes `CHECKS`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace

from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.document import VERSION_LIMIT
from jobcache.testing.scenarios import (
    GUARDS,
    UNVERSIONED_GUARDS,
    entry_of,
    play,
    unversioned_entry_of,
)
from jobcache.testing.subject import NotifiedSubject, Subject
from jobcache.testing.transcript import RecordedSubject, Transcript, expect

Check = Callable[[Subject], Awaitable[None]]
"""Raises AssertionError if the backend does not do as the check's docstring says.

The error says what was expected and what was found, and lists the operations up to there. An
operation that raises is passed on, with the same list as a note.
"""


def _reported(check: Check) -> Check:
    @functools.wraps(check)
    async def reported(subject: Subject) -> None:
        transcript = Transcript()
        try:
            await check(RecordedSubject(subject, transcript))
        except AssertionError as error:
            title = f"{check.__name__}: {check.__doc__}"
            raise AssertionError(f"{title}\n{error}\n{transcript}") from None
        except Exception as error:
            error.add_note(f"{check.__name__}: {check.__doc__}\n{transcript}")
            raise

    return reported


# --- safety: nothing wrong is ever served ---


def _survives(guard: str, schedule: str, *, unversioned: bool = False) -> Check:
    async def check(subject: Subject) -> None:
        key = "job:1:progress"
        await play(
            subject.backend,
            key,
            schedule,
            subject.evict,
            unversioned=unversioned,
            committed=subject.committed if isinstance(subject, NotifiedSubject) else None,
        )

    check.__name__ = guard.replace(" ", "_").replace("'", "")
    check.__doc__ = f"Survives the schedule that goes wrong unless {guard}."
    return check


async def starts_empty(subject: Subject) -> None:
    """An unknown key is None, not an error."""
    expect(await subject.backend.get("job:1:progress"), None)
    expect(await subject.backend.get_many(["a", "b"]), {})
    expect(await subject.backend.get_many([]), {})


async def a_publish_without_lease_or_fence_is_not_stored(subject: Subject) -> None:
    """An empty cell stays empty."""
    expect(await subject.backend.publish("k", "t", entry_of(1)), PublishResult.NOTHING)
    expect(await subject.backend.get("k"), None)


async def nothing_is_served_behind_a_fence(subject: Subject) -> None:
    """Between fence and publish, a get returns nothing."""
    await _stored(subject, "k", 1)
    await subject.backend.fence("k", "w")
    expect(await subject.backend.get("k"), None)
    expect(await subject.backend.get_many(["k"]), {})


async def closing_twice_is_safe(subject: Subject) -> None:
    """`aclose` may be called again."""
    await subject.backend.aclose()
    await subject.backend.aclose()


# --- keeping: entries that are right are kept ---


async def a_lease_stores_its_publish(subject: Subject) -> None:
    """An entry comes back as it was published, field by field and byte by byte."""
    backend = subject.backend
    entry = replace(
        entry_of(7, body=bytes(range(256)) * 5, owner="ünï|code\n,%owner"),
        status="half|done\n",
        poll_after=None,
    )
    expect(await backend.lease("k", "r"), LeaseResult.ACQUIRED)
    expect(await backend.publish("k", "r", entry), PublishResult.STORED)
    expect(await backend.get("k"), entry)
    expect(await backend.get_many(["k", "other"]), {"k": entry})
    expect(await backend.lease("k", "x"), entry)


async def a_lease_is_exclusive(subject: Subject) -> None:
    """One reader holds it; it may ask again with its token, and other readers do not get it."""
    backend = subject.backend
    expect(await backend.lease("k", "r0"), LeaseResult.ACQUIRED)
    expect(await backend.lease("k", "r0"), LeaseResult.ACQUIRED)
    expect(await backend.lease("k", "r1"), LeaseResult.HELD)
    expect(await backend.get("k"), None)


async def one_of_many_gets_the_lease(subject: Subject) -> None:
    """One, however many readers ask at once."""
    found = await asyncio.gather(*(subject.backend.lease("k", f"r{n}") for n in range(50)))
    expect(found.count(LeaseResult.ACQUIRED), 1)


async def a_withdrawn_lease_is_free(subject: Subject) -> None:
    """A reader whose load failed gives up its own lease, and not the lease of another."""
    backend = subject.backend
    await backend.lease("k", "r0")
    expect(await backend.publish("k", "r1", None), PublishResult.KEPT)
    expect(await backend.lease("k", "r1"), LeaseResult.HELD)
    expect(await backend.publish("k", "r0", None), PublishResult.REMOVED)
    expect(await backend.lease("k", "r1"), LeaseResult.ACQUIRED)


async def a_writer_warms_the_cache(subject: Subject) -> None:
    """The entry that the last writer of a fence publishes is served at once."""
    backend = subject.backend
    await backend.fence("k", "w")
    expect(await backend.publish("k", "w", entry_of(1)), PublishResult.STORED)
    expect(await backend.get("k"), entry_of(1))


async def a_fence_takes_the_lease_away(subject: Subject) -> None:
    """A reader that began before the fence, or finds the fence, stores nothing."""
    backend = subject.backend
    await backend.lease("k", "r0")
    await backend.fence("k", "w")
    expect(await backend.lease("k", "r1"), LeaseResult.FENCED)
    expect(await backend.publish("k", "r0", entry_of(1)), PublishResult.FENCED)
    expect(await backend.get("k"), None)
    expect(await backend.publish("k", "w", entry_of(2)), PublishResult.STORED)


async def every_writer_of_a_fence_must_leave(subject: Subject) -> None:
    """Any number of writers may join a fence; only the last one that publishes stores."""
    backend = subject.backend
    writers = [f"w{n}" for n in range(20)]
    await asyncio.gather(*(backend.fence("k", writer) for writer in writers))
    for version, writer in enumerate(writers[:-1], start=2):
        expect(await backend.publish("k", writer, entry_of(version)), PublishResult.FENCED)
        expect(await backend.get("k"), None)
    expect(await backend.publish("k", writers[-1], entry_of(30)), PublishResult.STORED)
    expect(await backend.get("k"), entry_of(30))


async def a_fence_repeated_is_one_fence(subject: Subject) -> None:
    """A client library may send an operation twice; the fence has the token once."""
    backend = subject.backend
    await backend.fence("k", "w")
    await backend.fence("k", "w")
    expect(await backend.publish("k", "w", entry_of(2)), PublishResult.STORED)
    expect(await backend.publish("k", "w", entry_of(2)), PublishResult.PROLONGED)
    expect(await backend.get("k"), entry_of(2))


async def below_the_fence_version_nothing_is_stored(subject: Subject) -> None:
    """It is the highest of the fenced entry's version and the versions published meanwhile."""
    backend = subject.backend
    await _stored(subject, "k", 5)
    await backend.fence("k", "w0")
    expect(await backend.publish("k", "w0", entry_of(4)), PublishResult.REMOVED)
    expect(await backend.get("k"), None)
    await backend.fence("k", "w0")
    expect(await backend.publish("k", "reader", entry_of(9)), PublishResult.FENCED)
    expect(await backend.publish("k", "w0", entry_of(8)), PublishResult.REMOVED)
    expect(await backend.get("k"), None)


async def a_withdrawn_fence_leaves_the_cell_empty(subject: Subject) -> None:
    """The last writer has committed nothing, so it does not know which version is current."""
    backend = subject.backend
    await _stored(subject, "k", 1)
    await backend.fence("k", "w0")
    await backend.fence("k", "w1")
    expect(await backend.publish("k", "w0", None), PublishResult.FENCED)
    expect(await backend.publish("k", "w1", None), PublishResult.REMOVED)
    expect(await backend.lease("k", "r"), LeaseResult.ACQUIRED)


async def a_withdrawal_leaves_the_others_to_store(subject: Subject) -> None:
    """A withdrawal leaves the fence to a writer that did commit."""
    backend = subject.backend
    await backend.fence("k", "w0")
    await backend.fence("k", "w1")
    expect(await backend.publish("k", "w0", None), PublishResult.FENCED)
    expect(await backend.publish("k", "w1", entry_of(2)), PublishResult.STORED)
    expect(await backend.publish("k", "w0", None), PublishResult.KEPT)
    expect(await backend.get("k"), entry_of(2))


async def a_newer_entry_stays(subject: Subject) -> None:
    """The older version of a slow reader changes nothing."""
    await _stored(subject, "k", 3)
    expect(await subject.backend.publish("k", "r", entry_of(2)), PublishResult.KEPT)
    expect(await subject.backend.get("k"), entry_of(3))


async def an_older_entry_is_removed(subject: Subject) -> None:
    """A publish of a newer version removes it and does not replace it."""
    await _stored(subject, "k", 3)
    expect(await subject.backend.publish("k", "r", entry_of(4)), PublishResult.REMOVED)
    expect(await subject.backend.get("k"), None)


async def the_same_version_is_prolonged(subject: Subject) -> None:
    """The lifetime of the entry starts anew."""
    backend = subject.backend
    await _stored(subject, "k", 3, keep_ms=10_000)
    later = replace(entry_of(3), keep_ms=60_000, stored_at_ms=1_700_000_009_000)
    expect(await backend.publish("k", "r", later), PublishResult.PROLONGED)
    await subject.elapse(30)
    expect(await backend.get("k"), later)


async def entries_expire(subject: Subject) -> None:
    """An entry expires after `keep_ms`, and not before."""
    await _stored(subject, "k", 1, keep_ms=10_000)
    await subject.elapse(9)
    expect(await subject.backend.get("k"), replace(entry_of(1), keep_ms=10_000))
    await subject.elapse(2)
    expect(await subject.backend.get("k"), None)
    expect(await subject.backend.lease("k", "r"), LeaseResult.ACQUIRED)


async def leases_and_fences_expire(subject: Subject) -> None:
    """Neither a reader nor a writer that has died blocks a key for ever."""
    backend = subject.backend
    await backend.lease("led", "r")
    await backend.fence("fenced", "w")
    await subject.elapse(60)
    expect(await backend.lease("led", "r1"), LeaseResult.ACQUIRED)
    expect(await backend.lease("fenced", "r1"), LeaseResult.ACQUIRED)


async def a_busy_key_outlives_a_dead_writer(subject: Subject) -> None:
    """A fence keeps its deadline, however many writers join it."""
    backend = subject.backend
    await backend.fence("k", "dead")
    for version in range(2, 20):
        await subject.elapse(5)
        await backend.fence("k", f"w{version}")
        if await backend.publish("k", f"w{version}", entry_of(version)) is PublishResult.STORED:
            return
    raise AssertionError("one writer that died keeps the key fenced for as long as others write")


async def an_entry_without_a_lifetime_is_not_kept(subject: Subject) -> None:
    """With `keep_ms` 0 it empties the cell, and its version still counts as committed."""
    backend = subject.backend
    version_only = replace(entry_of(9), keep_ms=0)
    await backend.lease("k", "r")
    expect(await backend.publish("k", "r", version_only), PublishResult.REMOVED)
    await backend.fence("k", "w0")
    await backend.fence("k", "w1")
    expect(await backend.publish("k", "w0", version_only), PublishResult.FENCED)
    expect(await backend.publish("k", "w1", entry_of(8)), PublishResult.REMOVED)
    expect(await backend.get("k"), None)


async def the_note_that_nothing_is_there_is_replaced(subject: Subject) -> None:
    """Version 0 is an entry like any other, with the lowest version."""
    backend = subject.backend
    await backend.lease("k", "r")
    expect(await backend.publish("k", "r", entry_of(0, body=b"")), PublishResult.STORED)
    expect(await backend.get("k"), entry_of(0, body=b""))
    await backend.fence("k", "w")
    expect(await backend.publish("k", "w", entry_of(1)), PublishResult.STORED)
    expect(await backend.publish("k", "r", entry_of(0, body=b"")), PublishResult.KEPT)
    expect(await backend.get("k"), entry_of(1))


async def large_versions_keep_their_order(subject: Subject) -> None:
    """Versions are compared exactly up to the limit, where floating point is no longer exact."""
    backend = subject.backend
    top = VERSION_LIMIT - 1
    await _stored(subject, "k", top - 1)
    expect(await backend.publish("k", "r", entry_of(top - 2)), PublishResult.KEPT)
    await backend.fence("k", "w0")
    await backend.fence("k", "w1")
    expect(await backend.publish("k", "w0", entry_of(top)), PublishResult.FENCED)
    expect(await backend.publish("k", "w1", entry_of(top - 1)), PublishResult.REMOVED)
    await backend.fence("k", "w0")
    expect(await backend.publish("k", "w0", entry_of(top)), PublishResult.STORED)
    expect(await backend.get("k"), entry_of(top))


async def a_purge_drops_entries_and_leases_but_no_fence(subject: Subject) -> None:
    """A reader that took its lease before the purge stores nothing after it."""
    backend = subject.backend
    await _stored(subject, "entry", 1)
    await backend.lease("lease", "r")
    await backend.fence("fence", "w")
    keys = ["entry", "lease", "fence", "nothing", "entry"]
    expect(await backend.purge(keys), 2)
    expect(await backend.purge([]), 0)
    expect(await backend.get("entry"), None)
    expect(await backend.publish("lease", "r", entry_of(1)), PublishResult.NOTHING)
    expect(await backend.lease("fence", "r"), LeaseResult.FENCED)


async def keys_are_independent(subject: Subject) -> None:
    """A fence on a key does not affect another key, even with a similar name."""
    backend = subject.backend
    await _stored(subject, "job:1:progress", 1)
    await _stored(subject, "job:11:progress", 2)
    await backend.fence("job:1:storyboard", "w")
    keys = ["job:11:progress", "job:1:progress", "job:1:storyboard", "job:1"]
    found = await backend.get_many(keys)
    expect(found, {"job:1:progress": entry_of(1), "job:11:progress": entry_of(2)})


async def an_unversioned_entry_is_stored_over_its_own_lease(subject: Subject) -> None:
    """It comes back as it was published, with its token and its tags."""
    backend = subject.backend
    entry = replace(
        unversioned_entry_of("r"),
        encoded_body=bytes(range(256)),
        tags=(("t,=|%\n", "g1"), ("ü", "g2")),
    )
    expect(await backend.lease("k", "r"), LeaseResult.ACQUIRED)
    expect(await backend.publish("k", "r", entry), PublishResult.STORED)
    expect(await backend.get("k"), entry)
    expect(await backend.lease("k", "x"), entry)


async def an_unversioned_entry_is_never_prolonged(subject: Subject) -> None:
    """The publish of the same load, repeated, changes nothing."""
    backend = subject.backend
    await backend.lease("k", "r")
    await backend.publish("k", "r", unversioned_entry_of("r"))
    await subject.elapse(20)
    again = replace(unversioned_entry_of("r"), stored_at_ms=1_700_000_020_000)
    expect(await backend.publish("k", "r", again), PublishResult.KEPT)
    expect(await backend.get("k"), unversioned_entry_of("r"))
    await subject.elapse(50)
    expect(await backend.get("k"), None)


async def an_unversioned_entry_is_the_lease_of_its_successor(subject: Subject) -> None:
    """A reader that finds it replaces it, unless another reader or a purge has been faster."""
    backend = subject.backend
    await backend.lease("k", "r0")
    await backend.publish("k", "r0", unversioned_entry_of("r0"))
    expect(await backend.publish("k", "r0", unversioned_entry_of("r1")), PublishResult.STORED)
    expect(await backend.get("k"), unversioned_entry_of("r1"))
    expect(await backend.publish("k", "r0", unversioned_entry_of("r2")), PublishResult.REMOVED)
    expect(await backend.get("k"), None)
    expect(await backend.publish("k", "r1", unversioned_entry_of("r3")), PublishResult.NOTHING)


async def an_unversioned_entry_without_a_lifetime_is_not_kept(subject: Subject) -> None:
    """With `keep_ms` 0 it empties the cell, even of its own entry."""
    backend = subject.backend
    await backend.lease("k", "r")
    await backend.publish("k", "r", unversioned_entry_of("r"))
    gone = replace(unversioned_entry_of("r"), keep_ms=0)
    expect(await backend.publish("k", "r", gone), PublishResult.REMOVED)
    await backend.lease("k", "r1")
    expect(await backend.publish("k", "r2", gone), PublishResult.REMOVED)
    expect(await backend.lease("k", "r3"), LeaseResult.ACQUIRED)


async def an_unversioned_entry_and_one_with_a_version_remove_each_other(subject: Subject) -> None:
    """Nobody knows which of them is newer."""
    backend = subject.backend
    await _stored(subject, "k", 3)
    expect(await backend.publish("k", "first", unversioned_entry_of("r")), PublishResult.REMOVED)
    expect(await backend.get("k"), None)
    await backend.lease("k", "r")
    await backend.publish("k", "r", unversioned_entry_of("r"))
    expect(await backend.publish("k", "r", None), PublishResult.KEPT)
    expect(await backend.publish("k", "r", entry_of(0)), PublishResult.REMOVED)
    expect(await backend.get("k"), None)


async def an_unversioned_entry_is_not_stored_over_a_fence(subject: Subject) -> None:
    """A fence that replaces it has version 0, and the last token of a fence does not store it."""
    backend = subject.backend
    await backend.lease("k", "r")
    await backend.publish("k", "r", unversioned_entry_of("r"))
    await backend.fence("k", "w0")
    await backend.fence("k", "w1")
    expect(await backend.publish("k", "r", unversioned_entry_of("r")), PublishResult.FENCED)
    expect(await backend.publish("k", "w0", unversioned_entry_of("w0")), PublishResult.FENCED)
    expect(await backend.publish("k", "w1", unversioned_entry_of("w1")), PublishResult.REMOVED)
    expect(await backend.get("k"), None)


async def a_purge_drops_unversioned_entries(subject: Subject) -> None:
    """A reader that found the entry before the purge stores nothing after it."""
    backend = subject.backend
    await backend.lease("k", "r")
    await backend.publish("k", "r", unversioned_entry_of("r"))
    expect(await backend.purge(["k"]), 1)
    expect(await backend.get("k"), None)
    expect(await backend.publish("k", "r", unversioned_entry_of("r1")), PublishResult.NOTHING)


async def a_large_body_is_kept_whole(subject: Subject) -> None:
    """The body has a megabyte and every byte value."""
    entry = replace(entry_of(1), encoded_body=bytes(range(256)) * 4096)
    await subject.backend.lease("k", "r")
    await subject.backend.publish("k", "r", entry)
    expect(await subject.backend.get("k"), entry)


async def _stored(subject: Subject, key: str, version: int, *, keep_ms: int | None = None) -> None:
    entry = entry_of(version)
    if keep_ms is not None:
        entry = replace(entry, keep_ms=keep_ms)
    await subject.backend.lease(key, "first")
    expect(await subject.backend.publish(key, "first", entry), PublishResult.STORED)


SCHEDULES: tuple[Check, ...] = (
    *(_reported(_survives(*item)) for item in GUARDS.items()),
    *(_reported(_survives(*item, unversioned=True)) for item in UNVERSIONED_GUARDS.items()),
)
SAFETY: tuple[Check, ...] = (
    *SCHEDULES,
    _reported(starts_empty),
    _reported(a_publish_without_lease_or_fence_is_not_stored),
    _reported(closing_twice_is_safe),
)
KEEPING: tuple[Check, ...] = tuple(
    _reported(check)
    for check in (
        nothing_is_served_behind_a_fence,
        a_lease_stores_its_publish,
        a_lease_is_exclusive,
        one_of_many_gets_the_lease,
        a_withdrawn_lease_is_free,
        a_writer_warms_the_cache,
        a_fence_takes_the_lease_away,
        every_writer_of_a_fence_must_leave,
        a_fence_repeated_is_one_fence,
        below_the_fence_version_nothing_is_stored,
        a_withdrawn_fence_leaves_the_cell_empty,
        a_withdrawal_leaves_the_others_to_store,
        a_newer_entry_stays,
        an_older_entry_is_removed,
        the_same_version_is_prolonged,
        entries_expire,
        leases_and_fences_expire,
        a_busy_key_outlives_a_dead_writer,
        an_entry_without_a_lifetime_is_not_kept,
        the_note_that_nothing_is_there_is_replaced,
        large_versions_keep_their_order,
        a_purge_drops_entries_and_leases_but_no_fence,
        keys_are_independent,
        an_unversioned_entry_is_stored_over_its_own_lease,
        an_unversioned_entry_is_never_prolonged,
        an_unversioned_entry_is_the_lease_of_its_successor,
        an_unversioned_entry_without_a_lifetime_is_not_kept,
        an_unversioned_entry_and_one_with_a_version_remove_each_other,
        an_unversioned_entry_is_not_stored_over_a_fence,
        a_purge_drops_unversioned_entries,
        a_large_body_is_kept_whole,
    )
)
CHECKS: tuple[Check, ...] = (*SAFETY, *KEEPING)
"""All of them: a backend that passes keeps the contract."""
_OF_FENCES = {
    check.__name__
    for check in (
        nothing_is_served_behind_a_fence,
        a_writer_warms_the_cache,
        a_fence_takes_the_lease_away,
        every_writer_of_a_fence_must_leave,
        a_fence_repeated_is_one_fence,
        below_the_fence_version_nothing_is_stored,
        a_withdrawn_fence_leaves_the_cell_empty,
        a_withdrawal_leaves_the_others_to_store,
        leases_and_fences_expire,
        a_busy_key_outlives_a_dead_writer,
        an_entry_without_a_lifetime_is_not_kept,
        the_note_that_nothing_is_there_is_replaced,
        large_versions_keep_their_order,
        a_purge_drops_entries_and_leases_but_no_fence,
        an_unversioned_entry_is_not_stored_over_a_fence,
    )
}
NOTIFIED: tuple[Check, ...] = tuple(each for each in CHECKS if each.__name__ not in _OF_FENCES)
"""The checks of a backend that has no fences, because the transactions themselves notify it. It
needs a `NotifiedSubject`."""

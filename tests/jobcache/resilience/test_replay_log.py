"""The replay log where the store cannot empty its namespace: the operations of a key are merged."""

from __future__ import annotations

from jobcache.resilience.replay_log import SEEN, PendingOperation, ReplayLog


def withdrawal() -> PendingOperation:
    return PendingOperation("publish")


def test_withdrawals_alone_are_all_kept() -> None:
    log = ReplayLog(2, can_empty=False)
    for token in "abc":
        log.note("k", token, withdrawal())
    assert sorted(token for _, token, _ in log.all()) == ["a", "b", "c"]
    assert (len(log), log.everything) == (3, False)


def test_of_several_publishes_the_highest_version_is_kept() -> None:
    log = ReplayLog(2, can_empty=False)
    log.note("k", "a", withdrawal())
    log.note("k", "b", PendingOperation("publish", 3))
    log.note("k", "c", PendingOperation("publish", 2))
    ((key, token, kept),) = log.all()
    assert (key, token, kept.version, len(log)) == ("k", SEEN, 3, 1)


def test_a_publish_that_is_being_replayed_stays_the_same_operation() -> None:
    log = ReplayLog(2, can_empty=False)
    log.note_seen("k", 3)
    ((_, _, replayed),) = log.all()
    for token in "ab":
        log.note("k", token, withdrawal())
    assert log.all() == [("k", SEEN, replayed)]
    log.made("k", SEEN, replayed)
    assert not log

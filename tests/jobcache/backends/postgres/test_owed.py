"""Which keys are owed, after every order of what can happen to a notification."""

from __future__ import annotations

import pytest

from jobcache.backends.postgres.owed import Owed


def test_a_notification_is_owed_until_it_was_heard_and_a_later_heartbeat_came_back() -> None:
    owed = Owed()
    owed.sending("t", ["a", "b"])
    owed.heard("t", ["a", "b"])  # it may be faster than the answer to the writer
    assert not owed.came_back(1), "it may have been sent before"
    owed.sent("t", ["a", "b"], 3)
    assert not owed.came_back(2)
    assert len(owed) == 1
    assert not owed.came_back(3)
    assert len(owed) == 0
    owed.doubt()
    assert owed.carry() == []


def test_one_that_a_later_heartbeat_has_overtaken_is_lost() -> None:
    owed = Owed()
    owed.sending("t", ["a", "b"])
    owed.sent("t", ["a", "b"], 1)
    owed.heard("another", None)
    owed.heard("t", ["b"])  # of another notification of this writer
    assert [lost.keys for lost in owed.came_back(1)] == [["a", "b"]]
    assert owed.carry() == ["a", "b"]
    assert not owed.came_back(2)
    assert owed.carry() == [], "it was sent together with that heartbeat"
    assert len(owed) == 0


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_without_the_heartbeat_it_is_owed(*, heard: bool, answered: bool) -> None:
    owed = Owed()
    owed.sending("t", ["a"])
    if answered:
        owed.sent("t", ["a"], 1)
    if heard:
        owed.heard("t", None)
    owed.doubt()
    assert owed.carry() == ["a"]
    owed.doubt()  # the heartbeat is missing
    assert owed.carry() == ["a"]
    owed.sent("t", ["a"], 3)
    owed.failed("t", ["a"])
    owed.came_back(2)
    assert owed.carry() == ["a"], "it failed after that heartbeat was sent"


def test_with_too_many_keys_anything_may_have_changed() -> None:
    owed = Owed()
    owed.add(f"k{number}" for number in range(10_001))
    assert owed.carry() == [""]

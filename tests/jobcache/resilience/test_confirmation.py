"""Which entries the source has to confirm after an outage."""

from __future__ import annotations

import pytest

from jobcache.protocol.entry import Entry
from jobcache.resilience.confirmation import Confirmation
from tests.subjects import FakeClock


def entry(stored_at_ms: int) -> Entry:
    return Entry(1, "acme", "moving", 2, b"{}", "identity", stored_at_ms, 30_000, 60_000)


def is_served(confirmation: Confirmation, key: str, stored: Entry) -> bool:
    return confirmation.apply({key: stored})[key] is stored


def test_nothing_is_to_be_confirmed_before_the_first_outage() -> None:
    confirmation = Confirmation(FakeClock().ms)
    assert is_served(confirmation, "k", entry(0))


def test_an_outage_after_the_clock_was_set_back_forgets_what_was_confirmed_before() -> None:
    clock = FakeClock()
    confirmation = Confirmation(clock.ms)
    confirmation.clock_set_back(clock.ms() + 60_000)
    stored = entry(clock.ms())
    confirmation.note_published("k", stored)
    assert is_served(confirmation, "k", stored)
    confirmation.outage_ended()
    assert not is_served(confirmation, "k", stored)
    confirmation.note_published("k", stored)
    assert is_served(confirmation, "k", stored)


def test_confirmed_keys_take_a_limited_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobcache.resilience.confirmation._MOST_PUBLISHED", 2)
    clock = FakeClock()
    confirmation = Confirmation(clock.ms)
    confirmation.clock_set_back(clock.ms() + 60_000)
    stored = entry(clock.ms())
    for key in "abc":
        confirmation.note_published(key, stored)
    assert [is_served(confirmation, key, stored) for key in "abc"] == [False, False, True]

"""The version in `Last-Event-ID`."""

from __future__ import annotations

import pytest

from jobcache.http.event_stream import seen_version


@pytest.mark.parametrize(
    ("text", "version"),
    [(None, 0), ("", 0), ("7", 7), (" 7", 0), ("7x", 0), ("\u0667", 0), ("9007199254740992", 0)],
)
def test_an_id_is_a_version_or_nothing(text: str | None, version: int) -> None:
    assert seen_version(text) == version

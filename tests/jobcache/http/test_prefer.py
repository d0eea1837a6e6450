"""`Prefer: wait` is read as RFC 7240 says."""

from __future__ import annotations

import time

import pytest

from jobcache.http.prefer import LONGEST, requested_wait


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=5", 5),
        ("wait=0", 0),
        ("WAIT = 5", 5),
        ('wait="7"', 7),
        ('wait="\\7"', 7),
        ("wait=90", LONGEST),
        ("wait=" + "9" * 5000, LONGEST),
        ("respond-async, wait=10", 10),
        ('note="a, wait=3", wait=7', 7),
        ("return=minimal; x=y ;z, , wait=8;q", 8),
        ("wait=2, wait=9", 2),
        ("wait, wait=9", None),
        ("note;wait=3", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=\u0663", None),
        ('wait="5', None),
        ("(what), wait=3", None),
    ],
)
def test_a_preference_is_read_as_rfc_7240_says(prefer: str | None, seconds: int | None) -> None:
    assert requested_wait(prefer) == seconds


def test_a_preference_made_to_be_slow_to_read_is_not() -> None:
    began = time.process_time()
    requested_wait("a=b")
    for evil in (
        "a;" * 8000,
        'a="' * 5000,
        " " * 16000,
        "a" + ";b " * 4000 + "=",
        "a" + " ;" * 8000,
    ):
        requested_wait(evil)
    assert time.process_time() - began < 2


def test_by_default_a_wait_ends_before_a_proxy_gives_up() -> None:
    assert requested_wait("wait=600") == 55
    assert requested_wait("wait=600", 120) == 120

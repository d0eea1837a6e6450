"""What notifications say, within the limits of PostgreSQL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.backends.postgres.payloads import (
    LONGEST_CHANNEL,
    LONGEST_PAYLOAD,
    MOST_PAYLOADS,
    channel_of,
    decode,
    encode,
    notification_of,
)
from jobcache.protocol.key import LONGEST_KEY

any_keys = st.lists(st.text(st.characters(codec="utf-8"), max_size=300), max_size=60, unique=True)
tokens = st.sampled_from(["", "w0", "0123456789abcdef"])


def reported(payloads: list[str]) -> set[str] | None:
    """The keys that all payloads report; None: anything."""
    found: set[str] = set()
    for payload in payloads:
        report = decode(payload)
        if report.keys is None:
            return None
        found.update(report.keys)
    return found


@given(tokens, any_keys)
def test_every_key_is_reported_by_name_or_as_anything(token: str, keys: list[str]) -> None:
    payloads = encode(token, keys)
    assert reported(payloads) in (set(keys), None)
    assert all(len(each.encode()) <= LONGEST_PAYLOAD and "\0" not in each for each in payloads)
    assert {decode(each).token for each in payloads} <= {token}
    assert reported([notification_of("c", token, keys).payload]) in (set(keys), None)


def test_ordinary_keys_are_reported_by_name() -> None:
    keys = [f"job:{number}:progress" for number in range(1000)]
    payloads = encode("w", keys)
    assert reported(payloads) == set(keys)
    assert len(payloads) == 3


def test_keys_of_any_length_fit() -> None:
    longest = "ü" * (LONGEST_KEY // 2)
    assert reported(encode("0123456789abcdef", [longest, "k"])) == {longest, "k"}


def test_with_too_many_keys_anything_may_have_changed() -> None:
    longest = [f"{number:04}" + "k" * (LONGEST_KEY - 4) for number in range(MOST_PAYLOADS + 1)]
    assert reported(encode("w", longest[:-1])) == set(longest[:-1])
    assert encode("w", longest) == [notification_of("c", "w", longest).payload]
    assert reported(encode("w", longest)) is None


@pytest.mark.parametrize("payload", ["", "\x1f", "\x1ft", "\x1ft\x1f", "\x1ft\x1fa\x1f"])
def test_a_payload_that_may_have_lost_a_key_means_anything(payload: str) -> None:
    assert decode(payload).keys is None


def test_triggers_and_people_send_the_key_alone() -> None:
    assert decode("job:7:progress") == ("", ["job:7:progress"])


def test_a_statement_can_add_the_key_itself() -> None:
    told = notification_of("c", "w", ())
    assert decode(f"{told.prefix}job:7") == ("w", ["job:7"])
    assert decode(told.payload).keys is None


def test_a_token_that_would_be_taken_for_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="letters and digits"):
        encode("w\x1f", ["k"])


@given(st.text(st.characters(codec="ascii"), max_size=64), st.text(max_size=64))
def test_channels_are_short_and_differ(prefix: str, other: str) -> None:
    assert len(channel_of(prefix).encode()) <= LONGEST_CHANNEL
    assert (channel_of(prefix) == channel_of(other)) is (prefix == other)

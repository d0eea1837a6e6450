"""The channels and payloads of notifications.

A payload is one of these:

    the key, as it is            the form for people in psql
    empty                        anything may have changed
    U+001F token U+001F keys     the token of the writer, and keys with a U+001F between them;
                                 without a token: of the trigger, and of others

An empty key means that anything may have changed. A writer recognises its own notification by the
token.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from jobcache.protocol.capabilities import Notification

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST_CHANNEL = 63
"""Bytes. LISTEN cuts longer names without an error, and pg_notify refuses them."""
LONGEST_PAYLOAD = 7999
"""Bytes; with more, the transaction fails."""
MOST_PAYLOADS = 16
"""In one transaction. With more keys than these hold, anything may have changed: the queue of the
server is shared by all databases, and its listeners read all of it."""
MARK = "\x1f"


def channel_of(prefix: str) -> str:
    """Return the channel of a namespace; for a long prefix, a hash of it is a part of the name."""
    channel = f"jobcache:{prefix}" if prefix else "jobcache"
    if len(channel.encode()) <= LONGEST_CHANNEL:
        return channel
    return f"jobcache:{hashlib.sha256(prefix.encode()).hexdigest()[:32]}"


def setting_of(channel: str) -> str:
    """Return the name of the setting with which a statement tells a trigger that it notifies.

    It holds a payload until the transaction ends. The trigger does not repeat the keys in it.
    """
    return f"jobcache.notified_{hashlib.sha256(channel.encode()).hexdigest()[:16]}"


def notification_of(channel: str, token: str, keys: Iterable[str]) -> Notification:
    """Return the one notification with which a transaction announces its keys."""
    prefix = _prefix(token)
    payloads = encode(token, keys)
    payload = payloads[0] if len(payloads) == 1 else prefix
    return Notification(channel, payload, prefix, setting_of(channel))


def encode(token: str, keys: Iterable[str]) -> list[str]:
    """Return the payloads that report these keys, as few as possible."""
    prefix = _prefix(token)
    payloads: list[str] = []
    payload, size = "", 0
    for key in keys:
        if not _is_plain(key):
            return [prefix]
        needed = len(key.encode()) + 1
        if payload and size + needed > LONGEST_PAYLOAD:
            payloads.append(payload)
            payload = ""
        if payload:
            payload += MARK + key
            size += needed
        else:
            payload = prefix + key
            size = len(payload.encode())
    if payload:
        payloads.append(payload)
    return payloads if len(payloads) <= MOST_PAYLOADS else [prefix]


class Report(NamedTuple):
    """What a notification says.

    Attributes:
        token: of the writer; empty if it has none.
        keys: that have changed; None: anything may have changed.
    """

    token: str
    keys: Sequence[str] | None


def decode(payload: str) -> Report:
    """Return what a payload says."""
    if not payload.startswith(MARK):
        token, keys = "", [payload]
    else:
        _, token, *keys = payload.split(MARK)
    return Report(token, None if "" in keys or not keys else keys)


def _prefix(token: str) -> str:
    if token and not (token.isascii() and token.isalnum()):
        raise ValueError(f"the token {token!r} is not made of letters and digits")
    return f"{MARK}{token}{MARK}"


def _is_plain(key: str) -> bool:
    """Return whether a payload can contain a key: PostgreSQL's texts hold no NUL."""
    return key != "" and MARK not in key and "\0" not in key

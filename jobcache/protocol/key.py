"""The keys that every backend can use."""

from __future__ import annotations

from jobcache.errors import InvalidKey

LONGEST_KEY = 4096
"""The most bytes that a key may have, in UTF-8."""


def check_key(key: object) -> None:
    """Check that `key` is one that every backend can use.

    Raises:
        InvalidKey: it is not a `str`, is too long, or cannot be encoded in UTF-8.
    """
    if not isinstance(key, str):
        raise InvalidKey(f"a key is of type {type(key).__name__}; it must be str")
    try:
        length = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKey(
            f"the key {key!r:.80} cannot be encoded in UTF-8: {error.reason}"
        ) from None
    if length > LONGEST_KEY:
        raise InvalidKey(f"the key {key[:40]!r}... has {length} bytes; at most {LONGEST_KEY}")

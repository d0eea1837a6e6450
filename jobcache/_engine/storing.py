"""How a value without a version is stored: as bytes, for some time, under its tags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from jobcache.errors import InvalidKey
from jobcache.lifetimes import LONGEST
from jobcache.protocol.codec import identity_body
from jobcache.protocol.key import check_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from jobcache.protocol.entry import Entry
    from jobcache.serializers import Serializer

T = TypeVar("T")

TAG_PREFIX = "jobcache:tag:"
"""The keys of tags begin with it. No value can have such a key."""


class Absent:
    """The result in place of a value if there is none: None is a value."""


ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class Storing(Generic[T]):
    """How the values of one function are stored.

    Attributes:
        serializer: turns values into bytes.
        ttl: seconds for which a value is served.
        tags: the tags of the value, sorted, each once.
        none: whether None is stored.
    """

    serializer: Serializer[T]
    ttl: float
    tags: tuple[str, ...] = ()
    none: bool = False


def seconds(ttl: float | timedelta) -> float:
    """Return a lifetime in seconds.

    Raises:
        ValueError: it is negative, above ten years, or not a number.
    """
    number = float(ttl) if isinstance(ttl, int | float) else ttl.total_seconds()
    if not 0 <= number <= LONGEST:
        raise ValueError(f"ttl={ttl!r}: it is a time from 0 seconds to ten years")
    return number


def sorted_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags in order, each once.

    Raises:
        TypeError: the tags are one string.
        InvalidKey: a tag cannot be used.
    """
    if isinstance(tags, str):
        raise TypeError(f"tags={tags!r}: several tags are expected, such as [{tags!r}]")
    unique = tuple(sorted(set(tags)))
    for tag in unique:
        check_key(TAG_PREFIX + tag)
    return unique


def tag_keys(tags: Iterable[str]) -> list[str]:
    """Return the keys of the cells of some tags."""
    return [TAG_PREFIX + tag for tag in tags]


def check_value_key(key: str) -> None:
    """Check that a value can have a key.

    Raises:
        InvalidKey: it cannot; the keys of tags cannot be used either.
    """
    check_key(key)
    if key.startswith(TAG_PREFIX):
        raise InvalidKey(f"the key {key!r:.80} begins with {TAG_PREFIX!r}, as the keys of tags do")


@dataclass(frozen=True, slots=True)
class Kept:
    """The value of an entry, decoded once if all callers may share it.

    Attributes:
        serializer: the serializer that has decoded it.
        shared: whether all callers may be given the value.
        value: the value; or the body, decompressed, which is decoded for each caller.
    """

    serializer: object
    shared: bool
    value: Any


def value_of(entry: Entry, serializer: Serializer[T]) -> T | Absent:
    """Return the value of an entry; `ABSENT` if this is no entry of such a value."""
    kept: Any = entry.kept
    try:
        if type(kept) is not Kept or kept.serializer is not serializer:
            body = identity_body(entry)
            value = serializer.loads(body)
            shared = bool(getattr(serializer, "shared", False))
            kept = Kept(serializer, shared, value if shared else body)
            object.__setattr__(entry, "kept", kept)
            return value
        found: T = kept.value if kept.shared else serializer.loads(kept.value)
    except Exception:  # noqa: BLE001 - stored by another version of the program, or damaged
        return ABSENT
    return found

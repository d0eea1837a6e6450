"""The errors that the library raises: those of the cache, of the source, and of its use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_SHOWN = 200  # characters of a wrong value


class JobCacheError(Exception):
    """The base class of all errors of this library."""


class CacheError(JobCacheError):
    """A backend could not run an operation. `JobCache` answers from the source instead."""


class CacheUnavailable(CacheError):  # noqa: N818 - reads as the state it reports
    """The store cannot be reached, is too slow, or refuses the operation."""


class CacheContended(CacheUnavailable):
    """The store answers, but other operations on the key were faster each time: nothing changed.

    Args:
        key: the key.
        attempts: how often the operation was tried.
    """

    def __init__(self, key: str, attempts: int) -> None:
        super().__init__(f"{key!r} is contended: nothing changed in {attempts} attempts")


class NamespaceConflict(CacheUnavailable):
    """The prefix belongs to a service with another database, so nothing is read or written.

    Args:
        prefix: the prefix.
        marker: the key that holds the identity of that database.
    """

    def __init__(self, prefix: str, marker: str) -> None:
        super().__init__(
            f"another database's service uses JOBCACHE_PREFIX={prefix!r} on this Redis: set"
            f" JOBCACHE_PREFIX to a name of its own, such as 'video:' (the key {marker!r} says"
            " whose the prefix is)"
        )


class UnreadableCell(CacheError):  # noqa: N818 - names the thing found
    """A key holds a value that no backend of this version wrote: another type or format."""


class SourceUnavailable(JobCacheError):  # noqa: N818 - reads as the state it reports
    """The source of truth cannot be reached. Loaders raise this error.

    `JobCache.read` then serves an entry past its freshness if the cache still holds one, and raises
    this error otherwise. All other exceptions of a loader are passed on.
    """


class LoadTimeout(SourceUnavailable):
    """A load took longer than the load timeout of its `JobCache`, and was cancelled."""


class RecursiveLoad(JobCacheError, RuntimeError):  # noqa: N818 - names the mistake
    """A load has read a key whose load waits for it: both would wait for ever.

    Attributes:
        keys: the keys, from the one that was read to the one whose load read it.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        way = " -> ".join(repr(key) for key in (*keys, keys[0]))
        super().__init__(
            f"a load waits for itself ({way}): a load of {keys[-1]!r} must not read {keys[0]!r}"
            " through the cache, but from the source"
        )


class DocumentMissing(JobCacheError, LookupError):  # noqa: N818 - reads as the state it reports
    """The body of a result was asked for, but the source has no such document."""


class InvalidDocument(JobCacheError, ValueError):  # noqa: N818 - names the thing found
    """A document cannot be stored, or a loader returned a value that is no document."""


class InvalidKey(InvalidDocument):
    """A key cannot be used: it is not a `str`, is too long, or cannot be encoded in UTF-8."""


class WrongLoop(JobCacheError, RuntimeError):  # noqa: N818 - names the mistake
    """A `JobCache` belongs to the event loop that used it first, and was used in another one."""


class SettingsError(JobCacheError, ValueError):
    """A setting is wrong. The message names the variable, the value and the allowed values."""

    def __init__(self, variable: str, value: object, allowed: str) -> None:
        self.variable = variable
        super().__init__(f"{variable}={_one_line(str(value))}: {allowed}")


class WriteMisuse(JobCacheError):  # noqa: N818 - names the mistake
    """A `write` block published a key that it had not fenced, or did not publish a fenced key."""


class CacheClosed(JobCacheError):  # noqa: N818 - reads as the state it reports
    """The cache is closed, or (in `jobcache.sync`) was closed while this call waited."""


def _one_line(text: str) -> str:
    """Return `text` without line breaks and other control characters, and not endlessly long."""
    shown = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in shown)


class UnsupportedRuntime(JobCacheError, RuntimeError):  # noqa: N818 - names the state of the process
    """The process is patched in a way that prevents an event loop of `jobcache.sync`."""


def redacted(url: str) -> str:
    """Return a URL without its user, password and query, for logs and errors.

    The raw text is cut, not parsed: a password may contain characters that end a host elsewhere.
    """
    scheme, separator, rest = url.partition("://")
    place = (rest if separator else url).rpartition("@")[2]
    return (scheme + separator if separator else "") + re.split(r"[?#]", place, maxsplit=1)[0]

"""What can go wrong, by type, so that callers can tell the cache's trouble from the source's."""

import re


class JobCacheError(Exception):
    """The base of every error this library raises on its own account."""


class CacheError(JobCacheError):
    """A backend could not do what it was asked. `JobCache` answers from the source instead."""


class CacheUnavailable(CacheError):  # noqa: N818 - reads as the state it reports
    """The store cannot be reached, is too slow, or refuses the operation."""


class UnreadableCell(CacheError):  # noqa: N818 - names the thing found
    """A key holds what no backend of this version wrote: garbage, another type or format."""


class SourceUnavailable(JobCacheError):  # noqa: N818 - reads as the state it reports
    """Raised by a caller's loader when the source of truth cannot be reached.

    `JobCache.read` then serves an entry past its freshness if it still holds one, and raises this
    on otherwise. Every other exception of a loader is passed on as it is.
    """


class SettingsError(JobCacheError, ValueError):
    """A setting is wrong. The message names the variable, the value and what is allowed."""

    def __init__(self, variable: str, value: object, allowed: str) -> None:
        self.variable = variable
        super().__init__(f"{variable}={value!s}: {allowed}")


class WriteMisuse(JobCacheError):  # noqa: N818 - names the mistake
    """A write-through block broke its own rules: it offered what it had not fenced, or nothing."""


class CacheClosed(JobCacheError):  # noqa: N818 - reads as the state it reports
    """`jobcache.sync`: the cache is closed, or was closed while this call waited."""


def redacted(url: str) -> str:
    """`url` without its user, password and query, fit for logs and errors.

    The raw text is cut before anything is parsed: a password may hold what ends a host elsewhere.
    """
    scheme, separator, rest = url.partition("://")
    place = (rest if separator else url).rpartition("@")[2]
    return (scheme + separator if separator else "") + re.split(r"[?#]", place, maxsplit=1)[0]

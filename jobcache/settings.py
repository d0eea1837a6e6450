"""What picks a backend and sets it up, from the environment or from code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from jobcache.errors import SettingsError, redacted

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_DIGITS = 18  # of a number that fits into 64 bits, and that int() reads in no time

GROUP = "jobcache.backends"
"""The entry-point group under which backends are found by name."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What picks a backend and sets it up.

    Attributes:
        backend: its name.
        redis_url: where Redis is; see `jobcache.backends.redis.RedisBackend`.
        prefix: put before every key in a store shared with others.
        max_entries: the most cells held in the process.
        max_bytes: about the most memory they take.
        shadow_rate: the part of the hits that is compared with the source, from 0 to 1.
    """

    backend: str = "memory"
    redis_url: str = "redis://127.0.0.1:6379/0"
    prefix: str = ""
    max_entries: int = 100_000
    max_bytes: int = 256 * 1024 * 1024
    shadow_rate: float = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> CacheSettings:
        """Read the settings; what is missing or empty keeps its default.

        The variables are `JOBCACHE_BACKEND`, `REDIS_URL`, `JOBCACHE_PREFIX`,
        `JOBCACHE_MAX_ENTRIES`, `JOBCACHE_MAX_BYTES` and `JOBCACHE_SHADOW_RATE`.

        Raises:
            SettingsError: a value is not allowed. Names the variable, the value and what is.
        """
        names = backend_names()
        backend = environment.get("JOBCACHE_BACKEND", "") or cls.backend
        if backend not in names:
            raise SettingsError("JOBCACHE_BACKEND", backend, f"one of {', '.join(names)}")
        prefix = environment.get("JOBCACHE_PREFIX", "")
        if not re.fullmatch(r"[\w.:/@-]{0,64}", prefix, re.ASCII):
            allowed = "up to 64 letters, digits and . : / @ _ -"
            raise SettingsError("JOBCACHE_PREFIX", prefix, allowed)
        redis_url = environment.get("REDIS_URL", "") or cls.redis_url
        if not re.match("rediss?([+](sentinel|cluster))?://|unix://", redis_url):
            allowed = (
                "a URL that begins with redis://, rediss://, unix://, redis+sentinel://,"
                " rediss+sentinel://, redis+cluster:// or rediss+cluster://"
            )
            raise SettingsError("REDIS_URL", redacted(redis_url), allowed)
        return cls(
            backend=backend,
            redis_url=redis_url,
            prefix=prefix,
            max_entries=_positive(environment, "JOBCACHE_MAX_ENTRIES", cls.max_entries),
            max_bytes=_positive(environment, "JOBCACHE_MAX_BYTES", cls.max_bytes),
            shadow_rate=_part(environment, "JOBCACHE_SHADOW_RATE", cls.shadow_rate),
        )

    def __repr__(self) -> str:
        return f"CacheSettings({self.backend}, {redacted(self.redis_url)}, prefix={self.prefix!r})"


def backend_names() -> list[str]:
    """The names that can be chosen, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def _positive(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable, "")
    if text == "":
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) > 0):
        raise SettingsError(variable, text[:40], "a whole number above 0")
    return int(text)


def _part(environment: Mapping[str, str], variable: str, default: float) -> float:
    text = environment.get(variable, "")
    if text == "":
        return default
    if re.fullmatch(r"(0|1|0?\.[0-9]{1,9}|1\.0+)", text) is None:
        raise SettingsError(variable, text[:40], "a number from 0 to 1, such as 0.01")
    return float(text)

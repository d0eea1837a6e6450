"""The settings that select and configure a backend, from the environment or from code."""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, field, fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypedDict

from jobcache.errors import SettingsError, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Unpack

_MOST_DIGITS = 18  # of a number that fits into 64 bits

_HOUR = 3600


class StoreOptions(TypedDict, total=False):
    """Settings of a store that its URL does not contain; see `CacheSettings`."""

    prefix: str
    max_entries: int
    max_bytes: int
    source_id: str
    postgres_direct_url: str


GROUP = "jobcache.backends"
"""The entry-point group under which backends are found by name."""


_REDIS_SCHEMES = frozenset({"redis", "rediss", "valkey", "valkeys", "unix"})
_POSTGRES_SCHEMES = frozenset({"postgres", "postgresql"})
_DATABASE = "(/[0-9]{0,6})?/?"
REDIS_URL = re.compile(
    "("
    f"(redis|valkey)s?://[^/?#\\s]*{_DATABASE}"
    f"|(redis|valkey)s?[+]sentinel://[^/?#\\s]+/[^/?#\\s]+{_DATABASE}"
    "|(redis|valkey)s?[+]cluster://[^/?#\\s]+(/0*)?/?"
    "|unix://[^?#]*"
    ")([?][^#\\s]*)?"
)
"""The form of a Redis URL. redis-py ignores a database that is no number, and a fragment."""


MEMCACHED_URL = re.compile(
    r"memcached://([^/?#\s@:\[\]]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?|memcached:///[^?#\s]+"
)
"""The form of a memcached URL: a host, or the path of a Unix socket."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, as the documentation lists it.

    Attributes:
        variable: the environment variable.
        topic: the table that lists it.
        meaning: what it is for.
        unit: of its value; empty if it has none.
        default: the value when the variable is missing or empty.
    """

    variable: str
    topic: str
    meaning: str
    unit: str = ""
    default: object


def _setting(
    variable: str,
    default: object,
    meaning: str,
    *,
    read: Callable[[str, str], object],
    topic: str = "Cache",
    unit: str = "",
) -> Any:  # noqa: ANN401 - like dataclasses.field
    """Declare a field of `CacheSettings` and its variable.

    Args:
        variable: the environment variable.
        default: the value when the variable is missing or empty.
        meaning: one sentence for the documentation.
        read: returns the value for a variable and its text, or raises `SettingsError`.
        topic: the table of the documentation that lists it.
        unit: of the value.
    """
    setting = Setting(variable=variable, topic=topic, meaning=meaning, unit=unit, default=default)
    return field(default=default, metadata={"setting": setting, "read": read})


def _backend(variable: str, text: str) -> str:
    names = backend_names()
    if text not in names:
        raise SettingsError(variable, text, f"one of {', '.join(names)}")
    return text


def _prefix(variable: str, text: str) -> str:
    if not re.fullmatch(r"[\w.:/@-]{0,64}", text, re.ASCII):
        raise SettingsError(variable, text, "up to 64 letters, digits and . : / @ _ -")
    return text


def _redis_url(variable: str, text: str) -> str:
    if not REDIS_URL.fullmatch(text):
        allowed = (
            "a URL that begins with redis://, rediss://, unix://, redis+sentinel://,"
            " rediss+sentinel://, redis+cluster:// or rediss+cluster://;"
            " valkey may be written instead of redis, a database is a number, and a # is %23"
        )
        raise SettingsError(variable, redacted(text), allowed)
    return text


def _memcached_url(variable: str, text: str) -> str:
    if not MEMCACHED_URL.fullmatch(text):
        allowed = "memcached://host:port, or memcached:///path of a Unix socket"
        raise SettingsError(variable, redacted(text), allowed)
    return text


def _positive(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) > 0):
        raise SettingsError(variable, text[:40], "a whole number above 0")
    return int(text)


def _load_timeout(variable: str, text: str) -> float:
    if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,9})?|\.[0-9]{1,9}", text) and 0 < float(text) <= _HOUR:
        return float(text)
    raise SettingsError(variable, text[:40], f"a number of seconds above 0, at most {_HOUR}")


def _share(variable: str, text: str) -> float:
    if re.fullmatch(r"(0|1|0?\.[0-9]{1,9}|1\.0+)", text) is None:
        raise SettingsError(variable, text[:40], "a number from 0 to 1, such as 0.01")
    return float(text)


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """The settings that select and configure a backend.

    Each field declares its environment variable and its meaning, except:

    Attributes:
        source_id: the identity of the source, such as a random id kept in the database. In a shared
            store, a prefix that belongs to another source is refused. Empty: nothing is checked.
        postgres_url: for the backend `postgres`, the database of the documents. From the
            environment it is `DATABASE_URL`.
        postgres_direct_url: the same database without the pooler that `postgres_url` leads through;
            empty: there is none. From the environment it is `DATABASE_DIRECT_URL`.
    """

    backend: str = _setting(
        "JOBCACHE_BACKEND",
        "memory",
        "The backend: `null`, `memory`, `memcached`, `redis`, `tiered`, `postgres`, or the name"
        " of a plug-in.",
        read=_backend,
    )
    redis_url: str = _setting(
        "REDIS_URL",
        "redis://127.0.0.1:6379/0",
        "Where Redis is: a server, sentinels or a cluster; see [Redis](redis.md).",
        read=_redis_url,
        topic="Redis",
    )
    memcached_url: str = _setting(
        "MEMCACHED_URL",
        "memcached://127.0.0.1:11211",
        "Where memcached is: `memcached://host:port`, or `memcached:///path` of a Unix socket.",
        read=_memcached_url,
        topic="Memcached",
    )
    prefix: str = _setting(
        "JOBCACHE_PREFIX",
        "",
        "A prefix of every key, for a store that is shared with other programs.",
        read=_prefix,
    )
    max_entries: int = _setting(
        "JOBCACHE_MAX_ENTRIES",
        100_000,
        "The largest number of entries held in a process.",
        unit="entries",
        read=_positive,
    )
    max_bytes: int = _setting(
        "JOBCACHE_MAX_BYTES",
        256 * 1024 * 1024,
        "The approximate limit of the memory that the entries of a process take. Decoded values of"
        " `cached` and `get_or_load` come on top.",
        unit="bytes",
        read=_positive,
    )
    load_timeout: float = _setting(
        "JOBCACHE_LOAD_TIMEOUT",
        30.0,
        "How long a load may take before it is cancelled and reported as an unavailable database.",
        unit="seconds",
        read=_load_timeout,
    )
    shadow_rate: float = _setting(
        "JOBCACHE_SHADOW_RATE",
        0.0,
        "The share of cache hits that is compared with the database, from 0 to 1.",
        read=_share,
    )
    source_id: str = ""
    postgres_url: str = ""
    postgres_direct_url: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> CacheSettings:
        """Read the settings. A variable that is missing or empty leaves the default.

        Raises:
            SettingsError: a value is not allowed; the message names the variable, the value and all
                allowed values.
        """
        values: dict[str, Any] = {}
        for declared in _from_environment(cls):
            variable = declared.metadata["setting"].variable
            text = environment.get(variable, "")
            if text != "":
                values[declared.name] = declared.metadata["read"](variable, text)
        if values.get("backend") == "postgres":
            # Declared by the service, whose database it is as a rule.
            values["postgres_url"] = environment.get("DATABASE_URL", "")
            values["postgres_direct_url"] = environment.get("DATABASE_DIRECT_URL", "")
        return cls(**values)

    @classmethod
    def from_url(cls, url: str, **settings: Unpack[StoreOptions]) -> CacheSettings:
        """Return the settings of the store that a URL names.

        The scheme selects the backend:

            memory://  null://                       in this process
            redis://  valkey://  rediss://  unix://  and with +sentinel or +cluster: Redis
            tiered+redis://                          memory before Redis; the same for the others
            memcached://host:port                    memcached
            postgresql://                            memory, and notifications of PostgreSQL
            NAME://                                  another backend, by its name

        Args:
            url: the URL. A backend that needs the rest of it takes it as its own URL setting.
            settings: values of other fields.

        Raises:
            SettingsError: the URL is wrong, or no backend has that name.
        """
        scheme, separator, rest = url.partition("://")
        tiered = scheme.startswith("tiered+")
        if tiered:
            url, scheme = url.removeprefix("tiered+"), scheme.removeprefix("tiered+")
        if tiered or scheme.partition("+")[0] in _REDIS_SCHEMES:
            checked = _redis_url("url", url)
            return cls(backend="tiered" if tiered else "redis", redis_url=checked, **settings)
        if scheme.partition("+")[0] in _POSTGRES_SCHEMES:
            return cls(backend="postgres", postgres_url=url, **settings)
        if not separator or scheme not in backend_names():
            names = ", ".join(f"{name}://" for name in backend_names())
            raise SettingsError("url", redacted(url), f"begins with one of {names}")
        for declared in fields(cls):
            if declared.name == f"{scheme}_url":
                values: dict[str, Any] = {declared.name: declared.metadata["read"]("url", url)}
                return cls(backend=scheme, **values, **settings)
        if rest:
            raise SettingsError("url", redacted(url), f"nothing after {scheme}://")
        return cls(backend=scheme, **settings)

    @classmethod
    def listed(cls) -> Iterator[Setting]:
        """Yield every setting, for the documentation."""
        for declared in _from_environment(cls):
            yield declared.metadata["setting"]

    def __repr__(self) -> str:
        return f"CacheSettings({self.backend}, {redacted(self.redis_url)}, prefix={self.prefix!r})"


def _from_environment(cls: type[CacheSettings]) -> list[Field[Any]]:
    """Return the fields that have an environment variable."""
    return [declared for declared in fields(cls) if "setting" in declared.metadata]


def backend_names() -> list[str]:
    """Return the names of all installed backends, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})

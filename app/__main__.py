"""The command line of the service: `python -m app serve`, `dev`, `db`, `keys` and `settings`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvicorn
from uvicorn.supervisors import Multiprocess

from app import environment, settings
from app.auth import commands
from app.auth.key_file import KeyFile
from app.db import commands as db_commands
from app.db.database import Database
from app.db.errors import DatabaseUnavailable, RevisionError
from app.http.descriptors import allow_connections
from app.http.limits import HEAD_BYTES
from app.http.listening import BACKLOG, CannotListen, listening
from app.http.serving import protocol
from app.jobs.triggers import triggers
from app.ops.greeting import greeting
from app.ops.tracing import check_installed
from jobcache import SettingsError
from jobcache.backends.registry import REMOTE, check_namespace, make_backend
from jobcache.errors import NamespaceConflict
from jobcache.settings import backend_names

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from app.settings import Settings

logger = logging.getLogger("app")

_FLAGS = {
    "host": "JOBCACHE_HOST",
    "port": "JOBCACHE_PORT",
    "uds": "JOBCACHE_UDS",
    "root_path": "JOBCACHE_ROOT_PATH",
    "backend": "JOBCACHE_BACKEND",
    "workers": "JOBCACHE_WORKERS",
    "database_url": "DATABASE_URL",
    "redis_url": "REDIS_URL",
    "memcached_url": "MEMCACHED_URL",
    "renderer": "JOBCACHE_RENDERER",
    "var_dir": "JOBCACHE_VAR_DIR",
    "log_level": "JOBCACHE_LOG_LEVEL",
    "log_format": "JOBCACHE_LOG_FORMAT",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the service and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except tuple(_FAILURES) as error:
        status, prefix = next(
            line for failure, line in _FAILURES.items() if isinstance(error, failure)
        )
        print(f"{prefix}{error}", file=sys.stderr)  # noqa: T201 - one line, without a traceback
    except KeyboardInterrupt:
        return 130
    return status


_FAILURES: dict[type[Exception], tuple[int, str]] = {
    SettingsError: (2, ""),
    DatabaseUnavailable: (3, "The database cannot be used: "),
    NamespaceConflict: (2, ""),
    CannotListen: (4, "Cannot listen on "),
    RevisionError: (5, ""),
}
"""For each failure to start: the exit status, and how the error message begins."""


def _keys(options: argparse.Namespace) -> int:
    environment.read_env_file()
    return commands.run(options)


def _db(options: argparse.Namespace) -> int:
    environment.prepare(_chosen_flags(options))
    chosen = settings.load()
    if options.db_command != "history":
        chosen.make_directories()
    prefix = chosen.cache.prefix
    return db_commands.run(options, chosen.database_url, chosen.pooler, lambda: triggers(prefix))


def _settings(_: argparse.Namespace) -> int:
    print(settings.document(), end="")  # noqa: T201 - the output of the command
    return 0


def _chosen_flags(options: argparse.Namespace) -> dict[str, str]:
    return {
        variable: value
        for flag, variable in _FLAGS.items()
        if (value := getattr(options, flag, None)) is not None
    }


def _run(options: argparse.Namespace) -> int:
    flags = _chosen_flags(options)
    if options.insecure:
        flags["JOBCACHE_INSECURE"] = "1"
    if options.access_log:
        flags["JOBCACHE_ACCESS_LOG"] = "1"
    environment.prepare(flags)
    starts_postgres = options.command == "dev" and options.database == "postgres"
    chosen = settings.load(database_follows=starts_postgres)
    with ExitStack() as stack:
        # uvicorn raises the signal again when it has stopped; by default nothing would be unwound.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        sockets = stack.enter_context(listening(chosen.host, chosen.port, chosen.uds))
        if options.command == "dev":
            _start_servers(stack, options.database)
            chosen = settings.load()  # with the URLs of the servers that were started
            asyncio.run(_upgrade(chosen))
        return _serve(chosen, sockets)


def _serve(chosen: Settings, sockets: list[socket.socket]) -> int:
    asyncio.run(_check(chosen))
    allow_connections(chosen.wanted_connections)
    # uvicorn raises the signal again when it has stopped in order, which is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        "app.main:worker",
        factory=True,
        workers=chosen.workers,
        access_log=False,  # the application writes its own: app/http/access_log.py
        log_config=None,
        backlog=BACKLOG,
        timeout_graceful_shutdown=10,
        timeout_worker_healthcheck=60,  # on a busy machine a worker may take long to start
        http=protocol(fast=chosen.fast_protocol),
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=cast("int", chosen.keep_alive),  # uvicorn accepts fractions, too
        ws="none",
        proxy_headers=False,  # the application reads them, for every path: app/http/forwarded.py
    )
    logger.info("%s", greeting(chosen, sockets))
    try:
        if chosen.workers > 1:
            Multiprocess(config, sockets=sockets).run()
            return 0
        server = uvicorn.Server(config)
        server.run(sockets=sockets)
    except SystemExit as stopped:  # of a signal that came after the server had stopped
        return stopped.code if isinstance(stopped.code, int) else 1
    return 0 if server.started else 1


async def _upgrade(chosen: Settings) -> None:
    """Upgrade the database, unless it is at the newest revision, or has no tables yet."""
    chosen.make_directories()
    database = Database(chosen.database_url, pooler=chosen.pooler)
    try:
        await database.prepare_tables()
    except RevisionError:
        from app.db.migrations.run import Migrations  # noqa: PLC0415 - rarely needed

        await Migrations(chosen.database_url, pooler=chosen.pooler).upgrade()
    finally:
        await database.aclose()


async def _check(chosen: Settings) -> None:
    """Check that the settings can be used: uvicorn reports errors of workers with a traceback.

    Raises:
        SettingsError: a setting cannot be used.
        DatabaseUnavailable: the database does not answer, or refuses the connection.
        RevisionError: its tables are older or newer than this version of the service.
        NamespaceConflict: the store of the cache belongs to a service with another database.
    """
    chosen.make_directories()
    if chosen.api_keys is not None:
        KeyFile(chosen.api_keys)
    check_installed(chosen.trace_rate)
    await make_backend(chosen.cache).aclose()
    database = Database(chosen.database_url, pooler=chosen.pooler)
    try:
        await database.prepare_tables()
        source_id = await database.source_id()
    finally:
        await database.aclose()
    if chosen.cache.backend == "postgres":
        from app.db.notifications import check_listener  # noqa: PLC0415 - needs its driver

        await check_listener(chosen.database_direct_url)
    if chosen.cache.backend in REMOTE:
        await check_namespace(replace(chosen.cache, source_id=source_id))


def _start_servers(servers: ExitStack, database: str | None) -> None:
    """Start the servers that are needed and whose URL is not set; stop them at the end."""
    # For development only: the service must not import it.
    from app.devservers import (  # noqa: PLC0415
        MemcachedServer,
        PostgresServer,
        RedisServer,
        ServerFailed,
        ServerMissing,
    )

    try:
        backend = os.environ.get("JOBCACHE_BACKEND")
        if backend in {"redis", "tiered"} and not os.environ.get("REDIS_URL"):
            redis = servers.enter_context(RedisServer())
            os.environ["REDIS_URL"] = redis.url
            logger.info(
                "started a Redis-compatible server at %s; it stops with the service", redis.url
            )
        if backend == "memcached" and not os.environ.get("MEMCACHED_URL"):
            memcached = servers.enter_context(MemcachedServer())
            os.environ["MEMCACHED_URL"] = memcached.url
            logger.info("started memcached at %s; it stops with the service", memcached.url)
        if database == "postgres" and not os.environ.get("DATABASE_URL"):
            data = Path(os.environ.get("JOBCACHE_VAR_DIR") or "var") / "postgres"
            data.parent.mkdir(parents=True, exist_ok=True)
            postgres = servers.enter_context(PostgresServer(data))
            os.environ["DATABASE_URL"] = postgres.url()
            logger.info("started PostgreSQL on %s; it stops with the service", data)
    except (ServerFailed, ServerMissing) as error:
        raise SystemExit(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    serve = subparsers.add_parser("serve", help="run the service")
    dev = subparsers.add_parser(
        "dev", help="run the service, and start Redis, memcached and PostgreSQL for it"
    )
    db = subparsers.add_parser(
        "db", help="upgrade the tables of the database, and install its trigger"
    )
    db_commands.add_to(db)
    db.set_defaults(run=_db)
    keys = subparsers.add_parser("keys", help="add, list and revoke API keys")
    commands.add_to(keys)
    keys.set_defaults(run=_keys)
    subparsers.add_parser("settings", help="list all settings").set_defaults(run=_settings)
    for command in (serve, dev):
        command.set_defaults(run=_run)
        command.add_argument("--host")
        command.add_argument("--port")
        command.add_argument("--root-path", help="the path under which a proxy serves the service")
        command.add_argument("--uds", help="the path of a Unix socket, instead of host and port")
        command.add_argument("--backend", help=", ".join(backend_names()))
        command.add_argument("--workers")
        command.add_argument("--database-url")
        command.add_argument("--redis-url")
        command.add_argument("--memcached-url")
        command.add_argument("--renderer", help="video; simulated, for load tests; or celery")
        command.add_argument("--var-dir", help="the directory of the database and of the videos")
        command.add_argument("--log-level", help="debug, info, warning or error")
        command.add_argument("--log-format", help="text or json")
        command.add_argument("--access-log", action="store_true", help="log each response")
        command.add_argument(
            "--insecure", action="store_true", help="listen on any address without API keys"
        )
    dev.add_argument(
        "--database",
        choices=["sqlite", "postgres"],
        help="the database to start, unless DATABASE_URL is set",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""The commands of `python -m app db`: upgrade, downgrade, current, history and trigger."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.db.revisions import BASE
from app.db.url import scheme_and_host
from jobcache import SettingsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from app.db.connections import Pooler
    from app.db.migrations.run import Migrations
    from jobcache.backends.postgres.trigger import Trigger


def add_to(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(dest="db_command", required=True)
    upgrade = commands.add_parser(
        "upgrade", help="create the tables, or bring existing ones to the newest revision"
    )
    upgrade.add_argument("revision", nargs="?", default="head", help="not the newest, but this one")
    downgrade = commands.add_parser("downgrade", help="return to an older revision")
    downgrade.add_argument(
        "revision", help="a revision; -1 for the one before; base to forget that there are any"
    )
    current = commands.add_parser("current", help="show the revision of the database")
    commands.add_parser("history", help="list all revisions, the newest first")
    trigger = commands.add_parser(
        "trigger", help="show, install or remove the trigger for changes by others (PostgreSQL)"
    )
    trigger.add_argument("action", nargs="?", choices=("show", "install", "remove"), default="show")
    for command in (upgrade, downgrade, current, trigger):
        command.add_argument("--database-url")
        command.add_argument("--var-dir", help="the directory of the SQLite database")


def run(
    options: argparse.Namespace, database_url: str, pooler: Pooler, triggers: Callable[[], Trigger]
) -> int:
    """Run the chosen command, and return the exit status.

    Args:
        options: of the command line.
        database_url: as for `Migrations`.
        pooler: as for `Migrations`.
        triggers: returns the statements of the command `trigger`.

    Raises:
        SettingsError: there is no trigger for this database; and as for `Migrations`.
        RevisionError, DatabaseUnavailable: as for `Migrations`.
    """
    from app.db.migrations.run import Migrations  # noqa: PLC0415 - no start needs Alembic

    if options.db_command == "trigger" and database_url.startswith("sqlite"):
        allowed = "the URL of a PostgreSQL database: on SQLite, no trigger reaches other processes"
        raise SettingsError("DATABASE_URL", scheme_and_host(database_url), allowed)
    if options.db_command == "trigger" and options.action == "show":
        print(_script(triggers().create))  # noqa: T201 - the product
        return 0
    migrations = Migrations(database_url, pooler=pooler)
    if options.db_command == "trigger":
        chosen = triggers()
        asyncio.run(
            migrations.execute(chosen.create if options.action == "install" else chosen.drop)
        )
    elif options.db_command == "history":
        print("\n".join(migrations.history()))  # noqa: T201 - the product
    elif options.db_command == "current":
        print(asyncio.run(_current(migrations)))  # noqa: T201 - the product
    else:
        upgrades = options.db_command == "upgrade"
        migrate = migrations.upgrade if upgrades else migrations.downgrade
        asyncio.run(migrate(options.revision))
        # Which database: without the variables of the service it is another one than meant.
        found = asyncio.run(_current(migrations))
        print(f"{scheme_and_host(database_url)}: {found}")  # noqa: T201 - the product
    return 0


def _script(statements: Sequence[str]) -> str:
    """Return the statements as one transaction for psql."""
    return "\n\n".join(f"{each};" for each in ("BEGIN", *statements, "COMMIT"))


async def _current(migrations: Migrations) -> str:
    found = await migrations.current()
    if found is None:
        return "no tables"
    if found == BASE:
        return "no revision: `python -m app db upgrade` adopts the tables"
    return f"{found} (head)" if found == migrations.head else found

"""The commands of `python -m app db`: upgrade, downgrade, current and history."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.db.revisions import BASE

if TYPE_CHECKING:
    import argparse

    from app.db.connections import Pooler
    from app.db.migrations.run import Migrations


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
    for command in (upgrade, downgrade, current):
        command.add_argument("--database-url")
        command.add_argument("--var-dir", help="the directory of the SQLite database")


def run(options: argparse.Namespace, database_url: str, pooler: Pooler) -> int:
    """Run the chosen command, and return the exit status.

    Raises:
        SettingsError, RevisionError, DatabaseUnavailable: as for `Migrations`.
    """
    from app.db.migrations.run import Migrations  # noqa: PLC0415 - no start needs Alembic

    migrations = Migrations(database_url, pooler=pooler)
    if options.db_command == "history":
        print("\n".join(migrations.history()))  # noqa: T201 - the product
    elif options.db_command == "current":
        print(asyncio.run(_current(migrations)))  # noqa: T201 - the product
    elif options.db_command == "upgrade":
        asyncio.run(migrations.upgrade(options.revision))
    else:
        asyncio.run(migrations.downgrade(options.revision))
    return 0


async def _current(migrations: Migrations) -> str:
    found = await migrations.current()
    if found is None:
        return "no tables"
    if found == BASE:
        return "no revision: `python -m app db upgrade` adopts the tables"
    return f"{found} (head)" if found == migrations.head else found

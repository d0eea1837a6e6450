"""Alembic's environment: it runs revisions on the connection that `app.db.migrations.run` opens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from alembic import context

from app.db.revisions import BASE
from app.db.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from alembic.runtime.migration import MigrationContext, MigrationInfo

logger = logging.getLogger("app")


def _report(
    ctx: MigrationContext,  # noqa: ARG001 - Alembic passes them all, by name
    step: MigrationInfo,
    heads: Collection[str],  # noqa: ARG001
    run_args: Mapping[str, object],  # noqa: ARG001
) -> None:
    before, after = step.source_revision_ids, step.destination_revision_ids
    logger.info("database: revision %s -> %s", *(", ".join(ids) or BASE for ids in (before, after)))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # A revision is applied completely or not at all, and the ones before it stay applied.
    transaction_per_migration=True,
    transactional_ddl=True,  # in SQLite too, where Alembic does not expect it
    on_version_apply=_report,
)
with context.begin_transaction():
    context.run_migrations()

"""The tables from before there were revisions, which are adopted with their data.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

from app.db.migrations.operations import create_index, on_postgres
from app.db.revisions import lock_creation

revision = "0001"
down_revision = None

metadata = sa.MetaData()
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

clients = sa.Table(
    "clients",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("client_id", sa.String(64), sa.ForeignKey("clients.id"), nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("scenes", sa.Integer),
    sa.Column("seconds_per_scene", sa.Float, nullable=False),
    sa.Column("renderer", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("percent", sa.Float, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("progress_at", sa.BigInteger),
    sa.Column("pace_ms", sa.BigInteger),
    sa.Column("storyboard", sa.Text),
    sa.Column("storyboard_version", sa.BigInteger),
    sa.Column("video_url", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("idempotency_key", sa.String(255)),
    sa.Column("request_hash", sa.String(64)),
    sa.UniqueConstraint("client_id", "idempotency_key"),
    sa.Index("jobs_by_client", "client_id", "id"),
    sa.Index("jobs_by_client_and_status", "client_id", "status", "id"),
    sa.Index("jobs_by_status", "status", "id"),
    sqlite_autoincrement=True,
)

_runnable = sa.text(
    "status IN ('pending', 'storyboarding') OR status = 'rendering' AND renderer != 'external'"
)
sa.Index("jobs_to_move", jobs.c.id, sqlite_where=_runnable, postgresql_where=_runnable)

identity = sa.Table(
    "service_identity",
    metadata,
    sa.Column("source_id", sa.String(32), primary_key=True),
)

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("job_id", _Id, sa.ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    sa.Column("runner", sa.String(64), nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
)


def upgrade() -> None:
    """Create the tables and indexes that are missing, and the identity of the database."""
    connection = op.get_bind()
    if on_postgres():
        lock_creation(connection)  # an older version of the service may start meanwhile
    inspector = sa.inspect(connection)
    existing = [table for table in metadata.sorted_tables if inspector.has_table(table.name)]
    for table in existing:
        _check(table, {column["name"] for column in inspector.get_columns(table.name)})
    metadata.create_all(connection)
    if connection.execute(sa.select(identity.c.source_id)).first() is None:
        connection.execute(identity.insert().values(source_id=uuid.uuid4().hex))
    for table in existing:
        present = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in present:
                create_index(index)


def _check(table: sa.Table, present: set[str]) -> None:
    missing = sorted({column.name for column in table.columns} - present)
    if missing:
        raise CommandError(
            f"its table {table.name} has no column {missing[0]}, so it belongs to another program"
        )


def downgrade() -> None:
    """Keep all tables: only their revision is forgotten, and an upgrade adopts them again."""

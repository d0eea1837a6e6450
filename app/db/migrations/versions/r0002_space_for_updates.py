"""Space for new versions of rows, and earlier vacuums, on PostgreSQL.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

from app.db.migrations.operations import on_postgres

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Set the storage parameters of the jobs; existing pages stay as they are."""
    if on_postgres():
        op.execute("ALTER TABLE jobs SET (fillfactor=80, autovacuum_vacuum_scale_factor=0.02)")


def downgrade() -> None:
    """Return to PostgreSQL's defaults."""
    if on_postgres():
        op.execute("ALTER TABLE jobs RESET (fillfactor, autovacuum_vacuum_scale_factor)")

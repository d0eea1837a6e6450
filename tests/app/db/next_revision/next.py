"""What the next revision may be: an index and a column.

Revision ID: 9999
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.db.migrations.operations import create_index, drop_index, on_postgres
from app.db.revisions import HEAD

revision = "9999"
down_revision = HEAD

jobs = sa.Table("jobs", sa.MetaData(), sa.Column("created_at", sa.BigInteger))
by_time = sa.Index("jobs_by_time", jobs.c.created_at)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("priority", sa.Integer), if_not_exists=on_postgres())
    create_index(by_time)


def downgrade() -> None:
    drop_index(by_time)
    op.drop_column("jobs", "priority", if_exists=on_postgres())

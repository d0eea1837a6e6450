"""The tables of the service, as of the newest revision.

A change here needs a revision in `app/db/migrations/versions/` that makes the same change to
existing databases.

Times are integers: milliseconds since the epoch, which both databases compare and subtract alike.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    literal_column,
    or_,
)

metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")

clients = Table(
    "clients",
    metadata,
    Column("id", String(64), primary_key=True),
    # of the client's list of jobs: raised by each statement that adds or removes one
    Column("version", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("client_id", String(64), ForeignKey("clients.id"), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("scenes", Integer),
    Column("seconds_per_scene", Float, nullable=False),
    Column("renderer", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("percent", Float, nullable=False),
    Column("stage", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("progress_at", BigInteger),
    Column("pace_ms", BigInteger),  # between recent progress reports
    Column("storyboard", Text),
    Column("storyboard_version", BigInteger),
    Column("video_url", Text),
    Column("error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    UniqueConstraint("client_id", "idempotency_key"),
    # Lists run newest first; each of these ends where the page begins.
    Index("jobs_by_client", "client_id", "id"),
    Index("jobs_by_client_and_status", "client_id", "status", "id"),
    Index("jobs_by_status", "status", "id"),
    sqlite_autoincrement=True,  # an id is never given twice, or versions would start anew
    postgresql_with={
        # Rows change many times before their job ends; a new version of a row fits on its page.
        "fillfactor": 80,
        # The default, a fifth, is of all jobs that there ever were. Until a vacuum, the search for
        # work reads the index entries of jobs that have ended.
        "autovacuum_vacuum_scale_factor": 0.02,
    },
)

RUNNABLE = or_(
    jobs.c.status.in_([literal_column("'pending'"), literal_column("'storyboarding'")]),
    and_(
        jobs.c.status == literal_column("'rendering'"),
        jobs.c.renderer != literal_column("'external'"),
    ),
)
"""Jobs whose next step the service takes itself. The values are literals: a planner that meets a
parameter cannot know that the index below is enough. The index holds only these jobs."""
Index("jobs_to_move", jobs.c.id, sqlite_where=RUNNABLE, postgresql_where=RUNNABLE)

identity = Table(
    "service_identity",
    metadata,
    # One row. Services that share a store tell by it which database each of them belongs to.
    Column("source_id", String(32), primary_key=True),
)

claims = Table(
    "claims",
    metadata,
    # Which process works on which job. Not part of `jobs`, because it is not in the document.
    Column("job_id", _Id, ForeignKey("jobs.id"), primary_key=True, autoincrement=False),
    Column("runner", String(64), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
)

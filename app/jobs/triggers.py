"""The triggers that notify of changes which do not go through the service.

Lists are notified of by the table of clients, where the version of a list stands. So who adds or
removes a job by hand raises that version in the same transaction, as the service does.
"""

from __future__ import annotations

from app.db.tables import clients, jobs
from app.jobs.cache_keys import jobs_key, progress_key, storyboard_key
from jobcache.backends.postgres.trigger import Trigger, trigger_sql


def triggers(prefix: str) -> Trigger:
    """Return the statements for the triggers of all tables that documents are made of."""
    of_jobs = trigger_sql(
        jobs.name,
        {progress_key("{id}"): (), storyboard_key("{id}"): (jobs.c.storyboard_version.name,)},
        prefix=prefix,
        version=jobs.c.version.name,
    )
    of_clients = trigger_sql(
        clients.name, jobs_key("{id}"), prefix=prefix, version=clients.c.version.name
    )
    return Trigger(of_jobs.create + of_clients.create, of_jobs.drop + of_clients.drop)

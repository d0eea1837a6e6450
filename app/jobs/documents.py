"""From rows to the documents that the cache holds and polls return, as bytes."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from app.jobs.cache_keys import jobs_key
from app.jobs.schemas import JobBody, ProgressBody
from app.jobs.states import TERMINAL, Status
from jobcache import Document, Lifetimes

if TYPE_CHECKING:
    from app.jobs.storage import Job, JobList, StoredStoryboard

_POLL_AFTER = {
    Status.PENDING: 1,
    Status.STORYBOARDING: 1,
    Status.STORYBOARD_READY: 5,  # waits for a person
    Status.APPROVED: 5,
}
_LINKS = (b"storyboard_url", b"video_url")
_RENDERING_FIRST, _RENDERING_MOST = 2, 30

_STORYBOARD = "storyboard"
_LISTS = jobs_key("")


def lifetimes(*, changing: float, terminal: float, unknown: float, grace: float) -> Lifetimes:
    """Return how long documents live in the cache. All times in seconds.

    Args:
        changing: for jobs that can still change, and for lists.
        terminal: for jobs that have ended, and for storyboards: neither changes any more.
        unknown: for the note that a job or a client does not exist.
        grace: how much longer a document is kept, to be served while the database is away.
    """
    by_status = dict.fromkeys([*map(str, TERMINAL), _STORYBOARD], terminal)
    return Lifetimes(default=changing, by_status=by_status, gone=unknown, grace=grace)


def check_body(key: str, body: bytes) -> None:
    """Check that `body`, found in the cache under `key`, is of the form that is written here.

    Raises:
        ValueError: it is not; the document is then loaded again.
    """
    found = json.loads(body)
    right = isinstance(found, dict)
    if right and key.startswith(_LISTS):
        ids, complete = found.get("ids"), found.get("complete")
        right = isinstance(ids, list) and all(type(each) is int for each in ids)
        right = right and isinstance(complete, bool)
    if not right:
        raise ValueError("it is no document of this service")


def job_document(job: Job) -> Document:
    """A job's status."""
    body = JobBody(
        id=job.id,
        client_id=job.client_id,
        prompt=job.prompt,
        status=job.status,
        terminal=job.status in TERMINAL,
        progress=ProgressBody(
            percent=job.percent,
            stage=job.stage,
            message=job.message,
            updated_at=None if job.progress_at is None else _moment(job.progress_at),
        ),
        version=job.version,
        error=job.error,
        storyboard_url=(
            None if job.storyboard_version is None else f"/api/v2/jobs/{job.id}/storyboard"
        ),
        video_url=job.video_url,
        created_at=_moment(job.created_at),
        updated_at=_moment(job.updated_at),
    )
    return Document(
        version=job.version,
        owner=job.client_id,
        body=body.model_dump_json().encode(),
        status=job.status,
        poll_after=poll_after(job),
    )


def with_prefix(body: bytes, root_path: str) -> bytes:
    """Return documents of jobs with links that begin with `root_path`.

    What is stored and cached never has a prefix: it is shared by clients that come by different
    ways. Inside a JSON string a quote is escaped, so nothing but the fields themselves looks like
    this; and a URL elsewhere, which a worker has named, begins with its scheme.
    """
    if not root_path:
        return body
    prefix = root_path.encode()
    for field in _LINKS:
        body = body.replace(b'"%b":"/' % field, b'"%b":"%b/' % (field, prefix))
    return body


def poll_after(job: Job) -> int | None:
    """Seconds until asking again makes sense: as long as progress reports have been apart."""
    if job.status in TERMINAL:
        return None
    if job.status is not Status.RENDERING:
        return _POLL_AFTER[job.status]
    if job.pace_ms is None:
        return _RENDERING_FIRST
    return min(max(1, math.ceil(job.pace_ms / 1000)), _RENDERING_MOST)


def storyboard_document(stored: StoredStoryboard) -> Document:
    """A job's storyboard, at the job's version that brought it."""
    return Document(
        version=stored.version,
        owner=stored.client_id,
        body=stored.text.encode(),
        status=_STORYBOARD,
    )


def list_document(client_id: str, listed: JobList) -> Document | None:
    """A client's newest job ids; None for a client that has never made one."""
    if listed.version == 0:
        return None
    body = json.dumps({"ids": listed.ids, "complete": listed.complete}).encode()
    return Document(version=listed.version, owner=client_id, body=body, status="list")


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

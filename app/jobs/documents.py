"""Makes documents of rows: the JSON that the cache stores and polls return."""

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
    """Return the lifetimes of documents in the cache. All arguments are in seconds.

    Args:
        changing: for jobs that can still change, and for lists.
        terminal: for jobs that have ended, and for storyboards: neither changes any more.
        unknown: for the entry which says that a job or a client does not exist.
        grace: the time after its lifetime for which a document is kept, to be served while the
            database is away.
    """
    by_status = dict.fromkeys([*map(str, TERMINAL), _STORYBOARD], terminal)
    return Lifetimes(default=changing, by_status=by_status, gone=unknown, grace=grace)


def check_body(key: str, body: bytes) -> None:
    """Check that a body from the cache has the form that this module writes.

    Raises:
        ValueError: it has another form; the document is then loaded again.
    """
    found = json.loads(body)
    right = isinstance(found, dict)
    if right and key.startswith(_LISTS):
        ids, complete = found.get("ids"), found.get("complete")
        right = isinstance(ids, list) and all(type(each) is int for each in ids)
        right = right and isinstance(complete, bool)
    if not right:
        raise ValueError("the body is not a document of this service")


def job_document(job: Job) -> Document:
    """Return the document of a job's status."""
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
    """Return a document whose links begin with `root_path`.

    Stored documents have no prefix, because clients share them that come through different proxies.
    Only the fields themselves match: a quote inside a JSON string is escaped, and a URL of a worker
    begins with its scheme.
    """
    if not root_path:
        return body
    prefix = root_path.encode()
    for field in _LINKS:
        body = body.replace(b'"%b":"/' % field, b'"%b":"%b/' % (field, prefix))
    return body


def poll_after(job: Job) -> int | None:
    """Return the seconds until the next poll makes sense, from the pace of progress reports."""
    if job.status in TERMINAL:
        return None
    if job.status is not Status.RENDERING:
        return _POLL_AFTER[job.status]
    if job.pace_ms is None:
        return _RENDERING_FIRST
    return min(max(1, math.ceil(job.pace_ms / 1000)), _RENDERING_MOST)


def storyboard_document(stored: StoredStoryboard) -> Document:
    """Return the document of a storyboard. Its version is the job's when it was written."""
    return Document(
        version=stored.version,
        owner=stored.client_id,
        body=stored.text.encode(),
        status=_STORYBOARD,
    )


def list_document(client_id: str, listed: JobList) -> Document | None:
    """Return the document of a client's newest job ids; None if the client has made no job."""
    if listed.version == 0:
        return None
    body = json.dumps({"ids": listed.ids, "complete": listed.complete}).encode()
    return Document(version=listed.version, owner=client_id, body=body, status="list")


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

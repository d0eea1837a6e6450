"""The operations on jobs. Every read goes through the cache, every change is written through it.

A caller who may not see a job gets the same answer as for a job that does not exist. Reads decide
that by the owner in the cache entry, on a hit as on a miss. Changes decide it by the condition of
their statement.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from app.auth.callers import TRUSTED
from app.jobs import states
from app.jobs.cache_keys import jobs_key, progress_key, storyboard_key
from app.jobs.documents import job_document, list_document, storyboard_document, with_prefix
from app.jobs.storage import StoredStoryboard, progress_values
from jobcache.http.batch import read_visible
from jobcache.http.polled_document import PolledDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.auth.callers import Caller
    from app.db.database import Database
    from app.jobs.states import Status, Transition
    from app.jobs.storage import Job, JobStore, NewJob
    from app.rendering.storyboard import Storyboard
    from jobcache import Document, JobCache, ReadResult

LISTED = 1000
"""How many of a client's newest job ids the cache holds; older pages come from the database."""

_TRIES = 5


class JobNotFound(Exception):  # noqa: N818 - names the reason
    """The job does not exist, or the caller may not see it."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"There is no job {job_id}.")


class IllegalTransition(Exception):  # noqa: N818 - names the reason
    """The state of the job, or its renderer, does not allow the operation."""


class RepeatMismatch(Exception):  # noqa: N818 - names the reason
    """An idempotency key was used again with a different request."""


class TooManyJobs(Exception):  # noqa: N818 - names the reason
    """The client has as many unfinished jobs as it may."""

    def __init__(self, client_id: str, most: int) -> None:
        super().__init__(
            f"Client {client_id} has {most} unfinished jobs, as many as it may; wait until one has"
            " ended, or cancel one."
        )


class _NothingChanged(Exception):  # noqa: N818 - rolls a transaction back, within this module
    pass


@dataclass(frozen=True, slots=True)
class Page:
    """A page of jobs.

    Attributes:
        bodies: the bodies of the jobs.
        next_below: the next page begins below this id; None: this is the last page.
    """

    bodies: list[bytes]
    next_below: int | None


class JobService:
    """Reads and changes jobs.

    Args:
        database: runs transactions.
        store: runs statements.
        cache: the cache.
        clock_ms: wall-clock time in milliseconds.
        most_unfinished: the most unfinished jobs of one client; 0: no limit.

    Attributes:
        on_change: called with the new row after each committed change.
    """

    def __init__(
        self,
        database: Database,
        store: JobStore,
        cache: JobCache,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        *,
        most_unfinished: int = 0,
    ) -> None:
        self._most_unfinished = most_unfinished
        self._database = database
        self._store = store
        self._cache = cache
        self._clock_ms = clock_ms
        self.on_change: list[Callable[[Job], None]] = []
        self._documents: WeakKeyDictionary[Job, Document] = WeakKeyDictionary()

    # --- reading ---

    async def poll(self, job_id: int, caller: Caller, *, min_version: int = 0) -> ReadResult:
        """Return a job's status.

        Args:
            job_id: the job.
            caller: who polls.
            min_version: the version that the client has seen.

        Raises:
            JobNotFound: there is no such job for this caller.
        """
        load = partial(self._load, job_id)
        answer = await self._cache.read(progress_key(job_id), load, min_version=min_version)
        return self.require_visible(caller, job_id, answer)

    def polled_document(self, job_id: int, caller: Caller, root_path: str = "") -> PolledDocument:
        """Return the document of a job's status for a caller, whose links begin with a prefix."""
        return PolledDocument(
            self._cache,
            progress_key(job_id),
            partial(self._load, job_id),
            caller.can_view_entry,
            partial(JobNotFound, job_id),
            partial(with_prefix, root_path=root_path) if root_path else None,
            caller,
            caller.name,
        )

    async def _load(self, job_id: int) -> Document | None:
        job = await self._store.load(job_id)
        return None if job is None else job_document(job)

    def require_visible(self, caller: Caller, job_id: int, answer: ReadResult) -> ReadResult:
        """Return the result of a read if the caller may see the job.

        Raises:
            JobNotFound: there is no such job for this caller.
        """
        entry = answer.entry
        # Not `answer.missing`: this is on the path of every poll, and a property is a call.
        if entry.version == 0 or not caller.can_view(entry.owner):
            raise JobNotFound(job_id)
        return answer

    async def poll_many(self, job_ids: Sequence[int], caller: Caller) -> dict[int, bytes]:
        """Return the bodies of the jobs that the caller may see, in the order of `job_ids`."""

        async def load(ids: Sequence[int]) -> Mapping[int, Document]:
            return {job.id: job_document(job) for job in await self._store.load_many(ids)}

        ids = {progress_key(job_id): job_id for job_id in job_ids}
        return await read_visible(self._cache, ids, load, caller.can_view_entry)

    async def storyboard(self, job_id: int, caller: Caller, *, min_version: int = 0) -> ReadResult:
        """Return a job's storyboard.

        Raises:
            JobNotFound: there is no such job for this caller.
            IllegalTransition: the job has no storyboard yet.
        """

        async def load() -> Document | None:
            stored = await self._store.load_storyboard(job_id)
            return None if stored is None else storyboard_document(stored)

        answer = await self._cache.read(storyboard_key(job_id), load, min_version=min_version)
        if answer.missing:
            status = (await self.poll(job_id, caller)).entry.status
            raise IllegalTransition(f"Job {job_id} has no storyboard yet: it is {status}.")
        if not caller.can_view(answer.entry.owner):
            raise JobNotFound(job_id)
        return answer

    async def page(
        self,
        caller: Caller,
        *,
        client_id: str | None,
        status: Status | None,
        below: int | None,
        limit: int,
    ) -> Page:
        """Return a page of jobs, newest first; one client's newest jobs come from the cache."""
        if client_id is None:
            client_id = caller.client
        elif not caller.can_view(client_id):
            return Page([], None)
        if client_id is not None and status is None:
            listed = await self._listed(client_id)
            ids = [job_id for job_id in listed["ids"] if below is None or job_id < below]
            if len(ids) > limit or listed["complete"]:
                bodies = await self.poll_many(ids[:limit], caller)
                more = len(ids) > limit
                return Page(list(bodies.values()), ids[limit - 1] if more else None)
        found = await self._store.page(
            client_id=client_id, status=status, below=below, limit=limit + 1
        )
        return Page(
            [job_document(job).body for job in found[:limit]],
            found[limit - 1].id if len(found) > limit else None,
        )

    async def _listed(self, client_id: str) -> dict[str, Any]:
        async def load() -> Document | None:
            return list_document(client_id, await self._store.load_list(client_id, LISTED))

        answer = await self._cache.read(jobs_key(client_id), load)
        if answer.missing:
            return {"ids": [], "complete": True}
        listed: dict[str, Any] = answer.json()
        return listed

    # --- changing ---

    async def create(self, new: NewJob) -> Job:
        """Create a job, or return the one that was created with the same idempotency key.

        Raises:
            RepeatMismatch: the key was used with a different request.
            TooManyJobs: the client has as many unfinished jobs as it may.
        """
        return await self._database.shielded.run(self._create(new))

    async def _create(self, new: NewJob) -> Job:
        try:
            job = await self._database.change(partial(self._insert, new))
        except _NothingChanged:
            return await self._repeated(new)
        self._notify(job)
        return job

    async def _insert(self, new: NewJob) -> Job:
        async with self._cache.write(self._database.transaction()) as write:
            created = await self._store.create(
                write.transaction, new, self._clock_ms(), write.notification
            )
            if created is None:
                raise _NothingChanged  # to roll back
            job, list_version = created
            most = self._most_unfinished
            if most > 0:
                # After the lock of the client's row, so that two creations do not both find room;
                # after the insert, so that a repeated request finds its job in any case.
                client_id = new.client_id
                if (
                    await self._store.count_unfinished(write.transaction, client_id, most + 1)
                    > most
                ):
                    raise TooManyJobs(client_id, most)
            # Fenced before others can see the row: that removes the entry which says that there is
            # no such job, if a poll has stored one.
            key, list_key = progress_key(job.id), jobs_key(new.client_id)
            await write.fence(key, list_key, notified=True)
            write.publish(key, self.document(job))
            write.outdate(list_key, list_version)
        return job

    async def _repeated(self, new: NewJob) -> Job:
        job = await self._store.load_repeated(new.client_id, str(new.idempotency_key))
        if job is None or job.request_hash != new.request_hash:
            raise RepeatMismatch(
                "This Idempotency-Key has been used with a different request; use a new one."
            )
        return job

    async def approve(self, job_id: int, caller: Caller) -> Job:
        """Approve the storyboard. Repeating it changes nothing."""
        return await self._make_transition(job_id, states.APPROVE, caller)

    async def render(self, job_id: int, caller: Caller) -> Job:
        """Begin rendering. Repeating it changes nothing."""
        return await self._make_transition(job_id, states.RENDER, caller)

    async def cancel(self, job_id: int, caller: Caller) -> Job:
        """Cancel a job that has not ended. Repeating it changes nothing."""
        return await self._make_transition(job_id, states.CANCEL, caller)

    async def report_progress(
        self, job_id: int, percent: float, stage: str, message: str, *, worker: bool
    ) -> Job:
        """Store progress of rendering; `worker`: a user's worker reports it, not the service."""
        transition = states.WORKER_PROGRESS if worker else states.PROGRESS
        values = progress_values(percent, stage, message, self._clock_ms())
        return await self._make_transition(job_id, transition, **values)

    async def complete(self, job_id: int, video_url: str | None, *, worker: bool) -> Job:
        """Complete a job."""
        transition = states.WORKER_COMPLETE if worker else states.COMPLETE
        return await self._make_transition(
            job_id,
            transition,
            percent=100.0,
            stage="",
            message="",
            progress_at=self._clock_ms(),
            video_url=video_url,
        )

    async def fail(self, job_id: int, error: str, *, worker: bool) -> Job:
        """End a job with an error that its client can read."""
        return await self._make_transition(
            job_id, states.WORKER_FAIL if worker else states.FAIL, error=error
        )

    async def begin_storyboard(self, job_id: int) -> Job:
        """Begin to write the storyboard."""
        return await self._make_transition(job_id, states.BEGIN_STORYBOARD)

    async def finish_storyboard(self, job_id: int, storyboard: Storyboard) -> Job:
        """Store the storyboard."""
        return await self._make_transition(
            job_id, states.FINISH_STORYBOARD, storyboard=storyboard.model_dump_json()
        )

    async def _make_transition(
        self,
        job_id: int,
        transition: Transition,
        caller: Caller = TRUSTED,
        **values: Any,  # noqa: ANN401 - of columns
    ) -> Job:
        """Make a transition of a job's state, and publish the job.

        Raises:
            JobNotFound: there is no such job for this caller.
            IllegalTransition: the job's state does not allow it.
        """
        for _ in range(_TRIES):
            try:
                attempt = partial(self._try, job_id, transition, caller, values)
                job = await self._database.change(attempt)
            except _NothingChanged:
                now = await self._refusal(job_id, transition, caller)
                if now is not None:
                    return now
            else:
                self._notify(job)
                return job
        raise IllegalTransition(
            f"Job {job_id} is changing too fast to {transition.name}; try again."
        )

    async def _try(
        self, job_id: int, transition: Transition, caller: Caller, values: dict[str, Any]
    ) -> Job:
        keys = [progress_key(job_id)]
        if transition is states.FINISH_STORYBOARD:
            keys.append(storyboard_key(job_id))
        async with self._cache.write(self._database.transaction()) as write:
            job = await self._store.make_transition(
                write.transaction,
                job_id,
                transition,
                self._clock_ms(),
                values,
                client_id=caller.client,
                notification=write.notification(*keys),
            )
            if job is None:
                raise _NothingChanged
            # Made, and kept, while the fence is on its way.
            asyncio.get_running_loop().call_soon(self.document, job)
            # Fenced only now: a refused change, or an unreachable database, leaves the entry.
            await write.fence(*keys, notified=True)
            write.publish(keys[0], self.document(job))
            if transition is states.FINISH_STORYBOARD:
                stored = StoredStoryboard(job.client_id, job.version, values["storyboard"])
                write.publish(keys[1], storyboard_document(stored))
        return job

    async def _refusal(self, job_id: int, transition: Transition, caller: Caller) -> Job | None:
        """Raise the reason why a transition was refused; return the job if it was made before.

        Return None if the job's state allows the transition by now.
        """
        job = await self._store.load(job_id)
        if job is None or not caller.can_view(job.client_id):
            raise JobNotFound(job_id)
        if transition.external and job.renderer != "external":
            raise IllegalTransition(
                f"Job {job_id} is rendered by the service itself, which reports on it;"
                f" it is {job.status}."
            )
        if job.status in transition.done:
            return job
        if job.status in transition.allowed:
            return None
        raise IllegalTransition(
            f"Job {job_id} is {job.status}: it is not possible to {transition.name}."
        )

    def document(self, job: Job) -> Document:
        """Return a job's document, made once for each row."""
        document = self._documents.get(job)
        if document is None:
            document = self._documents[job] = job_document(job)
        return document

    def _notify(self, job: Job) -> None:
        for listener in self.on_change:
            listener(job)

"""SQL statements that read and change jobs.

Every change of a job is one statement. It raises the version under the row's lock, its condition
refuses transitions that the job's state does not allow, and it returns the new row. The storyboard
is left out of the row, because it is large and rarely needed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from app.db.tables import RUNNABLE, claims, clients, jobs
from app.jobs.cache_keys import jobs_key, progress_key
from app.jobs.states import MOVING, TERMINAL, Status, Transition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from sqlalchemy import BindParameter, ColumnElement, Row, Update
    from sqlalchemy.ext.asyncio import AsyncConnection

    from app.db.database import Database
    from jobcache.protocol.capabilities import Notification

    Announce = Callable[..., Notification | None]
    """Returns the notification of the keys that it is called with; None if writers fence."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Job:
    """A row of the table of jobs, as one statement read it. Times are in milliseconds.

    The storyboard is a `StoredStoryboard`; `storyboard_version` is None until it exists.
    """

    id: int
    client_id: str
    prompt: str
    scenes: int | None
    seconds_per_scene: float
    renderer: str
    status: Status
    version: int
    percent: float
    stage: str
    message: str
    progress_at: int | None
    pace_ms: int | None
    storyboard_version: int | None
    video_url: str | None
    error: str | None
    created_at: int
    updated_at: int
    idempotency_key: str | None
    request_hash: str | None


@dataclass(frozen=True, slots=True)
class StoredStoryboard:
    """A job's storyboard, as JSON.

    Attributes:
        client_id: the owner of the job.
        version: the version of the job that added the storyboard.
        text: the JSON.
    """

    client_id: str
    version: int
    text: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A runner's claim of a job.

    Attributes:
        runner: the name under which the job was claimed.
        expires_at: until when a change of the job renews the claim.
    """

    runner: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class UnfinishedJobs:
    """How many jobs have not ended.

    Attributes:
        by_status: their number, by status.
        waiting: those whose next step the service takes, and on which no runner works.
    """

    by_status: Mapping[str, int]
    waiting: int


class ClaimLost(Exception):  # noqa: N818 - says what is the matter
    """Another runner has the job now, or the job has ended."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"job {job_id} is no longer claimed by this runner")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that a client asks for."""

    client_id: str
    prompt: str
    scenes: int | None
    seconds_per_scene: float
    renderer: str
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True)
class JobList:
    """A client's newest job ids, newest first, at one version of its list.

    Attributes:
        version: the version of the list; 0 if the client is unknown.
        ids: the newest job ids.
        complete: False if there are older jobs.
    """

    version: int
    ids: tuple[int, ...]
    complete: bool


_NAMES = [field.name for field in fields(Job)]
_COLUMNS = [jobs.c[name] for name in _NAMES]
_STATUS = _NAMES.index("status")
_JOB_COLUMNS = len(_NAMES)
_SELECT = select(*_COLUMNS)
_SELECT_ONE = _SELECT.where(jobs.c.id == bindparam("job_id"))  # built once: it serves every miss
_MOVING = sorted(map(str, MOVING))
_BEFORE_ID, _AFTER_ID = progress_key(0).split("0")
_NAMED_AT_ONCE = 1000  # databases limit the parameters of a statement


class JobStore:
    """Reads and changes jobs. Writes run in the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = sqlite.insert if database.is_sqlite else postgresql.insert

    # --- reading ---

    async def load(self, job_id: int) -> Job | None:
        """Return a job from a snapshot begun now, or None."""
        rows = await self._database.read(_SELECT_ONE, "load", job_id=job_id)
        return _job(rows[0]) if rows else None

    async def load_many(self, job_ids: Collection[int]) -> list[Job]:
        """Return those of the jobs that exist, in one query."""
        rows = await self._database.read(_SELECT.where(jobs.c.id.in_(job_ids)), "load")
        return [_job(row) for row in rows]

    async def load_storyboard(self, job_id: int) -> StoredStoryboard | None:
        """Return a job's storyboard from a snapshot begun now, or None if it does not exist."""
        statement = select(jobs.c.client_id, jobs.c.storyboard_version, jobs.c.storyboard).where(
            jobs.c.id == job_id, jobs.c.storyboard.is_not(None)
        )
        rows = await self._database.read(statement, "load")
        if not rows:
            return None
        row = rows[0]
        return StoredStoryboard(row.client_id, row.storyboard_version, row.storyboard)

    async def load_list(self, client_id: str, limit: int) -> JobList:
        """Return a client's list and its version, from one snapshot and so in one statement."""
        # The limit comes before the join: otherwise a client's whole history is read and sorted.
        newest = (
            select(jobs.c.id)
            .where(jobs.c.client_id == client_id)
            .order_by(jobs.c.id.desc())
            .limit(limit + 1)
            .subquery("newest")
        )
        statement = (
            select(clients.c.version, newest.c.id)
            .select_from(clients.outerjoin(newest, true()))
            .where(clients.c.id == client_id)
            .order_by(newest.c.id.desc())
        )
        rows = await self._database.read(statement, "list")
        if not rows:
            return JobList(0, (), complete=True)
        ids = tuple(row.id for row in rows if row.id is not None)
        return JobList(rows[0].version, ids[:limit], complete=len(ids) <= limit)

    async def page(
        self, *, client_id: str | None, status: Status | None, below: int | None, limit: int
    ) -> list[Job]:
        """Return up to `limit` jobs, newest first, with ids below `below`."""
        statement = _SELECT.order_by(jobs.c.id.desc()).limit(limit)
        if client_id is not None:
            statement = statement.where(jobs.c.client_id == client_id)
        if status is not None:
            statement = statement.where(jobs.c.status == status)
        if below is not None:
            statement = statement.where(jobs.c.id < below)
        return [_job(row) for row in await self._database.read(statement, "list")]

    async def load_repeated(self, client_id: str, idempotency_key: str) -> Job | None:
        """Return the job that an idempotency key has created before, or None."""
        statement = _SELECT.where(
            jobs.c.client_id == client_id, jobs.c.idempotency_key == idempotency_key
        )
        rows = await self._database.read(statement, "load")
        return _job(rows[0]) if rows else None

    # --- changing ---

    async def create(
        self,
        connection: AsyncConnection,
        new: NewJob,
        now_ms: int,
        announce: Announce = lambda *_: None,
    ) -> tuple[Job, int] | None:
        """Insert a job; return it and the new version of its client's list.

        Return None if the client has used the idempotency key before. The caller must then roll
        the transaction back. Both statements notify, if `announce` returns notifications.
        """
        # Lock the client's row first, as everywhere: this orders the creations of a client.
        raised = self._insert(clients).values(id=new.client_id, version=1)
        listed = announce(jobs_key(new.client_id))
        version = await connection.scalar(
            raised.on_conflict_do_update(
                index_elements=[clients.c.id], set_={"version": clients.c.version + 1}
            ).returning(clients.c.version, *_notify_client(listed))
        )
        inserted = self._insert(jobs).values(
            client_id=new.client_id,
            prompt=new.prompt,
            scenes=new.scenes,
            seconds_per_scene=new.seconds_per_scene,
            renderer=new.renderer,
            status=Status.PENDING,
            version=1,
            percent=0.0,
            stage="",
            message="",
            created_at=now_ms,
            updated_at=now_ms,
            idempotency_key=new.idempotency_key,
            request_hash=new.request_hash,
        )
        result = await connection.execute(
            inserted.on_conflict_do_nothing(
                index_elements=[jobs.c.client_id, jobs.c.idempotency_key]
            ).returning(*_COLUMNS, *_notify_inserted(announce()))
        )
        row = result.one_or_none()
        return None if row is None or version is None else (_job(row), version)

    async def count_unfinished(
        self, connection: AsyncConnection, client_id: str, at_most: int
    ) -> int:
        """Count a client's jobs that have not ended, the new one included, up to `at_most`.

        The jobs are adjacent in an index, so the database reads at most `at_most` rows.
        """
        some = (
            select(literal_column("1"))
            .select_from(jobs)
            .where(jobs.c.client_id == client_id, jobs.c.status.in_(_MOVING))
            .limit(at_most)
            .subquery("some")
        )
        count = await connection.scalar(select(func.count()).select_from(some))
        return 0 if count is None else count

    async def make_transition(
        self,
        connection: AsyncConnection,
        job_id: int,
        transition: Transition,
        now_ms: int,
        values: dict[str, Any],
        *,
        client_id: str | None = None,
        claim: Claim | None = None,
        notification: Notification | None = None,
    ) -> Job | None:
        """Make a transition and raise the version; return the new row.

        Return None if the job does not exist or its state does not allow the transition. With
        `client_id`, jobs of other clients do not exist. With `claim`, the transition also renews
        the claim. With `notification`, the statement sends it.

        Raises:
            ClaimLost: the runner does not hold the claim; the transaction must be rolled back.
        """
        parameters: dict[str, Any] = {"job_id": job_id, "to_updated_at": now_ms}
        for name, value in values.items():
            parameters[f"to_{name}"] = value
        if client_id is not None:
            parameters["of_client"] = client_id
        if notification is not None:
            parameters["notify_channel"] = notification.channel
            parameters["notify_payload"] = notification.payload
            parameters["notify_setting"] = notification.setting
        statement = transition_statement(
            transition,
            frozenset(values),
            of_client=client_id is not None,
            notifies=notification is not None,
        )
        result = await connection.execute(statement, parameters)
        row = result.one_or_none()
        if row is not None and claim is not None:
            await self._hold(connection, job_id, claim)
        if row is not None and transition.to in TERMINAL:
            # A runner in another process then finds that it has lost its claim.
            await connection.execute(delete(claims).where(claims.c.job_id == job_id))
        return None if row is None else _job(row)

    async def _hold(self, connection: AsyncConnection, job_id: int, claim: Claim) -> None:
        """Renew a claim, which stays locked until the transaction ends.

            A: still holds its claim     B: the claim has expired, and is mine
            A: commits 60 %              B: commits 5 %

        With the lock, B's claim waits for A's commit. It is taken after the lock of the job's row,
        as everywhere; in the opposite order two transactions could wait for each other.
        """
        renewed = await connection.execute(
            update(claims)
            .where(claims.c.job_id == job_id, claims.c.runner == claim.runner)
            .values(expires_at=claim.expires_at)
            .returning(claims.c.job_id)
        )
        if renewed.first() is None:
            raise ClaimLost(job_id)

    # --- claims: which runner works on which job ---

    async def claim(self, job_id: int, runner: str, now_ms: int, expires_at: int) -> int | None:
        """Claim a job that no runner works on; return the number of attempts, or None."""
        claimed = self._insert(claims).values(
            job_id=job_id, runner=runner, expires_at=expires_at, attempts=1
        )
        statement = claimed.on_conflict_do_update(
            index_elements=[claims.c.job_id],
            set_={
                "runner": runner,
                "expires_at": expires_at,
                "attempts": claims.c.attempts + 1,
            },
            where=claims.c.expires_at < now_ms,
        ).returning(claims.c.attempts)
        rows = await self._database.write(statement)
        return rows[0].attempts if rows else None

    async def renew_claims(self, job_ids: Sequence[int], runner: str, expires_at: int) -> set[int]:
        """Renew the runner's claims of these jobs; return the jobs that it still holds.

        The jobs are named because the runner may hold other claims that should expire.
        """
        held: set[int] = set()
        for start in range(0, len(job_ids), _NAMED_AT_ONCE):
            some = job_ids[start : start + _NAMED_AT_ONCE]
            statement = (
                update(claims)
                .where(claims.c.runner == runner, claims.c.job_id.in_(some))
                .values(expires_at=expires_at)
                .returning(claims.c.job_id)
            )
            held.update(row.job_id for row in await self._database.write(statement))
        return held

    async def release_claim(self, job_id: int, runner: str) -> None:
        """Release the runner's claim of a job."""
        await self._database.write(
            delete(claims).where(claims.c.job_id == job_id, claims.c.runner == runner)
        )

    async def find_unfinished(
        self, now_ms: int, limit: int, *, renders: bool | None = None
    ) -> list[Job]:
        """Return the oldest unfinished jobs that the service drives and no runner works on.

        Args:
            now_ms: the time, in milliseconds.
            limit: the most jobs to return.
            renders: True for jobs whose video is to be rendered, False for those that get their
                storyboard, None for both.
        """
        statement = (
            select(*_COLUMNS)
            .select_from(jobs.outerjoin(claims, claims.c.job_id == jobs.c.id))
            .where(RUNNABLE, or_(claims.c.job_id.is_(None), claims.c.expires_at < now_ms))
            .order_by(jobs.c.id)
            .limit(limit)
        )
        if renders is not None:
            rendering = jobs.c.status == Status.RENDERING
            statement = statement.where(rendering if renders else not_(rendering))
        return [_job(row) for row in await self._database.read(statement, "recovery")]

    async def count_unfinished_jobs(self, now_ms: int) -> UnfinishedJobs:
        """Count the unfinished jobs.

        Args:
            now_ms: the time, in milliseconds.
        """
        waits = and_(RUNNABLE, or_(claims.c.job_id.is_(None), claims.c.expires_at < now_ms))
        statement = (
            select(
                jobs.c.status,
                func.count().label("number"),
                func.count(case((waits, 1))).label("waiting"),
            )
            .select_from(jobs.outerjoin(claims, claims.c.job_id == jobs.c.id))
            .where(jobs.c.status.in_(sorted(MOVING)))
            .group_by(jobs.c.status)
        )
        rows = await self._database.read(statement, "metrics")
        counted = {row.status: int(row.number) for row in rows}
        return UnfinishedJobs(
            {each.value: counted.get(each.value, 0) for each in Status if each in MOVING},
            sum(int(row.waiting) for row in rows),
        )

    async def load_to_render(self, job_id: int) -> str | None:
        """Return the storyboard of a job that is being rendered, or None if it is not."""
        statement = select(func.coalesce(jobs.c.storyboard, "")).where(
            jobs.c.id == job_id, jobs.c.status == Status.RENDERING
        )
        rows = await self._database.read(statement, "work")
        return rows[0][0] if rows else None


@cache
def transition_statement(
    transition: Transition,
    changed: frozenset[str],
    *,
    of_client: bool = False,
    notifies: bool = False,
) -> Update:
    """Build the statement for a transition; cached, because building costs as much as sending.

    Args:
        transition: the statement returns no row if the state of the job does not allow it.
        changed: columns that get new values; columns that depend on them are changed too.
        of_client: whether the statement is limited to the jobs of one client.
        notifies: whether the statement notifies, if it changes the row.

    Returns:
        A statement with the parameters `job_id`, `of_client`, those of `_NOTIFY`,
        `to_updated_at`, and `to_` before every changed column.
    """
    values: dict[str, Any] = {name: _new(name) for name in changed | {"updated_at"}}
    if "progress_at" in changed and transition.to not in TERMINAL:
        values["pace_ms"] = _pace(_new("progress_at"))
    if "storyboard" in changed:  # it gets the version of the job that adds it
        values["storyboard_version"] = jobs.c.version + 1
    # One parameter each: SQLAlchemy would expand a list of plain values at every execution.
    allowed = [literal(str(status)) for status in sorted(transition.allowed)]
    condition = and_(jobs.c.id == bindparam("job_id"), jobs.c.status.in_(allowed))
    if transition.external:
        condition = and_(condition, jobs.c.renderer == "external")
    if of_client:
        condition = and_(condition, jobs.c.client_id == bindparam("of_client"))
    return (
        update(jobs)
        .where(condition)
        .values(status=str(transition.to), version=jobs.c.version + 1, **values)
        .returning(*_COLUMNS, *([_NOTIFY] if notifies else []))
    )


def _pg_notify(
    channel: ColumnElement[str], payload: ColumnElement[str], setting: ColumnElement[str]
) -> ColumnElement[Any]:
    """Return what notifies, and tells the table's trigger, if it has one, not to repeat it."""
    return func.pg_notify(channel, func.set_config(setting, payload, literal_column("true")))


_NOTIFY = _pg_notify(
    *(bindparam(f"notify_{name}", type_=Text) for name in ("channel", "payload", "setting"))
)


def _notify_client(notification: Notification | None) -> list[ColumnElement[Any]]:
    """Return what the statement returns besides the version of a client's list."""
    if notification is None:
        return []
    channel, payload, _, setting = (literal(each, Text) for each in notification)
    return [_pg_notify(channel, payload, setting)]


def _notify_inserted(notification: Notification | None) -> list[ColumnElement[Any]]:
    """Return what the INSERT of a job returns besides the row: only it knows the key."""
    if notification is None:
        return []
    channel, _, prefix, setting = (literal(each, Text) for each in notification)
    key = literal(_BEFORE_ID, Text) + cast(jobs.c.id, Text) + literal(_AFTER_ID, Text)
    return [_pg_notify(channel, prefix + key, setting)]


def _new(name: str) -> BindParameter[Any]:
    """Return the parameter of a column's new value; SQLAlchemy reserves the bare name."""
    return bindparam(f"to_{name}", type_=jobs.c[name].type)


def _pace(now_ms: ColumnElement[Any]) -> ColumnElement[Any]:
    """Compute the pace of progress reports: a moving average of the gaps between them."""
    gap = now_ms - jobs.c.progress_at
    return case(
        (jobs.c.progress_at.is_(None), None),
        (jobs.c.pace_ms.is_(None), gap),
        else_=(jobs.c.pace_ms * 3 + gap) // 4,
    )


def progress_values(percent: float, stage: str, message: str, now_ms: int) -> dict[str, Any]:
    """Return the columns that a progress report changes."""
    return {"percent": percent, "stage": stage, "message": message, "progress_at": now_ms}


def _job(row: Row[Any]) -> Job:
    """Return the job of a row that begins with `_COLUMNS`."""
    values = list(row[:_JOB_COLUMNS])
    values[_STATUS] = Status(values[_STATUS])
    return Job(*values)

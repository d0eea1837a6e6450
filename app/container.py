"""The composition of the service: the one place that chooses concrete classes."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from anyio.from_thread import start_blocking_portal

from app.auth.key_file import KeyFile
from app.auth.middleware import unauthorized
from app.auth.rate_limit import RateLimit, read_rate
from app.db.database import Database
from app.db.outage_logger import OutageLogger
from app.db.registration import Registration
from app.http.problems import problem
from app.jobs.documents import check_body, lifetimes
from app.jobs.render_queue import RenderQueue
from app.jobs.render_worker import RenderWorker
from app.jobs.runner import Runner
from app.jobs.service import JobService
from app.jobs.storage import JobStore
from app.ops.measuring import SERVICE_METRICS, Measuring
from app.ops.metrics import JobCounter
from app.ops.process_reports import ProcessReports
from app.ops.statistics import state_of
from app.ops.tracing import Tracing
from app.rendering.simulated import SimulatedRenderer
from app.rendering.video import VideoRenderer
from jobcache import JobCache
from jobcache.backends import memory
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.registry import make_backend
from jobcache.http.event_stream import FULL, FULL_RETRY, EventStreams
from jobcache.http.fastapi import PollingRoutes
from jobcache.http.held_requests import HeldRequests
from jobcache.http.polling import Polling
from jobcache.sync import JobCache as SyncJobCache

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from app.jobs.storage import Announce
    from app.rendering.renderer import Renderer
    from app.settings import Settings
    from jobcache import Lifetimes
    from jobcache.protocol.backend import CacheBackend

_SIMULATED_AT_ONCE = 10_000  # they need no CPU


@dataclass(frozen=True)
class Services:
    """The parts of the service."""

    database: Database
    registration: Registration
    cache: JobCache
    jobs: JobService
    held: HeldRequests
    events: EventStreams
    polling: PollingRoutes
    runner: Runner
    queue: RenderQueue | None
    reports: ProcessReports
    unfinished: JobCounter
    tracing: Tracing | None
    keys: KeyFile | None
    rate: RateLimit | None


def build(settings: Settings) -> Services:
    """Create the parts of the service. They connect to nothing yet.

    Raises:
        SettingsError: the backend cannot be set up so, or the keys cannot be read.
    """
    keys = None if settings.api_keys is None else KeyFile(settings.api_keys)
    rate = RateLimit(read_rate(settings.rate_limit)) if settings.rate_limit else None
    tracing = (
        Tracing(settings.trace_rate, settings.traces_per_second) if settings.trace_rate else None
    )
    settings.make_directories()
    database = _database(settings)
    cache = JobCache(
        _backend(settings, database),
        lifetimes=_lifetimes(settings),
        load_timeout=settings.cache.load_timeout,
        check_body=check_body,
        shadow_rate=settings.cache.shadow_rate,
        instrumentation=None if tracing is None else tracing.instrumentation,
    )
    in_process = cache.backend if isinstance(cache.backend, MemoryBackend) else None
    registration = Registration(database, in_process)
    store = JobStore(database)
    jobs = JobService(database, store, cache, most_unfinished=settings.max_unfinished_jobs)
    held = HeldRequests(settings.max_held_requests, cache.cancel_waiters)
    if keys is not None:
        held.admits = keys.admits
        keys.on_change.append(held.review)
    events = EventStreams(
        held,
        heartbeat=settings.heartbeat_seconds,
        lasts=settings.stream_seconds,
        full=lambda path: problem(503, FULL, instance=path, headers={"Retry-After": FULL_RETRY}),
    )
    polling = PollingRoutes(
        cache,
        held=held,
        polling=Polling(
            events,
            longest_wait=settings.max_wait,
            refused=lambda path: unauthorized(path, token=b""),
        ),
        unavailable=lambda error: error,  # the application has handlers for it
    )
    renderer, at_once = (
        (None, 1) if settings.renderer == "celery" else _renderer(settings.renderer, settings)
    )
    runner = Runner(
        jobs,
        store,
        renderer,
        videos=settings.videos,
        at_once=at_once,
        claim_for=settings.claim_seconds,
    )
    jobs.on_change.append(runner.seen)
    queue = _queue(settings, store)
    if queue is not None:
        jobs.on_change.append(queue.seen)
    measuring = Measuring(cache, database, held)
    jobs.on_change.append(measuring.count_change)
    return Services(
        database,
        registration,
        cache,
        jobs,
        held,
        events,
        polling,
        runner,
        queue,
        ProcessReports(
            settings.var_dir / "processes",
            partial(state_of, cache),
            measuring.measure,
            SERVICE_METRICS,
        ),
        JobCounter(lambda: store.count_unfinished_jobs(time.time_ns() // 1_000_000)),
        tracing,
        keys,
        rate,
    )


def _backend(settings: Settings, database: Database) -> CacheBackend:
    """Return the backend; "postgres" notifies on the connections of the database's pool."""
    if settings.cache.backend != "postgres":
        return make_backend(settings.cache)
    # SQLite needs no driver of PostgreSQL.
    from app.db.notifications import DatabaseWriters, listener  # noqa: PLC0415
    from jobcache.backends.postgres.factory import make_postgres  # noqa: PLC0415

    return make_postgres(
        memory.from_settings(settings.cache),
        listener(settings.database_direct_url),
        DatabaseWriters(database),
        settings.cache.prefix,
    )


def _lifetimes(settings: Settings) -> Lifetimes:
    return lifetimes(
        changing=settings.ttl,
        terminal=settings.ttl_terminal,
        unknown=settings.ttl_unknown,
        grace=settings.grace,
    )


def _database(settings: Settings) -> Database:
    return Database(
        settings.database_url,
        OutageLogger(),
        pool_recycle=settings.pool_recycle,
        pooler=settings.pooler,
    )


def _queue(settings: Settings, store: JobStore) -> RenderQueue | None:
    if settings.renderer != "celery":
        return None
    from app.celery_app import CeleryQueue, make_celery_app  # noqa: PLC0415 - may be missing

    queue = CeleryQueue(make_celery_app(settings.celery_broker_url, settings.celery_queue))
    return RenderQueue(store, queue, check_every=settings.claim_seconds / 3)


def _renderer(name: str, settings: Settings) -> tuple[Renderer, int]:
    """Return a renderer, and how many videos a process renders at the same time."""
    if name == "simulated":
        return SimulatedRenderer(
            settings.simulated_seconds, settings.simulated_updates
        ), _SIMULATED_AT_ONCE
    processors = os.cpu_count()
    spare = max(1, (1 if processors is None else processors) - 1)
    return VideoRenderer(), settings.renders if settings.renders > 0 else spare


@asynccontextmanager
async def running(services: Services, *, tables_checked: bool = False) -> AsyncIterator[None]:
    """Start the parts of the service, and stop them in the opposite order.

    Args:
        services: the parts.
        tables_checked: whether the parent of this process has prepared the tables. Then a worker
            that takes the place of another starts while the database is being migrated, too.
    """
    try:
        if not tables_checked:
            await services.database.prepare_tables()
        await services.registration.start()
        source_id = await services.database.source_id()
        await services.cache.start(source_id)
        await services.reports.start(source_id)
        services.runner.start()
        if services.queue is not None:
            services.queue.start()
        if services.keys is not None:
            services.keys.start()
        try:
            yield
        finally:
            services.held.shutdown.close()
            if services.keys is not None:
                await services.keys.aclose()
            if services.queue is not None:
                await services.queue.aclose()
            await services.runner.aclose()
            await services.database.shielded.join()  # so that writes under way are published
    finally:
        await services.cache.aclose()
        await services.database.shielded.join()
        await services.reports.aclose()
        if services.tracing is not None:
            await asyncio.to_thread(services.tracing.close)
        await services.registration.aclose()
        await services.database.aclose()


def _announce(settings: Settings) -> Announce | None:
    """Return how a process without a cache of its own notifies those that have one."""
    if settings.cache.backend != "postgres":
        return None
    from jobcache.backends.postgres.payloads import channel_of, notification_of  # noqa: PLC0415

    channel = channel_of(settings.cache.prefix)
    return lambda *keys: notification_of(channel, "", keys)


@contextmanager
def render_worker(settings: Settings) -> Iterator[RenderWorker]:
    """Create and start the parts of a queue's worker, and stop them at the end.

    Raises:
        SettingsError: the settings cannot be used.
        SourceUnavailable: the database is away.
        RevisionError: its tables are older or newer than this version of the service.
        NamespaceConflict: the store of the cache belongs to a service with another database.
    """
    renderer, _ = _renderer(settings.celery_renderer, settings)
    settings.make_directories()
    # A worker writes, and reads nothing that a local tier could spare it. With `postgres`, its
    # statements notify.
    without_local = {"tiered": "redis", "postgres": "null"}
    backend = settings.cache.backend
    cache_settings = replace(settings.cache, backend=without_local.get(backend, backend))
    with (
        start_blocking_portal(name="jobcache database") as portal,
        SyncJobCache(cache_settings, lifetimes=_lifetimes(settings)) as cache,
    ):
        database = portal.call(_database, settings)
        registration = Registration(database, None)
        try:
            portal.call(database.prepare_tables)
            portal.call(registration.start)
            cache.start(portal.call(database.source_id))
            yield RenderWorker(
                portal,
                database,
                JobStore(database),
                cache,
                renderer,
                videos=settings.videos,
                claim_for=settings.claim_seconds,
                announce=_announce(settings),
            )
        finally:
            portal.call(registration.aclose)
            portal.call(database.aclose)

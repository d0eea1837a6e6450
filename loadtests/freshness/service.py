"""The unchanged service, in a process that can be made to die at the worst moment.

    python -m loadtests.freshness.service

It reads the settings of the service from the environment, and three more:

    FRESHNESS_SECONDS   how long entries of jobs that still move stay fresh
    FRESHNESS_VALUES    set: the service also has values without a version (`value_routes`)
    FRESHNESS_BREAK     the rule of the protocol to remove, one of `switches.BREAKS`: it must be
                        noticed

After SIGUSR1 the process kills itself as soon as it is about to publish a document that one of its
writers has committed. The switches sit between the guard and Redis, so the service itself has none.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from app import log_format, settings
from app.main import create_app
from jobcache.backends import registry, tiered
from jobcache.backends.postgres import factory as postgres
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.redis import backend as redis
from jobcache.backends.redis.namespace import Namespace
from jobcache.backends.redis.script_calls import Call
from jobcache.backends.redis.tracking.feed import TrackingFeed
from jobcache.protocol.backend import PublishResult
from jobcache.resilience import guarded_backend
from loadtests.freshness.faulty_postgres import FaultyPostgres
from loadtests.freshness.owner import KEEP_ALIVE, end_with_owner
from loadtests.freshness.switches import Switches
from loadtests.freshness.trace import Trace, TracedBreaker, TracedConfirmation, TracedGuard
from loadtests.freshness.value_routes import ValueRoutes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection

    from jobcache.protocol.entry import Entry

_LATE = 0.02  # seconds, at most, by which a broken publish comes later: races become likelier
_HEARTBEAT = (
    0.05  # seconds between two of the feed's timed writes: more of them, to measure its lag
)


class DeafTiers(tiered.TieredBackend):
    """Two tiers, whose local tier ignores the change feed."""

    def changed(self, keys: Sequence[str]) -> None:
        """Ignore a change."""


class FaultyRedis(redis.RedisBackend):
    """The Redis backend, without the rule that the switches remove.

    It is a subclass because it must have every ability of the Redis backend, present and future.
    """

    def __init__(self, switches: Switches, url: str, **options: Any) -> None:  # noqa: ANN401 - its
        super().__init__(url, **options)
        self._switches = switches
        self._fenced: set[tuple[str, str]] = set()

    def fence_future(self, key: str, token: str) -> asyncio.Future[None]:
        """Fence a key, unless this rule is removed; remember the writer."""
        self._fenced.add((key, token))
        if self._switches.broken != "fence":
            return super().fence_future(key, token)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def publish_future(
        self, key: str, token: str, entry: Entry | None
    ) -> asyncio.Future[PublishResult]:
        """Publish, unless the process dies first or a rule is removed."""
        writes = (key, token) in self._fenced
        self._fenced.discard((key, token))
        if writes and entry is not None and self._switches.dies_at_publish:
            os.kill(os.getpid(), signal.SIGKILL)
        broken = self._switches.broken
        if entry is not None and broken == "removal" and entry.keep_ms == 0:
            done: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()
            done.set_result(PublishResult.NOTHING)
            return done
        if entry is not None and broken == ("order" if writes else "lease"):
            return asyncio.ensure_future(self._publish_late(key, token, entry))
        return super().publish_future(key, token, entry)

    async def _publish_late(self, key: str, token: str, entry: Entry) -> PublishResult:
        await asyncio.sleep(random.uniform(0, _LATE))  # noqa: S311 - no secret
        if entry.keep_ms > 0:
            await self._call(Call("evict", self._prefix + key))
            await super().lease(key, token)
        return await super().publish_future(key, token, entry)


class FaultyNamespace(Namespace):
    """The namespace of a Redis backend, which ignores incarnations if that rule is removed."""

    def __init__(self, switches: Switches, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - its
        self._switches = switches
        super().__init__(*arguments, **options)

    async def learn_incarnation(self, connection: AbstractConnection) -> str:
        """Return the incarnation id, or the same one for all servers."""
        if self._switches.broken == "incarnation":
            return "ignored"
        return await super().learn_incarnation(connection)


def main() -> None:
    """Run the service until it is stopped or its owner has gone."""
    end_with_owner()
    switches = Switches(os.environ.get("FRESHNESS_BREAK", ""))
    signal.signal(signal.SIGUSR1, switches.arm)
    log_format.configure(os.environ)
    chosen = settings.load()
    if switches.broken == "keys":
        apart = replace(chosen.cache, prefix="apart:")
        chosen = chosen.model_copy(update={"cache": apart})
    # What the backend's factory finds under this name; registry and guard are the real ones.
    vars(redis)["RedisBackend"] = partial(FaultyRedis, switches)
    vars(redis)["Namespace"] = partial(FaultyNamespace, switches)
    if switches.broken == "report":
        vars(registry)["TieredBackend"] = DeafTiers
    trace = Trace()
    vars(redis)["TrackingFeed"] = partial(_traced_feed, trace)
    vars(postgres)["PostgresFeed"] = partial(PostgresFeed, heartbeat=_HEARTBEAT)
    vars(postgres)["PostgresBackend"] = partial(FaultyPostgres, switches, trace)
    vars(registry)["GuardedBackend"] = partial(TracedGuard, trace)
    vars(guarded_backend)["Breaker"] = partial(TracedBreaker, trace)
    vars(guarded_backend)["Confirmation"] = partial(TracedConfirmation, trace)
    fresh = 3600.0 if switches.broken == "lifetime" else float(os.environ["FRESHNESS_SECONDS"])
    app = create_app(chosen.model_copy(update={"ttl": fresh, "ttl_unknown": fresh}))
    app.router.routes.insert(0, trace.route)
    if os.environ.get("FRESHNESS_VALUES"):
        announces = switches.broken != "invalidation"
        ValueRoutes(app.state.services, fresh, invalidates=announces).add_to(app)
    uvicorn.run(
        app,
        host=chosen.host,
        port=chosen.port,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE,
    )


def _traced_feed(trace: Trace, *arguments: Any, **options: Any) -> TrackingFeed:  # noqa: ANN401 - its
    feed = TrackingFeed(*arguments, **options, heartbeat=_HEARTBEAT)
    feed.listen(trace)
    return feed


if __name__ == "__main__":
    main()

"""Runs loaders: each load has a time limit, and no load may wait for itself.

A load runs in a task of its own. When its time is up, it is cancelled and nobody waits for it any
more. So a load that ignores its cancellation delays no caller.

A load may read other keys, whose loads may read others. If that leads back to a load that waits,
all of them wait for ever:

    the load of A reads B                     the load of A reads B, for one caller
    the load of B, begun for A, reads A       the load of B reads A, for another caller

So each running load records the keys that it waits for. A read made by a load follows these records
from its own key on, and is refused if they lead to that load. A task that a load has started counts
as a part of it until the load has ended, because it cannot be seen whether the load waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from jobcache.errors import LoadTimeout, RecursiveLoad
from jobcache.resilience.deadline import ends_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator

    from jobcache.observability.instrumentation import Instrumentation

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("jobcache")

_LAST_SECONDS = 2.0
"""How long `aclose` waits for cancelled loads."""


class _Load:
    """One load.

    Attributes:
        owner: the cache's loads.
        keys: the keys that are loaded.
        ended: True once the load has ended.
        waits_for: the keys that the load waits for, with the loads of their cache.
    """

    __slots__ = ("ended", "keys", "owner", "waits_for")

    def __init__(self, owner: Loads, keys: Collection[str]) -> None:
        self.owner = owner
        self.keys = keys
        self.ended = False
        self.waits_for: list[tuple[Loads, str]] = []


_current: ContextVar[_Load | None] = ContextVar("jobcache_load", default=None)
"""The load that the running code is a part of; None: none."""


def be_independent() -> None:
    """Detach the running task from the load in whose context it was created."""
    _current.set(None)


def as_part_of_this_load(function: Callable[P, T]) -> Callable[P, T]:
    """Return `function` wrapped, so that another thread calls it as a part of the running load."""
    load = _current.get()

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        before = _current.set(load)
        try:
            return function(*arguments, **options)
        finally:
            _current.reset(before)

    return call


class Loads:
    """The loads of one `JobCache`.

    Args:
        limit: seconds that a load may take; None: no limit.
        instrumentation: follows loads.

    Raises:
        ValueError: the limit is not above 0.
    """

    def __init__(self, limit: float | None, instrumentation: Instrumentation | None = None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError("the load timeout is a number of seconds above 0, or None")
        self._limit = limit
        self._instrumentation = instrumentation
        self._running: dict[str, set[_Load]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, keys: Collection[str], load: Callable[[], Awaitable[T]]) -> T:
        """Call `load`, which loads `keys`, and return its result.

        Raises:
            LoadTimeout: the load took too long.
            Exception: any exception that `load` raised.
        """
        if self._instrumentation is None:
            return await self._run(keys, load)
        span = self._instrumentation.begin("load", next(iter(keys), ""))
        try:
            with span.active():
                result = await self._run(keys, load)
        except BaseException as error:
            span.end({"jobcache.keys": len(keys)}, error)
            raise
        span.end({"jobcache.keys": len(keys)})
        return result

    async def _run(self, keys: Collection[str], load: Callable[[], Awaitable[T]]) -> T:
        if not logger.isEnabledFor(logging.DEBUG):
            return await self._in_task(keys, load)
        began = time.perf_counter()
        ended = "failed"
        try:
            result = await self._in_task(keys, load)
            ended = "returned"
            return result
        finally:
            took_ms = round((time.perf_counter() - began) * 1000, 3)
            fields = {"key": next(iter(keys), ""), "result": ended, "took_ms": took_ms}
            logger.debug("load of %s %s after %s ms", _named(keys), ended, took_ms, extra=fields)

    async def _in_task(self, keys: Collection[str], load: Callable[[], Awaitable[T]]) -> T:
        task = self._start(self._call(_Load(self, keys), load))
        try:
            if self._limit is None:
                await asyncio.wait((task,))
            elif not await ends_within(self._limit, task):
                raise LoadTimeout(f"a load of {_named(keys)} took longer than {self._limit:g} s")
        finally:
            task.cancel()  # no effect if it has ended
        return task.result()

    async def _call(self, load: _Load, function: Callable[[], Awaitable[T]]) -> T:
        _current.set(load)
        for key in load.keys:
            self._running.setdefault(key, set()).add(load)
        try:
            return await function()
        finally:
            load.ended = True
            for key in load.keys:
                running = self._running[key]
                running.discard(load)
                if not running:
                    del self._running[key]

    @contextmanager
    def waiting_for(self, keys: Collection[str]) -> Iterator[None]:
        """Record that the running load waits for loads of `keys`, while the block runs.

        Raises:
            RecursiveLoad: one of these loads waits for the running load.
        """
        load = _current.get()
        if load is None or load.ended:
            yield
            return
        for key in keys:
            path = self._path(key, load)
            if path is not None:
                raise RecursiveLoad(path)
        recorded = [(self, key) for key in keys]
        load.waits_for += recorded
        try:
            yield
        finally:
            for each in recorded:
                load.waits_for.remove(each)

    def _path(self, key: str, load: _Load) -> list[str] | None:
        """Return the keys that lead from `key` to `load`; None if none do."""
        seen = {(self, key)}
        paths = [(self, [key])]
        for owner, path in paths:
            for other in owner._running.get(path[-1], ()):  # noqa: SLF001 - of this class
                if other is load:
                    return path
                for following in other.waits_for:
                    if following not in seen:
                        seen.add(following)
                        paths.append((following[0], [*path, following[1]]))
        return None

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, because its callers may have gone

    async def aclose(self) -> None:
        """Cancel all loads, and wait for a moment until they have ended."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        _, left = await asyncio.wait(set(self._tasks), timeout=_LAST_SECONDS)
        if left:
            logger.warning("%d loads go on although they were cancelled", len(left))


def _named(keys: Collection[str]) -> str:
    first = next(iter(keys), "")
    return repr(first) if len(keys) <= 1 else f"{len(keys)} keys, {first!r} among them,"

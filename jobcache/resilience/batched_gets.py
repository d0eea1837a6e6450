"""Batch the gets of one turn of the event loop: one `get_many`, one round trip instead of many.

This is the only place where gets are batched, for all backends whose store is elsewhere: `JobCache`
reads through it, and a guarded backend that is asked for one key at a time.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from jobcache._concurrency.batching import outcome_error, resolve_future
from jobcache.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.protocol.capabilities import SupportsFutureGet
    from jobcache.protocol.entry import Entry

    _Callers = dict[str, list[tuple[Callable[[Entry | None], Any] | None, asyncio.Future[Any]]]]

T = TypeVar("T")

_MOST = 50
"""Keys of one `get_many`: with more, the store and this process wait for each other."""


class BatchedGets:
    """Batch the gets of one reader.

    Args:
        backend: the backend that is read.
    """

    def __init__(self, backend: SupportsFutureGet) -> None:
        self._backend = backend
        self._waiting: _Callers = {}

    @overload
    def get(self, key: str) -> asyncio.Future[Entry | None]: ...
    @overload
    def get(self, key: str, convert: Callable[[Entry | None], T]) -> asyncio.Future[T]: ...
    def get(
        self, key: str, convert: Callable[[Entry | None], Any] | None = None
    ) -> asyncio.Future[Any]:
        """Return a future of the entry at `key` or None, converted by `convert` if it is given.

        Raises (in the future):
            CacheUnavailable: the store is not in use, or did not answer.
            Exception: an error of `convert`.
        """
        loop = asyncio.get_running_loop()
        waiting = self._waiting
        if not waiting:
            loop.call_soon(self._flush)
        reply: asyncio.Future[Any] = loop.create_future()
        waiting.setdefault(key, []).append((convert, reply))
        if len(waiting) == _MOST:
            self._flush()
        return reply

    def close(self) -> None:
        """Fail the gets that have not been sent."""
        waiting, self._waiting = self._waiting, {}
        _fail(waiting, CacheUnavailable("it is being closed"))

    def _flush(self) -> None:
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = {}
        try:
            reading = self._backend.get_many_future(tuple(waiting))
        except Exception as error:  # noqa: BLE001 - raised to the callers
            _fail(waiting, error)
        else:
            reading.add_done_callback(partial(_resolve, waiting))


def _resolve(waiting: _Callers, reading: asyncio.Future[Mapping[str, Entry]]) -> None:
    """Resolve the future of each caller with its entry."""
    if reading.cancelled() or reading.exception() is not None:
        _fail(waiting, outcome_error(reading))
        return
    found = reading.result()
    for key, callers in waiting.items():
        entry = found.get(key)
        for convert, reply in callers:
            if reply.done():
                continue  # its caller has gone
            try:
                reply.set_result(entry if convert is None else convert(entry))
            except Exception as error:  # noqa: BLE001 - raised to the caller
                reply.set_exception(error)


def _fail(waiting: _Callers, error: BaseException | None) -> None:
    for callers in waiting.values():
        for _, reply in callers:
            resolve_future(reply, error)

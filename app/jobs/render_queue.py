"""Tells the workers of a task queue that jobs wait to be rendered.

A message carries no job, because the workers find the oldest one in the database. So lost messages
cost only time: if the queue is empty and jobs wait, this process sends messages for them. That also
covers the job of a worker that has died, once its claim has expired. While the queue is not empty
its next message finds such a job, so the queue hardly grows beyond the jobs that wait. A message
too many does no harm: the worker finds nothing to do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from app.jobs.states import Status
from jobcache import SourceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.jobs.storage import Job, JobStore

logger = logging.getLogger("app")

_SENT_AT_ONCE = 100


class MessageQueue(Protocol):
    """A queue whose messages say that a job waits. The methods block; one call at a time."""

    def send(self, messages: int) -> None:
        """Send messages.

        Raises:
            OSError: the broker is away.
        """

    def count(self) -> int:
        """Return the number of messages that no worker has received yet.

        Raises:
            OSError: the broker is away.
        """

    def close(self) -> None:
        """Close the connections."""


class RenderQueue:
    """Sends one message for each job that is to be rendered.

    Args:
        store: knows the jobs that wait.
        queue: takes the messages.
        check_every: seconds between two looks for jobs without a message.
        clock_ms: wall-clock time in milliseconds.
    """

    def __init__(
        self,
        store: JobStore,
        queue: MessageQueue,
        *,
        check_every: float,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._store = store
        self._queue = queue
        self._check_every = check_every
        self._clock_ms = clock_ms
        self._unsent = 0
        self._away = False
        self._wake = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to send messages."""
        self._sending = asyncio.create_task(self._run())

    def seen(self, job: Job) -> None:
        """Send a message if the job, which has just changed, is to be rendered."""
        if job.status is Status.RENDERING and job.renderer == "builtin":
            self._unsent += 1
            self._wake.set()

    async def aclose(self) -> None:
        """Stop. Messages that were not sent are sent by another process, or after a restart."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
            self._sending = None
        await asyncio.to_thread(self._queue.close)

    async def _run(self) -> None:
        while True:
            try:
                await self._send_again()
                check_at = time.monotonic() + self._check_every
                while time.monotonic() < check_at and await self._woken_before(check_at):
                    await self._send_unsent()
            except SourceUnavailable:
                await asyncio.sleep(self._check_every)
            except OSError as error:
                # The next look finds the jobs.
                if not self._away:
                    logger.warning("the queue of the workers is away: %s", error)
                self._away = True
                await asyncio.sleep(self._check_every)
            except Exception:
                logger.exception("sending messages to the workers failed")
                await asyncio.sleep(self._check_every)

    async def _woken_before(self, moment: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(moment - time.monotonic()):
                await self._wake.wait()
        woken = self._wake.is_set()
        self._wake.clear()
        return woken

    async def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, 0
        if unsent:
            await asyncio.to_thread(self._queue.send, unsent)
            self._answered()

    async def _send_again(self) -> None:
        """Send messages for the jobs that wait, if no message is left in the queue."""
        waiting = await self._store.find_unfinished(self._clock_ms(), _SENT_AT_ONCE, renders=True)
        if waiting and await asyncio.to_thread(self._queue.count) == 0:
            await asyncio.to_thread(self._queue.send, len(waiting))
            self._answered()

    def _answered(self) -> None:
        if self._away:
            logger.warning("the queue of the workers is back")
        self._away = False

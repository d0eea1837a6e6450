"""Progress reports at a bearable rate, around the caller's own function that commits one.

What is promised:

    latest wins          a commit is of the newest report there is when it begins
    one per interval     from the end of a commit to the beginning of the next
    terminal at once     a terminal report waits for the commit under way and for nothing else,
                         takes the place of progress that waits, and is followed by none
    the last is kept     what has not been committed is, when the interval ends, without a further
                         report; after an error it is tried again; a close tries it at once

An error of a commit is raised to whoever waits for that commit (`finish`, `flush`, a close), or
else to the next `report`. If another commit has ended before anybody came, it is logged, and that
one's outcome counts. What a close could not commit is lost, and the close raises why.

One object decides (`policy`). Two do what it says: in tasks of an event loop (`Throttle`), or in a
thread (`ThreadedThrottle`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from jobcache._throttle_policy import ThrottlePolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

R = TypeVar("R")


class Throttle(Generic[R]):
    """Throttles reports, in one event loop. See the module for what is promised.

        async with Throttle(commit, interval=1) as throttle:
            async for step in render():
                throttle.report(step)
            await throttle.finish(done)

    Leaving the block closes the throttle. If the block has raised, that goes on, with an error of
    the last commit as a note. Whoever is cancelled while it waits for a commit leaves it going on.

    Args:
        commit: commits one report. Called for one at a time, in a task of its own.
        interval: seconds.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        commit: Callable[[R], Awaitable[object]],
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._commit = commit
        self._policy: ThrottlePolicy[R] = ThrottlePolicy(interval)
        self._clock = clock
        self._sleep = sleep
        self._driver: asyncio.Task[None] | None = None
        self._nap: asyncio.Future[object] | None = None
        self._turn: asyncio.Future[None] | None = None  # done when the commit under way has ended

    def report(self, report: R) -> None:
        """Take a progress report; it is committed when its time has come.

        After a terminal report it is ignored.

        Raises:
            Exception: an earlier commit's. This report has been taken all the same.
            RuntimeError: the throttle is closed.
        """
        self._policy.report(report)
        self._drive()
        self._policy.raise_error()

    async def finish(self, report: R) -> None:
        """Commit a terminal report, and return when that is done.

        Raises:
            Exception: it could not be committed. It is tried again when the interval ends, and by
                `flush` and `aclose`, unless another terminal report takes its place.
            RuntimeError: the throttle is closed.
        """
        number = self._policy.report(report, terminal=True)
        await self._until(lambda: self._policy.concluded >= number)

    async def flush(self) -> None:
        """Commit what has not been committed, without waiting for the interval to end.

        Raises:
            Exception: it could not be committed.
        """
        number = self._policy.flush()
        await self._until(lambda: self._policy.concluded >= number)

    async def aclose(self) -> None:
        """As `flush`, for the last time; no report is taken afterwards. Safe to call twice."""
        self._policy.close()
        await self._until(lambda: not self._policy.busy)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.aclose()
        except Exception as lost:
            if error is None:
                raise
            _note(error, lost)

    async def _until(self, condition: Callable[[], bool]) -> None:
        self._drive()
        waited = False
        while not condition():
            waited = True
            if self._turn is None:
                self._turn = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._turn})
        self._policy.raise_error(waited=waited)

    def _drive(self) -> None:
        """See to it that nothing sleeps beyond what is due, and that somebody is awake for it."""
        if self._nap is not None and self._policy.due_in(self._clock()) == 0:
            self._nap.cancel()
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while (pause := self._policy.due_in(self._clock())) is not None:
            if pause == 0:
                await self._commit_one()
                continue
            self._nap = asyncio.ensure_future(self._sleep(pause))
            try:
                await asyncio.wait({self._nap})
            finally:
                self._nap.cancel()
                self._nap = None

    async def _commit_one(self) -> None:
        report = self._policy.begin()
        error: BaseException | None = None
        try:
            await self._commit(report)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                error = cancelled
                raise
            error = RuntimeError("the commit was cancelled by what it called")
        except Exception as raised:  # noqa: BLE001 - it is raised to whoever waits, or comes next
            error = raised
        finally:
            self._policy.ended(report, error, self._clock())
            if self._turn is not None:
                self._turn.set_result(None)
                self._turn = None


class ThreadedThrottle(Generic[R]):
    """As `Throttle`, for threads.

        with ThreadedThrottle(commit, interval=1) as throttle:
            for step in render():
                throttle.report(step)
            throttle.finish(done)

    It belongs to one process: make it after a fork, not before. An interpreter that exits without
    closing it does not wait for the last report.

    Args:
        commit: commits one report. Called for one at a time, always in the throttle's own thread.
        interval: seconds.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        commit: Callable[[R], object],
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._commit = commit
        self._policy: ThrottlePolicy[R] = ThrottlePolicy(interval)
        self._clock = clock
        self._changed = threading.Condition()  # holds what `_policy` is
        self._closed = False
        self._driver: threading.Thread | None = None

    def report(self, report: R) -> None:
        """See `Throttle.report`."""
        with self._changed:
            self._policy.report(report)
            self._drive()
            self._policy.raise_error()

    def finish(self, report: R) -> None:
        """See `Throttle.finish`."""
        with self._changed:
            number = self._policy.report(report, terminal=True)
            self._until(lambda: self._policy.concluded >= number)

    def flush(self) -> None:
        """See `Throttle.flush`."""
        with self._changed:
            number = self._policy.flush()
            self._until(lambda: self._policy.concluded >= number)

    def close(self) -> None:
        """See `Throttle.aclose`."""
        with self._changed:
            self._closed = True
            self._policy.close()
            self._until(lambda: not self._policy.busy)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as lost:
            if error is None:
                raise
            _note(error, lost)

    def _until(self, condition: Callable[[], bool]) -> None:
        self._drive()
        waited = not condition()
        self._changed.wait_for(condition)
        self._policy.raise_error(waited=waited)

    def _drive(self) -> None:
        if self._driver is None and self._policy.busy:
            name = "jobcache throttle"
            self._driver = threading.Thread(target=self._run, name=name, daemon=True)
            self._driver.start()
        self._changed.notify_all()

    def _run(self) -> None:
        with self._changed:
            while self._policy.busy or not self._closed:
                pause = self._policy.due_in(self._clock())
                if pause == 0:
                    self._commit_one()
                else:
                    self._changed.wait(pause)

    def _commit_one(self) -> None:
        """Commit what is due, without holding what others may want to change meanwhile."""
        report = self._policy.begin()
        self._changed.release()
        error: BaseException | None = None
        try:
            self._commit(report)
        except BaseException as raised:  # noqa: BLE001 - it is raised to whoever waits, or comes next
            error = raised
        finally:
            self._changed.acquire()
            self._policy.ended(report, error, self._clock())
            self._changed.notify_all()


def _note(error: BaseException, lost: Exception) -> None:
    error.add_note(f"the last report could not be committed: {lost!r}")

"""Limits how often progress reports are committed. The caller brings the function that commits.

Guarantees:

    latest wins          a commit takes the newest report that exists when it begins
    one per interval     an interval lies between the end of a commit and the beginning of the next
    terminal at once     a terminal report waits only for the commit that runs; it replaces progress
                         that waits, and no progress follows it
    the last is kept     a report that waits is committed when the interval ends, without a further
                         report; after an error it is committed again; closing commits it at once

An error of a commit is raised by the calls that wait for that commit (`finish`, `flush`, closing),
or else by the next `report`. If another commit ends before any such call, the error is logged, and
the outcome of the later commit counts. If closing cannot commit the last report, the report is lost
and closing raises the error.

`ThrottlePolicy` decides. `Throttle` runs its decisions in tasks of an event loop,
`ThreadedThrottle` in a thread.
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
    """Throttles reports in one event loop. The module's docstring lists the guarantees.

        async with Throttle(commit, interval=1) as throttle:
            async for step in render():
                throttle.report(step)
            await throttle.finish(done)

    Leaving the block closes the throttle. If the block raised an exception, that exception is kept,
    and an error of the last commit is added to it as a note. A caller that is cancelled while it
    waits for a commit does not cancel the commit.

    Args:
        commit: commits one report. Called with one report at a time, in a task of its own.
        interval: seconds between two commits.
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
        self._turn: asyncio.Future[None] | None = None  # done when the running commit has ended

    def report(self, report: R) -> None:
        """Accept a progress report, to be committed when the interval ends.

        Reports after a terminal report are ignored.

        Raises:
            Exception: the error of an earlier commit. This report is accepted all the same.
            RuntimeError: the throttle is closed.
        """
        self._policy.report(report)
        self._drive()
        self._policy.raise_error()

    async def finish(self, report: R) -> None:
        """Commit a terminal report, and wait until it is committed.

        Raises:
            Exception: the commit failed. It is repeated when the interval ends, and by `flush` and
                `aclose`, unless another terminal report replaces it.
            RuntimeError: the throttle is closed.
        """
        number = self._policy.report(report, terminal=True)
        await self._until(lambda: self._policy.concluded >= number)

    async def flush(self) -> None:
        """Commit the report that waits, without waiting for the interval to end.

        Raises:
            Exception: the commit failed.
        """
        number = self._policy.flush()
        await self._until(lambda: self._policy.concluded >= number)

    async def aclose(self) -> None:
        """Commit the report that waits, and accept no further reports. Safe to call twice.

        Raises:
            Exception: the commit failed; the report is lost.
        """
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
        driver = self._drive()
        waited = False
        while not condition():
            waited = True
            if self._turn is None:
                self._turn = asyncio.get_running_loop().create_future()
            # The driver ends early if it is cancelled, as by the end of `asyncio.run`.
            await asyncio.wait({self._turn, driver}, return_when=asyncio.FIRST_COMPLETED)
            driver = self._drive()
        self._policy.raise_error(waited=waited)

    def _drive(self) -> asyncio.Task[None]:
        """Wake the driver if a commit is due, and start it if it does not run."""
        if self._nap is not None and self._policy.due_in(self._clock()) == 0:
            self._nap.cancel()
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._run())
        return self._driver

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
        except Exception as raised:  # noqa: BLE001 - `raise_error` raises it to a caller
            error = raised
        finally:
            self._policy.ended(report, error, self._clock())
            if self._turn is not None:
                self._turn.set_result(None)
                self._turn = None


class ThreadedThrottle(Generic[R]):
    """Throttles reports in threads, with the guarantees of `Throttle`.

        with ThreadedThrottle(commit, interval=1) as throttle:
            for step in render():
                throttle.report(step)
            throttle.finish(done)

    A throttle belongs to one process: create it after a fork. An interpreter that exits without
    closing the throttle does not commit the report that waits.

    Args:
        commit: commits one report. Called with one report at a time, in the throttle's own thread.
        interval: seconds between two commits.
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
        self._changed = threading.Condition()  # protects `_policy`
        self._closed = False
        self._driver: threading.Thread | None = None

    def report(self, report: R) -> None:
        """Accept a progress report, to be committed when the interval ends.

        Reports after a terminal report are ignored.

        Raises:
            Exception: the error of an earlier commit. This report is accepted all the same.
            RuntimeError: the throttle is closed.
        """
        with self._changed:
            self._policy.report(report)
            self._drive()
            self._policy.raise_error()

    def finish(self, report: R) -> None:
        """Commit a terminal report, and wait until it is committed.

        Raises:
            Exception: the commit failed. It is repeated when the interval ends, and by `flush` and
                `close`, unless another terminal report replaces it.
            RuntimeError: the throttle is closed.
        """
        with self._changed:
            number = self._policy.report(report, terminal=True)
            self._until(lambda: self._policy.concluded >= number)

    def flush(self) -> None:
        """Commit the report that waits, without waiting for the interval to end.

        Raises:
            Exception: the commit failed.
        """
        with self._changed:
            number = self._policy.flush()
            self._until(lambda: self._policy.concluded >= number)

    def close(self) -> None:
        """Commit the report that waits, and accept no further reports. Safe to call twice.

        Raises:
            Exception: the commit failed; the report is lost.
        """
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
            driver = threading.Thread(target=self._run, name=name, daemon=True)
            driver.start()  # raises if there can be no more threads
            self._driver = driver
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
        """Commit the report that is due, without holding the lock meanwhile."""
        report = self._policy.begin()
        self._changed.release()
        error: BaseException | None = None
        try:
            self._commit(report)
        except BaseException as raised:  # noqa: BLE001 - `raise_error` raises it to a caller
            error = raised
        finally:
            self._changed.acquire()
            self._policy.ended(report, error, self._clock())
            self._changed.notify_all()


def _note(error: BaseException, lost: Exception) -> None:
    error.add_note(f"the last report could not be committed: {lost!r}")

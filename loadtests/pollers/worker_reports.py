"""What workers saw, sent to the master: every few seconds, and whole before the test is over.

A master of Locust that quits waits half a second for its workers, whatever they still have to send.
So it asks them here to stop their users, and waits until each has sent its last report.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from loadtests.pollers.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment

    from loadtests.pollers.run import Run

logger = logging.getLogger("loadtests")

_FINISH = "finish"
_RECORD = "record"
_FINAL = "final"

_LOOK_AGAIN = 0.1  # seconds
_REPORT_WITHIN = 10.0  # seconds for the last report, beyond Locust's stop timeout


class WorkerReports:
    """The reports of one process: a worker sends them, a master adds them up.

    Args:
        environment: Locust's.
        current: returns the test that is running, or ran last.
    """

    def __init__(self, environment: Environment, current: Callable[[], Run | None]) -> None:
        self._environment = environment
        self._current = current
        self._is_final = False  # of a worker: whether its next report is the last of this test
        self._unfinished: set[str] = set()  # of a master: workers that owe it their last report
        if isinstance(environment.runner, WorkerRunner):
            environment.runner.register_message(_FINISH, self._finish, concurrent=True)

    def send(self, data: dict[str, Any], **_: object) -> None:
        """Add what this worker saw since its last report to a report of Locust's."""
        run = self._current()
        if run is not None:
            data[_RECORD] = run.record.message()
            run.record = Record()
        data[_FINAL] = self._is_final

    def receive(self, client_id: str, data: dict[str, Any], **_: object) -> None:
        """Add what a worker saw to what this master knows."""
        run = self._current()
        if run is not None and _RECORD in data:
            run.record.add(data[_RECORD])
        if data.get(_FINAL):
            self._unfinished.discard(client_id)

    def complete(self, **_: object) -> None:
        """Send the last report of a worker; on a master, wait for those of all workers."""
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            self._is_final = True
            runner._send_stats()  # noqa: SLF001 - the next report would come after the test
            self._is_final = False
        elif isinstance(runner, MasterRunner):
            self._collect(runner)

    def _collect(self, runner: MasterRunner) -> None:
        self._unfinished = {each.id for each in runner.clients.all if each.user_count}
        for client_id in self._unfinished:
            runner.send_message(_FINISH, client_id=client_id)
        seconds = self._environment.stop_timeout + _REPORT_WITHIN
        with gevent.Timeout(seconds, False):  # noqa: FBT003 - gevent's way to raise nothing
            while self._unfinished:
                gevent.sleep(_LOOK_AGAIN)
        if self._unfinished:
            logger.error("The results of %d workers are missing.", len(self._unfinished))
            self._environment.process_exit_code = 1

    def _finish(self, environment: Environment, **_: object) -> None:
        if environment.runner is not None:
            environment.runner.stop()

"""The test in one of Locust's processes: what its events start, stop and add up."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gevent
from locust.contrib.fasthttp import FastHttpSession
from locust.runners import STATE_INIT, STATE_RUNNING, STATE_STOPPED, MasterRunner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC

from jobcache.client.core.rules import ANSWER_WITHIN, Rules
from loadtests.pollers import results
from loadtests.pollers.calls import ServiceCalls
from loadtests.pollers.chosen_shape import ChosenShape
from loadtests.pollers.jobs import keep_shared_job
from loadtests.pollers.options import NO_SHAPE, InvalidOption, PollOptions, add_options, bearer
from loadtests.pollers.record import Record
from loadtests.pollers.run import Run
from loadtests.pollers.shared_jobs import SharedJobs
from loadtests.pollers.traffic import count_bytes
from loadtests.pollers.web_page import extend
from loadtests.pollers.worker_reports import WorkerReports

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Generator

    from locust import LoadTestShape
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.event import Events
    from locust.runners import Runner
    from locust.web import WebUI

    from loadtests.pollers.polled_job import PolledJob

logger = logging.getLogger("loadtests")

_SHARED_JOBS = "shared-jobs"

_CONNECTIONS = 100  # of a process, for reports of progress
_ANNOUNCE_AGAIN = 2.0  # seconds
_LOOK_AGAIN = 0.1  # seconds


class LoadTest:
    """One of Locust's processes.

    The process that has the web page, or is started with `--headless`, is the *first*. It may be
    the only one, or a master without users.

    Attributes:
        run: the test that is running, or ran last; None before the first.
        problem: why no test could start; empty if there is no reason.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.problem = ""
        self._environment: Environment | None = None
        self._shape: ChosenShape | None = None
        self._other_shape: LoadTestShape | None = None  # of another file that Locust has loaded
        self._began = time.time()

    def listen(self, events: Events) -> None:
        """Take part in Locust's events."""
        add = _listen
        add(events.init_command_line_parser, self._add_options)
        add(events.init, self._init)
        add(events.test_start, self._test_start)
        add(events.spawning_complete, self._spawning_complete)
        add(events.test_stopping, self._test_stopping)
        add(events.reset_stats, self._reset)
        add(events.request, self._request)
        add(events.quitting, self._quitting)

    @property
    def environment(self) -> Environment:
        """Locust's environment."""
        if self._environment is None:
            raise RuntimeError("Locust has not called the listeners of `init`")
        return self._environment

    @property
    def record(self) -> Record:
        """What was seen; empty before the first test."""
        return Record() if self.run is None else self.run.record

    @property
    def _parsed(self) -> Namespace:
        parsed: Namespace | None = self.environment.parsed_options
        if parsed is None:
            raise RuntimeError("Locust has no options")
        return parsed

    def worker_calls(self, run: Run) -> ServiceCalls:
        """Return the requests of those who report progress."""
        return ServiceCalls(self._session(run, run.options.worker_key or run.options.api_key), run)

    # --- Locust's events ---

    def _add_options(self, parser: LocustArgumentParser, **_: object) -> None:
        add_options(parser)

    def _init(self, environment: Environment, web_ui: WebUI | None = None, **_: object) -> None:
        self._environment = environment
        runner = environment.runner
        if runner is None:
            return
        count_bytes(lambda received, sent: self.record.traffic(received=received, sent=sent))
        runner.register_message(_SHARED_JOBS, self._shared_jobs_changed)
        reports = WorkerReports(environment, lambda: self.run)
        _listen(environment.events.report_to_master, reports.send)
        _listen(environment.events.worker_report, reports.receive)
        _listen(environment.events.test_stop, reports.complete)
        if not isinstance(runner, WorkerRunner):
            self._other_shape = environment.shape_class
            self._shape = ChosenShape(runner, self._empty_cache)
            try:
                self._choose(PollOptions.of(self._parsed))
            except InvalidOption as error:
                raise SystemExit(str(error)) from error
        if web_ui is not None:
            extend(web_ui, lambda: self.record, self._choose)

    def _test_start(self, **_: object) -> None:
        runner, parsed = self.environment.runner, self._parsed
        if isinstance(runner, MasterRunner):
            parsed.polling_processes = runner.worker_count  # Locust sends the options to workers
        try:
            options = PollOptions.of(parsed)
        except InvalidOption as error:
            self.run, self.problem = None, str(error)
            return
        self.problem = ""
        is_worker = isinstance(runner, WorkerRunner)
        run = Run(
            options,
            SharedJobs(self._make_job, self._announce, self._shared_job_ended),
            worker=runner.worker_index if isinstance(runner, WorkerRunner) else 0,
            workers=getattr(parsed, "polling_processes", 1),
        )
        self.run = run
        if not is_worker and options.shared_jobs:
            self._keep_shared_jobs(run)

    def _spawning_complete(self, **_: object) -> None:
        environment = self.environment
        if environment.reset_stats:
            self._reset()
        run = self.run
        if run is not None and run.options.jobs_per_user and not self._is_worker:
            gevent.spawn(self._stop_after_last_user, run)

    def _test_stopping(self, **_: object) -> None:
        if self.run is not None:
            self.run.stop()

    def _reset(self, **_: object) -> None:
        if self.run is not None:
            self.run.record = Record()

    def _request(
        self, name: str, response_time: float, exception: object = None, **_: object
    ) -> None:
        if self.run is not None:
            self.run.record.request(name, response_time)
            if exception is not None:
                self.run.record.failure(name, exception)

    def _quitting(self, environment: Environment, **_: object) -> None:
        runner = environment.runner
        if runner is None or self._is_worker:
            return
        if runner.state not in {STATE_INIT, STATE_STOPPED}:
            runner.quit()  # after SIGTERM users are still running
        options = self._parsed
        if options.csv_prefix:
            # Locust writes its files once a second, and not at the end.
            gevent.sleep(1.1 * CSV_STATS_INTERVAL_SEC)
        if options.report:
            text = json.dumps(self.record.report(), indent=1)
            Path(options.report).write_text(text, "utf-8")
        if options.html_file:
            self._extend_report(Path(options.html_file))
        if self.run is not None:
            sys.stdout.write(f"\n{results.as_text(self.record)}\n")
        if (options.headless or self.run is not None) and self.record.answered == 0:
            logger.error("Nothing was measured: no poll was answered.")
            environment.process_exit_code = 1

    def _extend_report(self, page: Path) -> None:
        # After SIGTERM Locust writes no report, and this one may be of an earlier run.
        if page.exists() and page.stat().st_mtime >= self._began:
            page.write_text(results.insert(page.read_text("utf-8"), self.record), "utf-8")

    def _choose(self, options: PollOptions) -> None:
        """Use the shape of the options."""
        chosen = self._other_shape if options.shape == NO_SHAPE else self._shape
        self.environment.shape_class = chosen

    def _empty_cache(self) -> None:
        if self.run is not None:
            key = self.run.options.operator_key or self.run.options.api_key
            ServiceCalls(self._session(self.run, key), self.run).empty_cache()

    # --- the first process and the others ---

    @property
    def _is_worker(self) -> bool:
        return isinstance(self.environment.runner, WorkerRunner)

    def _stop_after_last_user(self, run: Run) -> None:
        runner = self.environment.runner
        if runner is None:
            return
        while self.run is run and (runner.user_count or _workers_are_starting(runner)):
            gevent.sleep(_LOOK_AGAIN)
        if self.run is not run:
            return
        if self._parsed.headless:
            runner.quit()
        else:
            runner.stop()

    # --- shared jobs ---

    def _keep_shared_jobs(self, run: Run) -> None:
        calls = ServiceCalls(self._session(run, run.options.api_key), run)
        worker_calls = self.worker_calls(run)
        for place in range(run.options.shared_jobs):
            run.in_background(keep_shared_job(calls, worker_calls, run, Rules(), place))

        def announce_again() -> Generator[float, None, None]:
            while True:
                yield _ANNOUNCE_AGAIN
                run.shared.announce_all()

        run.in_background(announce_again())

    def _make_job(self, job_id: int) -> PolledJob:
        if self.run is None:
            raise RuntimeError("there is no test")
        return self.run.job(job_id)

    def _announce(self, changes: list[list[int]]) -> None:
        runner = self.environment.runner
        if isinstance(runner, MasterRunner | WorkerRunner):
            runner.send_message(_SHARED_JOBS, {"changes": changes})

    def _shared_job_ended(self, version: int) -> None:
        if self.run is not None and not self._is_worker:  # the first process counts for all
            self.run.record.job_completed(version)

    def _shared_jobs_changed(self, msg: Any, **_: object) -> None:  # noqa: ANN401 - untyped
        if self.run is not None:
            self.run.shared.receive(msg.data["changes"])

    def _session(self, run: Run, key: str) -> FastHttpSession:
        return FastHttpSession(
            base_url=self.environment.host,
            request_event=self.environment.events.request,
            user=None,
            concurrency=_CONNECTIONS,
            network_timeout=run.options.hold + ANSWER_WITHIN,
            headers=bearer(key),
        )


def _workers_are_starting(runner: Runner) -> bool:
    """Return whether a worker has not reported its users yet, or is missing.

    Locust waits for the first reports for a second. Then it says that all users are spawned, though
    it knows of none.
    """
    if not isinstance(runner, MasterRunner):
        return False
    return any(worker.state != STATE_RUNNING for worker in runner.clients.all)


def _listen(event: Any, listener: Callable[..., None]) -> None:  # noqa: ANN401 - untyped
    event.add_listener(listener)

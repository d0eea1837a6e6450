"""The Celery application of the workers that render: `celery -A app.worker worker`.

`app` is created when Celery first reads it, from the same variables and the same `.env` as the
service. A worker that cannot use the database or the cache's store does not start. Its parts are
created at the first task of each process, and so after a fork.
"""

from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_shutdown,
    worker_shutdown,
)

from app import container, environment, settings
from app.celery_app import RENDER_NEXT, make_celery_app
from app.db.errors import RevisionError
from jobcache import SettingsError, SourceUnavailable
from jobcache.errors import NamespaceConflict

if TYPE_CHECKING:
    from celery import Celery

    from app.jobs.render_worker import RenderWorker
    from app.settings import Settings

_CANNOT_START = 2


class WorkerProcess:
    """The parts of one process, created at its first task.

    Args:
        chosen: the settings.
    """

    def __init__(self, chosen: Settings) -> None:
        self._chosen = chosen
        self._stack = ExitStack()
        self._worker: RenderWorker | None = None
        self._creating = threading.Lock()  # in Celery's pool of threads

    def render_next(self) -> int | None:
        """Render the oldest job that waits; return its id, or None if no job waits."""
        with self._creating:
            if self._worker is None:
                self._worker = self._stack.enter_context(container.render_worker(self._chosen))
        return self._worker.render_next()

    def check(self, **_: object) -> None:
        """End the worker with one line if it could not work. The arguments are those of a signal.

        Raises:
            SystemExit: the database or the store of the cache cannot be used.
        """
        try:
            with container.render_worker(self._chosen):
                pass
        except (NamespaceConflict, RevisionError, SettingsError, SourceUnavailable) as error:
            print(f"The worker cannot start: {error}", file=sys.stderr)  # noqa: T201 - one line
            raise SystemExit(_CANNOT_START) from error

    def close(self, **_: object) -> None:
        """Stop the parts. The arguments are those of Celery's signals."""
        self._worker = None
        self._stack.close()


def create_worker(chosen: Settings) -> tuple[Celery, WorkerProcess]:
    """Return the application for the workers, and the parts that its task uses."""
    process = WorkerProcess(chosen)
    made = make_celery_app(chosen.celery_broker_url, chosen.celery_queue)
    made.task(process.render_next, name=RENDER_NEXT)
    return made, process


def from_environment() -> Celery:
    """Return the application with the settings of `.env` and the environment.

    Raises:
        SystemExit: a setting is wrong; one line on standard error says which.
    """
    try:
        environment.prepare({"JOBCACHE_RENDERER": "celery"})
        chosen = settings.load()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - instead of a traceback in the log
        raise SystemExit(_CANNOT_START) from error
    made, process = create_worker(chosen)
    if chosen.log_format == "json":
        # Has been set up. By default Celery does it, in its own format and with `--loglevel`.
        setup_logging.connect(_keep_logging, weak=False)
    worker_init.connect(process.check)
    worker_process_shutdown.connect(process.close)
    worker_shutdown.connect(process.close)
    made.jobcache_process = process  # signals hold weak references
    return made


def _keep_logging(**_: object) -> None:
    """Leave logging as it is: Celery sets it up only if no function is connected."""


def __getattr__(name: str) -> Celery:
    """Create `app` when Celery first reads it: importing this module does nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = from_environment()
    return made

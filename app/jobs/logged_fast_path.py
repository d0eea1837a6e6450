"""The fast path of the service with an access log: each poll that it answers is a line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from app.http.request_context import REQUEST_ID, read_context
from app.jobs.poll_fast_path import PollFastPath
from jobcache.http.fast_path import ADDED_HEADER
from jobcache.http.reply import Reply

if TYPE_CHECKING:
    from starlette.types import Scope

    from app.http.access_log import AccessLog
    from jobcache.http.fast_path import AdmittedPoll


class LoggedPollFastPath(PollFastPath):
    """Answers plain polls of jobs, logs them, and gives each reply the id of its request.

    Args:
        log: where lines are added.
        arguments: those of `PollFastPath`.
        options: as well.
    """

    def __init__(self, log: AccessLog, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - those of the other class
        super().__init__(*arguments, **options, echoed=b"")
        self._log = log

    def match(self, scope: Scope) -> AdmittedPoll | Reply | None:
        """Return what `PollFastPath` returns, whose reply is logged as soon as it is there."""
        began_ns = time.perf_counter_ns()
        poll = super().match(scope)
        if poll is None:
            return None
        context = read_context(scope["headers"])
        scope[ADDED_HEADER] = (REQUEST_ID, context.request_id.encode())

        def finish(reply: Reply) -> None:
            self._log.add(scope, context, reply.status, len(reply.body), began_ns)

        if isinstance(poll, Reply):
            finish(poll)
        else:
            poll.finish = finish
        return poll

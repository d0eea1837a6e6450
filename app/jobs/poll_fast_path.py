"""The fast path of the service: plain polls of jobs, answered before the framework sees them.

`jobcache.http.fast_path` answers them. Here is what only the service knows: its path, its callers,
the hosts that requests may name, and its answers to errors. It cannot decide differently from the
route, because it uses the same parts: `Authenticator` for the caller, `JobService` for the job,
`to_problem` for errors. A test compares the two byte for byte.

    answer      answers a poll by ASGI, under any server
    match       answers a hit of this process, or finds a poll, for the service's own protocol:
                `app.http.fast_path_protocol` writes a hit of another store without a task, too
"""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.responses import Response

from app.auth.callers import TRUSTED
from app.http import loopback_only
from app.http.problems import internal_error
from app.http.request_context import REQUEST_ID, current, is_request_id, read_context
from app.jobs.problems import to_problem
from app.jobs.schemas import LARGEST_ID
from jobcache.http.fast_path import ADDED_HEADER, FastPolls
from jobcache.http.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import ASGIApp, Scope

    from app.auth.middleware import Authenticator
    from app.http.common_headers import CommonHeaders
    from app.http.hosts import AllowedHosts
    from app.jobs.service import JobService
    from jobcache import Entry
    from jobcache.http.polled_document import PolledDocument
    from jobcache.observability.instrumentation import Instrumentation

logger = logging.getLogger("app")

_PATH = re.compile(r"/api/v2/jobs/([1-9][0-9]{0,18})", re.ASCII)


class PollFastPath(FastPolls):
    """Answers plain polls of jobs.

    Args:
        app: answers all other requests.
        service: for the jobs.
        authenticator: for the callers.
        hosts: those that requests may name.
        common_headers: those of every answer.
        root_path: the prefix of links.
        local_only: whether to answer on loopback only.
        instrumentation: follows polls.
        echoed: the name of the header that each reply repeats, if the poll has it.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: JobService,
        authenticator: Authenticator,
        hosts: AllowedHosts,
        common_headers: CommonHeaders,
        *,
        root_path: str = "",
        local_only: bool = False,
        instrumentation: Instrumentation | None = None,
        echoed: bytes = REQUEST_ID,
    ) -> None:
        super().__init__(
            app,
            self._job,
            self._can_view,
            failed=_failed,
            within=_identified,
            common_headers=common_headers,
            hosts=hosts.decisions,
            left=(b"origin", b"x-forwarded-prefix"),
            echoed=echoed,
            may_echo=is_request_id,
            root_path=root_path,
            instrumentation=instrumentation,
        )
        self._service = service
        self._authenticator = authenticator
        self._prefix = root_path
        self._local_only = local_only
        everybody = authenticator.everybody
        self._everybody = None if everybody is None else everybody.can_view_entry

    def admit(self, server: tuple[str, int | None] | None) -> bool:
        """Return True if connections to this address of the machine may be answered."""
        return not self._local_only or loopback_only.is_local(server)

    def _can_view(self, scope: Scope) -> Callable[[Entry], bool] | Reply | None:
        if self._everybody is not None:
            return self._everybody
        caller = self._authenticator.judge(scope, scope["path"].removeprefix(self._prefix))
        if isinstance(caller, Response):
            return Reply.of(caller)
        return None if caller is None else caller.can_view_entry

    def _job(self, path: str) -> PolledDocument | None:
        """Return the job of a path, whether it exists or not; None for any other path."""
        root = self._prefix
        match = _PATH.fullmatch(path.removeprefix(root) if root else path)
        if match is None or int(match[1]) > LARGEST_ID:
            return None
        return self._service.polled_document(int(match[1]), TRUSTED, root)


@contextmanager
def _identified(scope: Scope) -> Iterator[None]:
    """Give log lines the ids of a poll, and its reply the same id; hits do without."""
    context = read_context(scope["headers"])
    _, made = scope.setdefault(ADDED_HEADER, (REQUEST_ID, context.request_id.encode()))
    token = current.set(context._replace(request_id=made.decode()))
    try:
        yield
    finally:
        current.reset(token)


def _failed(error: Exception, path: str) -> Reply:
    """Return the reply to a poll that raised an error: the one that the route would send."""
    answer = to_problem(error, path)
    if answer is None:
        answer = internal_error(error, "GET", path)
        logger.error("Error on the fast path", exc_info=error)
    return Reply.of(answer)

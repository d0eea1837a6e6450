"""The fast path: plain polls, answered before the framework sees them.

Routing, validating and injecting cost several times as much as a hit. So a GET of one job's status
with no headers of interest beyond `If-None-Match` and `Accept-Encoding` is answered here, errors
included. Whatever is unusual goes on to the route, untouched. The two cannot decide differently,
because they use the same parts: `Authenticator` for the caller, `JobService` for the job,
`respond` for the answer, `to_problem` for errors. A test compares them byte for byte.

    answer      answers a poll by ASGI, under any server
    match       answers a hit of this process, or finds a poll, for the service's own protocol:
                `app.http.fast_path_protocol` writes a hit of another store without a task, too
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from app.auth.callers import Caller
from app.http import loopback_only
from app.http.fast_path import MATCHED
from app.http.problems import internal_error
from app.jobs.documents import with_prefix
from app.jobs.problems import to_problem
from app.jobs.schemas import LARGEST_ID
from jobcache import CacheUnavailable
from jobcache.http.conditional_get import Representation, conditions, respond
from jobcache.http.reply import Reply

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from starlette.types import Receive, Scope, Send

    from app.auth.middleware import Authenticator
    from app.http.common_headers import CommonHeaders
    from app.http.hosts import AllowedHosts
    from app.jobs.service import JobService
    from jobcache import ReadResult

logger = logging.getLogger("app")

_PATH = re.compile(r"/api/v2/jobs/([1-9][0-9]{0,18})", re.ASCII)
_JOBS = 4096
"""The most jobs whose `_Job` is kept."""
_EXAMINED = frozenset(
    {
        b"prefer",
        b"host",
        b"origin",
        b"x-forwarded-prefix",
        b"if-none-match",
        b"accept-encoding",
        b"content-length",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that the fast path reads, and those that leave a request to the application: a wish to be
held, a page of another origin, a body, an upgrade, or a second line of a header that is read."""


class _Job:
    """A polled job: all that is the same from one poll to the next.

    Attributes:
        representation: of the entry that was shown last, in the coding that it is stored in.
        rewrite: changes the links of the body.
        path: as requests have it.
        route_path: the same without the prefix under which a proxy has the service.
    """

    __slots__ = (
        "common_headers",
        "id",
        "path",
        "peek",
        "read_future",
        "representation",
        "rewrite",
        "route_path",
        "service",
    )

    def __init__(self, fast_path: PollFastPath, job_id: int, path: str) -> None:
        self.service = service = fast_path.service
        self.common_headers = fast_path.common_headers
        root_path = fast_path.root_path
        self.rewrite = partial(with_prefix, root_path=root_path) if root_path else None
        self.path = path
        self.route_path = path.removeprefix(root_path)
        self.id = job_id
        self.peek, self.read_future = service.polled(job_id)
        self.representation: Representation | None = None

    def answer(
        self, caller: Caller, if_none_match: str | None, accept_encoding: str | None
    ) -> Reply | AdmittedPoll:
        """Return the reply to a poll, or the poll if the entry is not in this process."""
        min_version = 0 if if_none_match is None else conditions(if_none_match).min_version
        try:
            result = None if self.peek is None else self.peek(min_version)
            if result is not None:
                return self.reply(result, caller, if_none_match, accept_encoding)
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self.failed(error)
        return AdmittedPoll(self, caller, if_none_match, accept_encoding, min_version)

    def reply(
        self,
        result: ReadResult,
        caller: Caller,
        if_none_match: str | None,
        accept_encoding: str | None,
    ) -> Reply:
        """Return the reply to a poll.

        Raises:
            JobNotFound: there is no such job for this caller.
        """
        entry = result.entry
        self.service.require_visible(caller, self.id, result)
        kept = self.representation
        if kept is None or kept.entry is not entry:  # keep it in the coding it is stored in
            gzip = entry.encoding == "gzip" and self.rewrite is None
            kept = Representation(entry, gzip=gzip, rewrite=self.rewrite)
            self.representation = kept
        return respond(result, if_none_match, accept_encoding, kept, self.rewrite)

    def failed(self, error: Exception) -> Reply:
        """Return the reply to a poll that raised an error: the one that the route would send."""
        answer = to_problem(error, self.path)
        if answer is None:
            answer = internal_error(error, "GET", self.path)
            logger.error("Error on the fast path", exc_info=error)
        return Reply.of(answer)


@dataclass(slots=True)
class AdmittedPoll:
    """A poll by a caller who may call, of an entry that is not in this process.

    Attributes:
        job: the job.
        caller: who polls.
        if_none_match: the header, if there is one.
        accept_encoding: the header, if there is one.
        min_version: the version that the client has seen.
    """

    job: _Job
    caller: Caller
    if_none_match: str | None
    accept_encoding: str | None
    min_version: int

    def begin(self) -> Reply | asyncio.Future[ReadResult | None] | None:
        """Begin to read the entry elsewhere; see `PendingPoll`."""
        try:
            return self.job.read_future(self.min_version)
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self.job.failed(error)

    def reply_to(self, reading: asyncio.Future[ReadResult | None]) -> Reply | None:
        """Return the reply, once the store has been read; see `PendingPoll`."""
        try:
            result = None if reading.cancelled() else reading.result()
            if result is None:
                return None
            return self.job.reply(result, self.caller, self.if_none_match, self.accept_encoding)
        except CacheUnavailable:
            return None
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self.job.failed(error)

    async def read(self) -> Reply:
        """Return the reply: after a load from the database if necessary, or for an error."""
        job = self.job
        try:
            result = await job.service.poll(job.id, self.caller, min_version=self.min_version)
            return job.reply(result, self.caller, self.if_none_match, self.accept_encoding)
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return job.failed(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer by ASGI, instead of the whole application and with the headers that it adds."""
        reply = await self.read()
        await reply.send(send, self.job.common_headers)


class PollFastPath:
    """Answers plain polls.

    Args:
        service: for the jobs.
        authenticator: for the callers.
        hosts: those that requests may name.
        common_headers: those of every answer.
        root_path: the prefix of links.
        local_only: whether to answer on loopback only.
    """

    def __init__(
        self,
        service: JobService,
        authenticator: Authenticator,
        hosts: AllowedHosts,
        common_headers: CommonHeaders,
        root_path: str = "",
        *,
        local_only: bool = False,
    ) -> None:
        self.root_path = root_path
        self.service = service
        self._authenticator = authenticator
        self._everybody = authenticator.everybody
        self._allowed = hosts.decisions
        self.common_headers = common_headers
        self._local_only = local_only
        self._jobs: dict[str, _Job] = {}

    def admit(self, server: tuple[str, int | None] | None) -> bool:
        """Return True if connections to this address of the machine may be answered."""
        return not self._local_only or loopback_only.is_local(server)

    def header_lines(self, reply: Reply) -> bytes:
        """Return the headers of a reply as they go over the wire, and keep them in the reply."""
        headers = self.common_headers.added(reply.headers)
        reply.lines = b"".join(map(b"%b: %b\r\n".__mod__, headers))
        return reply.lines

    def answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        """Return what answers a request if it is a plain poll, to be awaited; else None.

        The answer has all headers that the whole application would add, so nothing is around this.
        """
        if scope["type"] != "http" or MATCHED in (scope.get("extensions") or ()):
            return None
        poll = self.match(scope)
        if poll is None:
            return None
        if isinstance(poll, Reply):
            return poll.send(send, self.common_headers)
        return poll(scope, receive, send)

    def match(self, scope: Scope) -> AdmittedPoll | Reply | None:
        """Return the reply to a poll, or the poll if its entry is not in this process.

        None for any other request. One that is not None may have been counted against its caller's
        rate. So the caller is judged last, and the request must not be judged again.

        Args:
            scope: of ASGI; of it `path`, `method`, `query_string`, `root_path`, `headers`, and
                `client` are used.
        """
        path = scope["path"]
        job = self._jobs.get(path) or self._find(path)
        if job is None or scope["method"] != "GET" or scope["query_string"]:
            return None
        # Empty unless the server has set it: `Front` has not.
        root_path = scope.get("root_path")
        if root_path and root_path != self.root_path:
            return None
        host = if_none_match = accept_encoding = None
        for name, value in scope["headers"]:
            if name not in _EXAMINED:
                continue
            if name == b"host" and host is None:
                host = value
            elif name == b"if-none-match" and if_none_match is None:
                if_none_match = value.decode("latin-1")
            elif name == b"accept-encoding" and accept_encoding is None:
                accept_encoding = value.decode("latin-1")
            else:
                return None
        if host is None or not self._allowed[host]:
            return None
        caller = self._everybody or self._authenticator.judge(scope, job.route_path)
        if isinstance(caller, Caller):
            return job.answer(caller, if_none_match, accept_encoding)
        return None if caller is None else Reply.of(caller)

    def _find(self, path: str) -> _Job | None:
        """Return the job of a path, whether it exists or not; None for any other path."""
        root = self.root_path
        match = _PATH.fullmatch(path.removeprefix(root) if root else path)
        if match is None or int(match[1]) > LARGEST_ID:
            return None
        if len(self._jobs) >= _JOBS:
            self._jobs.clear()
        job = self._jobs[path] = _Job(self, int(match[1]), path)
        return job

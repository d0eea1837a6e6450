"""The hot path: plain polls, answered before the framework has seen them.

Routing, validating and injecting cost several times what a hit does. So a GET of one job's status
that says nothing beyond `If-None-Match` and `Accept-Encoding` is answered here. Whatever is unusual
goes on to the route, untouched. The two cannot differ in what they decide, for both ask the same:
`Authenticator` who is calling, `JobService` what there is for this caller, `respond` how that is
said.

    plain       a poll, for our own protocol, `app.http.fast_path_protocol`: it answers a hit in
                this process at once, and one in a store elsewhere without a task
    answered    any plain poll: for the application, whatever server it runs on
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from app.auth.callers import Caller
from app.jobs.conditional_get import Representation, conditions, respond
from app.jobs.schemas import LARGEST_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastapi import Request
    from starlette.types import Scope, Send

    from app.auth.middleware import Authenticator
    from app.http.hosts import AllowedHosts
    from app.jobs.conditional_get import Reply
    from app.jobs.service import JobService
    from jobcache import Entry, ReadResult

_PATH = re.compile(r"/api/v2/jobs/([1-9][0-9]{0,18})", re.ASCII)
_JOBS = 4096
"""Jobs that are kept at hand."""

_FAILED = "app.poll_failed"


class _Job:
    """A job that is polled: all that is the same from one poll to the next."""

    __slots__ = ("ask", "id", "peek", "representation", "root_path", "service")

    def __init__(self, service: JobService, job_id: int, root_path: str) -> None:
        self.service = service
        self.root_path = root_path
        self.id = job_id
        self.peek, self.ask = service.polled(job_id)
        self.representation: Representation | None = None

    def represent(self, entry: Entry) -> Representation:
        """The entry, in the coding it is stored in."""
        kept = self.representation
        if kept is None or kept.entry is not entry:
            gzip = entry.encoding == "gzip" and not self.root_path
            kept = Representation(entry, gzip=gzip, root_path=self.root_path)
            self.representation = kept
        return kept

    def shown(
        self, caller: Caller, answer: ReadResult, seen: str | None, accepted: str | None
    ) -> Reply:
        """The reply, if the caller may see the job."""
        self.service.require_visible(caller, self.id, answer)
        return respond(answer, seen, accepted, self.represent(answer.entry), self.root_path)


class Poll:
    """A plain poll: who asks for what, and what they say of themselves.

    Attributes:
        scope: of its request.
    """

    __slots__ = ("_accepted", "_caller", "_job", "_min_version", "_seen", "scope")

    def __init__(
        self, scope: Scope, job: _Job, caller: Caller, seen: str | None, accepted: str | None
    ) -> None:
        self.scope = scope
        self._job = job
        self._caller = caller
        self._seen = seen
        self._accepted = accepted
        self._min_version = 0 if seen is None else conditions(seen).min_version

    def at_once(self) -> Reply | None:
        """The reply, if it is a hit in this process; None: look elsewhere."""
        try:
            answer = self._job.peek(self._min_version)
            return None if answer is None else self._shown(answer)
        except Exception as error:  # noqa: BLE001 - raised again where errors are answered
            self.scope[_FAILED] = error
            return None

    def ask(self, then: Callable[[Reply | None], object]) -> bool:
        """Look once in a store elsewhere.

        Args:
            then: called in a later turn of the loop with the reply, if it is a hit; with None: ask
                the application.

        Returns:
            False, and `then` is not called: ask the application at once.
        """

        def answered(answer: ReadResult | None) -> None:
            reply = None
            try:
                reply = None if answer is None else self._shown(answer)
            except Exception as error:  # noqa: BLE001 - raised again where errors are answered
                self.scope[_FAILED] = error
            then(reply)

        return _FAILED not in self.scope and self._job.ask(self._min_version, answered)

    async def answered(self) -> Reply | None:
        """The reply; None if it has failed, which is to be told where errors are."""
        try:
            answer = await self._job.service.poll(
                self._job.id, self._caller, min_version=self._min_version
            )
            job = self._job
            kept = job.represent(answer.entry)
            return respond(answer, self._seen, self._accepted, kept, job.root_path)
        except Exception as error:  # noqa: BLE001 - raised again where errors are answered
            self.scope[_FAILED] = error
            return None

    def _shown(self, answer: ReadResult) -> Reply:
        return self._job.shown(self._caller, answer, self._seen, self._accepted)


class PollFastPath:
    """Answers plain polls.

    Args:
        service: what is polled.
        admission: who may.
        hosts: which requests may ask for.
        common: headers that every answer carries.
        root_path: what links begin with.

    Attributes:
        lines: the common headers as they go over the wire.
    """

    def __init__(
        self,
        service: JobService,
        admission: Authenticator,
        hosts: AllowedHosts,
        common: Sequence[tuple[bytes, bytes]],
        root_path: str = "",
    ) -> None:
        self._root_path = root_path
        self._service = service
        self._admission = admission
        self._allows = hosts.allows
        self.lines = b"".join(b"%b: %b\r\n" % header for header in common)
        self._jobs: dict[str, _Job] = {}

    async def answered(self, scope: Scope, send: Send) -> bool:
        """Answer a request, if it is a plain poll; else return False, and nothing has been sent."""
        poll = self.plain(scope) if scope["type"] == "http" else None
        if poll is None or _FAILED in scope:
            return False
        reply = await poll.answered()
        if reply is None:
            return False
        headers = [*reply.headers]  # of their own, for middleware around us may add some
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})
        return True

    def plain(self, scope: Scope) -> Poll | None:
        """The poll that a request is; None if it is another, or has something unusual about it.

        Args:
            scope: of ASGI; of it `path`, `method`, `query_string`, `root_path`, `headers`, and
                `client` are looked at.
        """
        job = self.job(scope["path"])
        if job is None or scope["method"] != "GET" or scope["query_string"]:
            return None
        # Empty, where our own protocol asks: the front has not yet put it there.
        if scope["root_path"] and scope["root_path"] != self._root_path:
            return None
        host = seen = accepted = None
        for name, value in scope["headers"]:
            if name == b"host" and host is None:
                host = value
            elif name == b"if-none-match" and seen is None:
                seen = value.decode("latin-1")
            elif name == b"accept-encoding" and accepted is None:
                accepted = value.decode("latin-1")
            elif name in _UNUSUAL:
                return None
        if host is None or not self._allows(host):
            return None
        caller = self._admission.judge(scope)
        if not isinstance(caller, Caller):
            return None
        return Poll(scope, job, caller, seen, accepted)

    def job(self, path: str) -> _Job | None:
        """The job whose status has this path, whether there is one or not; None: another path."""
        return self._jobs.get(path) or self._find(path)

    def _find(self, path: str) -> _Job | None:
        root = self._root_path
        match = _PATH.fullmatch(path.removeprefix(root) if root else path)
        if match is None or int(match[1]) > LARGEST_ID:
            return None
        if len(self._jobs) >= _JOBS:
            self._jobs.clear()
        job_id = int(match[1])
        job = self._jobs[path] = _Job(self._service, job_id, self._root_path)
        return job


_UNUSUAL = frozenset(
    {
        b"prefer",
        b"host",
        b"origin",
        b"x-forwarded-prefix",
        b"if-none-match",
        b"accept-encoding",
        b"content-length",
        b"transfer-encoding",
    }
)
"""What the application is to look at: a wish to be held, a page of another origin, a second line of
the others, a body."""


def raise_failed(request: Request) -> None:
    """What a poll failed with here, for the application to answer as it answers every error."""
    error = request.scope.pop(_FAILED, None)
    if error is not None:
        raise error

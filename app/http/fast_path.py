"""The fast path as the server's protocol sees it: what answers polls before the application.

`app.jobs.poll_fast_path` implements it; `app.http.fast_path_protocol` uses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import Scope

    from jobcache.http.fast_path import AdmittedPoll
    from jobcache.http.reply import Reply


class AnswersPolls(Protocol):
    """Answers polls, if nothing about them is unusual; see `jobcache.http.fast_path.FastPolls`."""

    def admit(self, server: tuple[str, int | None] | None) -> bool:
        """Return True if connections to this address of the machine may be answered."""

    def match(self, scope: Scope) -> AdmittedPoll | Reply | None:
        """Return the reply to a poll, or the poll if its entry is not in this process."""

    def header_lines(self, reply: Reply) -> bytes:
        """Return the headers of a reply as they go over the wire, and keep them in the reply."""

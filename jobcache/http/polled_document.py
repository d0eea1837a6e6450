"""A document that a client polls: how it is read, who the client is, and whether it may see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.cache import JobCache
    from jobcache.http.conditional_get import Rewrite
    from jobcache.models import Load, ReadResult
    from jobcache.protocol.entry import Entry


class NotVisible(Exception):  # noqa: N818 - names the reason
    """A version of the document is not for this client, or the document is gone."""


def everybody(entry: Entry) -> bool:  # noqa: ARG001 - has the signature of `can_view`
    """Return True: the document is for everybody."""
    return True


def _not_found() -> Exception:
    return HTTPException(404)


@dataclass(slots=True)
class PolledDocument:
    """A document that a client polls.

    Attributes:
        cache: where it is read.
        key: its key.
        load: reads it from the source; see `JobCache.read`.
        can_view: tells whether the client may see an entry. It is called for each version, before
            anything of it is sent. A document that it hides is as one that does not exist.
        not_found: returns the exception to raise if there is no document for this client.
        rewrite: changes the body for this client, such as its links; None: it is sent as it is.
        caller: the client, as `HeldRequests.admits` takes it.
        name: of the client, to count its held requests by.
    """

    cache: JobCache
    key: str
    load: Load
    can_view: Callable[[Entry], bool] = everybody
    not_found: Callable[[], Exception] = _not_found
    rewrite: Rewrite | None = None
    caller: object = None
    name: str = ""

    async def read(self, min_version: int = 0) -> ReadResult:
        """Return the document, as new as `min_version` if there is such a version.

        Raises:
            NotVisible: there is no document for this client.
            Exception: as `JobCache.read`.
        """
        result = await self.cache.read(self.key, self.load, min_version=min_version)
        entry = result.entry
        if entry.version == 0 or not self.can_view(entry):
            raise NotVisible
        return result

    async def wait_for_newer(
        self,
        version: int,
        timeout: float,  # noqa: ASYNC109 - see `JobCache.wait_for_newer`
    ) -> ReadResult | None:
        """Return the document once it is newer than `version`; None after `timeout` seconds.

        Raises:
            NotVisible: the newer version is not for this client.
            Exception: as `JobCache.wait_for_newer`.
        """
        result = await self.cache.wait_for_newer(self.key, self.load, version, timeout)
        if result is not None and (result.missing or not self.can_view(result.entry)):
            raise NotVisible
        return result

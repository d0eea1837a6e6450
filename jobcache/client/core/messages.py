"""What the rules ask a client to do, and what a client reports back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Mapping


T = TypeVar("T")

CONNECTIONS = 8
"""The most requests at a time of waits for many documents, unless the caller says."""

LARGEST_BODY = 16 * 1024 * 1024
"""The most bytes of a body that is read into memory."""


class Receiver(Protocol):
    """Takes the body of a response piece by piece, in place of `Response.body`."""

    def accepts(self, status: int, headers: Mapping[str, str]) -> bool:
        """Return whether to write the body; it is read into memory if not."""

    def write(self, piece: bytes) -> None:
        """Take a piece of the body."""


@dataclass(frozen=True, slots=True)
class Request:
    """Send a request.

    Attributes:
        method: such as `GET`.
        url: the whole URL, or what follows the address of the service.
        headers: of this request; the sender adds the credentials.
        body: sent as JSON; None for none.
        timeout: seconds to wait for the whole response.
        credentials: whether the caller's own headers, cookies and authentication may be sent, too:
            not to another origin.
        largest_body: the most bytes of the response's body, if it is read into memory.
        receiver: takes the body of a file; None reads each body into memory. Each piece of a file
            has ten seconds, and all of it has `timeout`, which may be infinite.
    """

    method: str
    url: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    timeout: float
    credentials: bool = True
    largest_body: int = LARGEST_BODY
    receiver: Receiver | None = None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Update(Generic[T]):
    """Show a newer document to the caller."""

    document: T


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response. The names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class TransportError:
    """There was no response, because of `error`."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Completed(Generic[T]):
    """The end of one of many waits.

    Attributes:
        number: its place among the waits, from 0.
        source: what the caller waited for: a URL, a response, or the id of a job.
        error: why there is no result; None if there is one.
    """

    number: int
    source: Any
    _result: T | None
    error: Exception | None

    def result(self) -> T:
        """Return the last document, or raise `error`."""
        if self.error is not None:
            raise self.error
        return cast("T", self._result)


Reply: TypeAlias = Response | TransportError | None
Steps: TypeAlias = Generator[Request | Sleep | Update[T] | Completed[T], Reply, T]


@dataclass(slots=True)
class Counts:
    """What a client has done so far. Not exact if several threads use the client.

    Attributes:
        requests: requests sent.
        failed: requests without a response, or with one after which they are sent again.
        unchanged: responses 304.
        held: responses that the service had held.
        updates: newer documents.
        older: documents older than one seen before, which were ignored.
    """

    requests: int = 0
    failed: int = 0
    unchanged: int = 0
    held: int = 0
    updates: int = 0
    older: int = 0

"""What the rules ask a client to do, and what a client reports back."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping


class Versioned(Protocol):
    """One version of a document."""

    @property
    def version(self) -> int:
        """A number that grows with every change."""

    @property
    def etag(self) -> str | None:
        """The entity tag of the response; None if it had none."""


T = TypeVar("T", bound=Versioned)


@dataclass(frozen=True, slots=True)
class Request:
    """Send a request.

    Attributes:
        method: such as `GET`.
        path: what follows the address of the service.
        headers: of this request; the sender adds the credentials.
        body: sent as JSON; None for none.
        timeout: seconds to wait for the whole response.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None
    timeout: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Sleep for so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Update(Generic[T]):
    """Show a newer version to the caller."""

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


Reply: TypeAlias = Response | TransportError | None
Steps: TypeAlias = Generator[Request | Sleep | Update[T], Reply, T]


@dataclass(slots=True)
class Counts:
    """What a client has done so far. Not exact if several threads use the client.

    Attributes:
        requests: requests sent.
        failed: requests without a response, or with one after which they are sent again.
        unchanged: responses 304.
        held: responses that the service had held.
        updates: newer versions.
        older: documents older than one seen before, which were ignored.
    """

    requests: int = 0
    failed: int = 0
    unchanged: int = 0
    held: int = 0
    updates: int = 0
    older: int = 0

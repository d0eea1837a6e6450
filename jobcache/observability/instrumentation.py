"""Instrumentation: follows single operations of a cache, such as for traces.

Counts and durations need none of it: `JobCache.measure` has them. An instrumentation is told of
each operation as it begins, and decides whether to follow this one. Without one nothing is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    Attributes = Mapping[str, str | int | bool]

Operation = Literal["poll", "read", "load", "write"]


class Span(Protocol):
    """One operation, from its beginning to its end.

    Attributes:
        followed: False if nobody will see this operation; then its attributes need not be computed.
    """

    @property
    def followed(self) -> bool:
        """Whether this operation is followed."""

    def active(self) -> AbstractContextManager[object]:
        """Return a block in which operations that begin are parts of this one.

        They are followed if, and only if, this one is.
        """

    def end(self, attributes: Attributes, error: BaseException | None = None) -> None:
        """End the operation. Called once.

        Args:
            attributes: how it ended, such as `jobcache.tier` and `jobcache.result`.
            error: the error that it ended with.
        """


class Instrumentation(Protocol):
    """Follows operations. It is called in the event loop of the cache, and must not block."""

    def begin(self, operation: Operation, key: str = "", traceparent: str | None = None) -> Span:
        """Begin an operation: within the active one, or within one of the client's, or alone.

        Args:
            operation: what begins: a `poll` over HTTP, a `read`, a `load` or a `write`.
            key: of a read, or the first key of a load.
            traceparent: the header of a poll (W3C Trace Context).
        """

"""Headers that every answer carries, whichever part of the service makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    Header = tuple[bytes, bytes]

NOSNIFF = (b"x-content-type-options", b"nosniff")


class CommonHeaders:
    """Adds the headers that `Front` adds to the response of a request without an origin.

    Args:
        origins: the origins whose pages may use the service.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._varies_by_origin = bool(origins)

    def added(self, headers: Sequence[Header]) -> list[Header]:
        """Return the headers of an answer with the common ones, in the order of `Front`."""
        result = [*headers]
        if self._varies_by_origin:
            # As Starlette's CORSMiddleware has it: one Vary, in its place if there is one already.
            names = [name for name, _ in result]
            if b"vary" in names:
                at = names.index(b"vary")
                result[at] = (b"vary", result[at][1] + b", Origin")
            else:
                result.append((b"vary", b"Origin"))
        if NOSNIFF not in result:
            result.append(NOSNIFF)
        return result

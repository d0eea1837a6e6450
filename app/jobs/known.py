"""What is known by its bytes: a request that has come before need not be read to be understood.

Only what has come twice is kept, for behind some proxies no two requests are the same. Whether it
has is told by a table of fingerprints, a byte each, that later ones overwrite: it takes no look at
what is kept, nothing has to be given back, and a wrong guess, one in 255, keeps what is not needed.
(The doorkeeper of TinyLFU, without its counts.)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_FINGERPRINTS = 1 << 15


class Known(Generic[T]):
    """Things by the bytes that stand for them; of too many, the first are forgotten.

    Args:
        most: how many are kept.
        longest: bytes that one may have to be kept.

    Attributes:
        get: the thing that stands behind some bytes; None: they are not known.
    """

    def __init__(self, most: int, longest: int) -> None:
        self._most = most
        self._longest = longest
        self._things: OrderedDict[bytes, T] = OrderedDict()
        self._met = bytearray(_FINGERPRINTS)  # 0: nothing has been met here
        self.get: Callable[[bytes], T | None] = self._things.get

    def __len__(self) -> int:
        return len(self._things)

    def met(self, said: bytes) -> bool:
        """These bytes have come: whether they have come before, and so are worth to be kept."""
        if len(said) > self._longest:
            return False
        mark = hash(said)  # which they have kept since they were looked for
        place, fingerprint = mark % _FINGERPRINTS, (mark >> 32) % 255 + 1
        before = self._met[place]
        self._met[place] = fingerprint
        return before == fingerprint

    def keep(self, said: bytes, thing: T) -> None:
        """These bytes stand for this."""
        if len(self._things) >= self._most:
            self._things.popitem(last=False)
        self._things[said] = thing

    def forget(self, said: bytes) -> None:
        """These bytes stand for nothing certain any more."""
        self._things.pop(said, None)

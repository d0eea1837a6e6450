"""What is known by its bytes: a request that has come before need not be read to be understood.

Only what comes again is kept, for behind some proxies no two requests are the same. Whether it has
come before is told by a table of fingerprints, a byte each, that later ones overwrite: it takes no
look at what is kept, nothing has to be given back, and a wrong guess, one in 255, keeps what is not
needed. (The doorkeeper of TinyLFU, which forgets bit by bit and not all at once.)

When all places are taken, only every 16th that would be kept is, in the place of the first. If each
were, requests that come in turn, and are a few too many, would drive each other out before they are
needed, and none would be found. (Bimodal insertion: Qureshi and others, 2007.)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_FINGERPRINTS = 1 << 15
_ONE_IN = 16


class Known(Generic[T]):
    """Things by the bytes that stand for them.

    Args:
        most: how many are kept.

    Attributes:
        get: the thing that stands behind some bytes; None: they are not known.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: OrderedDict[bytes, T] = OrderedDict()
        self._met = bytearray(_FINGERPRINTS)  # 0: nothing has been met here
        self._declined = 0
        self.get: Callable[[bytes], T | None] = self._things.get

    def __len__(self) -> int:
        return len(self._things)

    def meet(self, said: bytes) -> bool:
        """These bytes have come: whether they have come before, and are to be kept."""
        mark = hash(said)  # which they have kept since they were looked for
        place, fingerprint = mark % _FINGERPRINTS, (mark >> 32) % 255 + 1
        if self._met[place] != fingerprint:
            self._met[place] = fingerprint
            return False
        if len(self._things) < self._most:
            return True
        self._declined = (self._declined + 1) % _ONE_IN
        return self._declined == 0

    def keep(self, said: bytes, thing: T) -> None:
        """These bytes stand for this."""
        if len(self._things) >= self._most:
            self._things.popitem(last=False)
        # A copy: what came from a socket may keep all the memory that was there to receive it.
        self._things[bytes(memoryview(said))] = thing

    def forget(self, said: bytes) -> None:
        """These bytes stand for nothing certain any more."""
        self._things.pop(said, None)

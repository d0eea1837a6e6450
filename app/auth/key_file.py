"""The key file of a running service: read at the start, and again when it changes."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING

from app.auth.keys import KeyFileError, Keyring, read_lines
from app.http.descriptors import SpareDescriptor
from jobcache import SettingsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from app.auth.callers import Caller

logger = logging.getLogger("app")
_SOONER = 8
_FULL = {errno.EMFILE, errno.ENFILE}
_MOST_BYTES = 4 * 1024 * 1024  # some 35,000 keys


def read_text(path: Path) -> str:
    """Return the text of a key file.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        if not path.is_file():  # reading a pipe would block
            raise KeyFileError("there is no such file")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise KeyFileError(f"it has more than {_MOST_BYTES} bytes")
        return content.decode()
    except OSError as error:
        raise KeyFileError(f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise KeyFileError("it is not UTF-8") from None  # whose message would quote it


class KeyFile:
    """The keys of a file, as of the last time when it could be read.

    Args:
        path: the file.
        every: seconds between two reads of it. After a failure it is a fraction of that, because
            keys may have been revoked.
        sleep: waits for the given seconds.

    Attributes:
        ring: the keys.
        on_change: called after the keys have changed.

    Raises:
        SettingsError: the file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        every: float = 2.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._path = path
        self._every = every
        self._sleep = sleep
        try:
            self._text = read_text(path)
            self.ring = Keyring(read_lines(self._text))
        except KeyFileError as error:
            allowed = f"{error}; allowed is a file made by `python -m app keys add`"
            raise SettingsError("JOBCACHE_API_KEYS", path, allowed) from error
        self.on_change: list[Callable[[], object]] = []
        self._trouble = ""
        self._watching: asyncio.Task[None] | None = None
        self._spare: SpareDescriptor | None = None

    @property
    def problem(self) -> str:
        """The reason why the file could not be used when it was last read; empty if it could."""
        return self._trouble

    def admits(self, caller: Caller) -> bool:
        """Return True if a caller who was admitted earlier would still be admitted."""
        return self.ring.holds(caller)

    def start(self) -> None:
        """Begin to check the file for changes."""
        self._spare = SpareDescriptor()
        self._watching = asyncio.create_task(self._watch())

    async def aclose(self) -> None:
        """Stop checking."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    async def _watch(self) -> None:
        while True:
            await self._sleep(self._every / _SOONER if self._trouble else self._every)
            await self.refresh()

    async def refresh(self) -> None:
        """Read the file if it has changed. If it is broken, log that once and keep the old keys."""
        try:
            changed = await asyncio.to_thread(self._changed)
        except (KeyFileError, RuntimeError) as error:  # the latter if there can be no more threads
            if str(error) != self._trouble:
                self._trouble = str(error)
                logger.warning("%s: %s; the keys stay as they were", self._path, error)
            return
        self._trouble = ""
        if changed is not None:
            self._text, self.ring = changed
            logger.info("%s has changed; it holds %d keys", self._path, len(self.ring))
            for each in self.on_change:
                try:
                    each()
                except Exception:  # the file is watched all the same
                    logger.exception("an error after the keys have changed")

    def _changed(self) -> tuple[str, Keyring] | None:
        # By content: times of change are too coarse to tell two changes in a row apart.
        text = self._read()
        return None if text == self._text else (text, Keyring(read_lines(text), self.ring))

    def _read(self) -> str:
        try:
            return read_text(self._path)
        except KeyFileError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL
            if self._spare is None or not full:
                raise
        with self._spare.given_up():
            return read_text(self._path)

"""The part of a file that has been downloaded, beside the place of the whole file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from io import FileIO


class PartFile:
    """Bytes in `<name>.part`, and their entity tag in `<name>.part.etag`, until all are there.

    Args:
        path: of the whole file. It appears there complete, or not at all.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(f"{self.path.name}.part")
        self._tag = self.path.with_name(f"{self.path.name}.part.etag")
        self.size = 0
        self.etag: str | None = None
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        self._file = self._part.open("ab", buffering=0)
        self.size = self._file.tell()
        with suppress(FileNotFoundError):
            self.etag = self._tag.read_text("latin-1")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self.size == 0:
            self._part.unlink(missing_ok=True)
            self._tag.unlink(missing_ok=True)

    def restart(self, etag: str | None) -> None:
        """Drop all bytes; what follows belongs to the file with this entity tag."""
        # In this order: after a crash in between, there are no bytes that a tag could be wrong for.
        self._opened.truncate(0)
        self.size, self.etag = 0, etag
        if etag is None:
            self._tag.unlink(missing_ok=True)
        else:
            self._tag.write_text(etag, "latin-1")

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        left = memoryview(piece)
        while left:
            written = self._opened.write(left)
            self.size += written
            left = left[written:]

    def finish(self) -> Path:
        """Move the file to its place, and return that."""
        os.fsync(self._opened.fileno())
        self._opened.close()
        self._part.replace(self.path)
        self._tag.unlink(missing_ok=True)
        return self.path

    @property
    def _opened(self) -> FileIO:
        assert self._file is not None, "the file is used within its block"  # noqa: S101
        return self._file

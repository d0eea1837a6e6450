"""The document of a job, as a client sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Job:
    """One version of a job.

    Attributes:
        id: its number.
        version: grows with every change.
        status: such as `rendering`.
        terminal: True if nothing more will happen to it.
        document: all that the service said, these fields included.
        etag: the entity tag of the answer it came in; None if that had none.
    """

    id: int
    version: int
    status: str
    terminal: bool
    document: dict[str, Any]
    etag: str | None

    @property
    def percent(self) -> float:
        """How far it is, 0 to 100."""
        return float(self.document["progress"]["percent"])

    @property
    def error(self) -> str | None:
        """Why it failed."""
        error: str | None = self.document.get("error")
        return error

    @property
    def video_url(self) -> str | None:
        """Where its video is, once there is one."""
        url: str | None = self.document.get("video_url")
        return url

    @classmethod
    def parse(cls, body: bytes, etag: str | None) -> Self:
        """Read a document.

        Raises:
            ValueError: it is not a job.
        """
        document = json.loads(body)
        if not isinstance(document, dict):
            raise ValueError("the answer is not the document of a job")  # noqa: TRY004 - see above
        found = [document.get(name) for name in ("id", "version", "status", "terminal")]
        match found:
            case [int(number), int(version), str(status), bool(terminal)]:
                return cls(number, version, status, terminal, document, etag)
        raise ValueError(f"id, version, status and terminal of a job cannot be {found}")

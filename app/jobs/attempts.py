"""What attempts to work on a job have in common, in the service and in the workers of a queue."""

from __future__ import annotations

import os
import socket
import uuid

MOST_ATTEMPTS = 5
"""How often a job is started. One that is cut short as often may be why processes die."""
GIVEN_UP = f"Given up: {MOST_ATTEMPTS} attempts were cut short."
"""The error of a job that was started too often."""
COMPLETE_PAUSES = (0.5, 1, 2, 4, 8, 15, 15, 15)
"""Seconds between attempts to complete a job while the database is away: its video is finished."""


def unique_name() -> str:
    """Return a name that no other runner has, to claim jobs with."""
    return f"{socket.gethostname()[:24]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def video_url(job_id: int) -> str:
    """Return where the service serves a job's video."""
    return f"/api/v2/jobs/{job_id}/video"

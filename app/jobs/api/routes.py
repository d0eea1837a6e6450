"""The endpoints under `/api/v2/jobs`: HTTP in, HTTP out, and nothing decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from app.http.routing import name_of
from app.jobs.api import collection, event_stream, media, polling, transitions
from app.jobs.api.prefer import LONGEST

if TYPE_CHECKING:
    from pathlib import Path

    from app.jobs.events import JobEvents
    from app.jobs.service import JobService


def router(
    service: JobService, events: JobEvents, videos: Path, *, longest_wait: int = LONGEST
) -> APIRouter:
    """Return the router of all endpoints of jobs.

    Args:
        service: for the jobs.
        events: for streams of events.
        videos: the directory of finished videos.
        longest_wait: the most seconds that a poll is held.
    """
    routes = APIRouter(prefix="/api/v2/jobs", tags=["jobs"], generate_unique_id_function=name_of)
    collection.add_to(routes, service)
    media.add_to(routes, service, videos)
    polling.add_to(routes, service, events.held, longest_wait=longest_wait)
    event_stream.add_to(routes, service, events)
    transitions.add_to(routes, service)
    return routes

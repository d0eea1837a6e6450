"""The endpoints under `/api/v2/jobs`: HTTP in, HTTP out, and nothing decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter

from app.http.routing import name_of
from app.jobs.api import collection, media, polling, transitions

if TYPE_CHECKING:
    from pathlib import Path

    from app.jobs.service import JobService
    from jobcache.http.fastapi import PollingRoutes


def router(service: JobService, polls: PollingRoutes, videos: Path) -> APIRouter:
    """Return the router of all endpoints of jobs.

    Args:
        service: for the jobs.
        polls: answers polls.
        videos: the directory of finished videos.
    """
    routes = APIRouter(prefix="/api/v2/jobs", tags=["jobs"], generate_unique_id_function=name_of)
    collection.add_to(routes, service)
    media.add_to(routes, service, videos)
    polling.add_to(routes, service, polls)
    transitions.add_to(routes, service)
    return routes

"""Responses of the service to a poll of a job."""

from __future__ import annotations

import json

from jobcache.client.core.messages import Response, TransportError

LOST = TransportError(ConnectionError("reset"))


def body(version: int, status: str = "rendering", job_id: int = 7) -> bytes:
    progress = {"percent": float(version), "stage": "", "message": "", "updated_at": None}
    return json.dumps(
        {
            "id": job_id,
            "version": version,
            "status": status,
            "terminal": status in {"completed", "failed", "cancelled"},
            "progress": progress,
            "error": None,
            "video_url": "/v" if status == "completed" else None,
        }
    ).encode()


def document(version: int, status: str = "rendering", **headers: str) -> Response:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(200, {"etag": f'"{version}-0"'} | named, body(version, status))


def unchanged(**headers: str) -> Response:
    return Response(304, {name.replace("_", "-"): text for name, text in headers.items()}, b"")


def error(status: int, **headers: str) -> Response:
    problem = {"title": "No", "status": status, "detail": "why"}
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, named, json.dumps(problem).encode())

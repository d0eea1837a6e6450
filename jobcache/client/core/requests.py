"""What both clients send, apart from how."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import httpx

if TYPE_CHECKING:
    from jobcache.client.core.rules import Request, Rules, Steps

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
"""A held request has a connection to itself; httpx's own 100 would let the others wait for one."""

MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
"""What no repetition mends: an address or a key that cannot be sent."""

_CONNECT_WITHIN = 5.0


class NewJob(TypedDict, total=False):
    """What a job may be asked for with, beside its prompt; the service has defaults."""

    scenes: int
    seconds_per_scene: float
    renderer: str


def create(
    rules: Rules, client_id: str, prompt: str, key: str | None, **fields: Unpack[NewJob]
) -> Steps:
    """Ask for a video. With its `Idempotency-Key` it may be sent again."""
    return rules.call(
        "POST",
        "/api/v2/jobs",
        {"client_id": client_id, "prompt": prompt, **fields},
        headers={"Idempotency-Key": uuid.uuid4().hex if key is None else key},
        repeatable=True,
    )


def get(rules: Rules, job_id: int) -> Steps:
    """Look once."""
    return rules.call("GET", f"/api/v2/jobs/{job_id}", repeatable=True)


def move(rules: Rules, job_id: int, step: str) -> Steps:
    """Approve, render or cancel: sent once, for it has no key that makes one of two."""
    return rules.call("POST", f"/api/v2/jobs/{job_id}/{step}", repeatable=False)


def request(ask: Request, address: str, authorization: dict[str, str]) -> dict[str, Any]:
    """The arguments of httpx's `request`."""
    return {
        "method": ask.method,
        "url": f"{address}{ask.path}",
        "headers": {**ask.headers, **authorization},
        "json": ask.body,
        "timeout": httpx.Timeout(ask.timeout, connect=min(_CONNECT_WITHIN, ask.timeout)),
        "follow_redirects": False,
    }


def authorization(key: str | None) -> dict[str, str]:
    """The header that says who is asking."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}

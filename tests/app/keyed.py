"""A service with keys, and one caller of every kind."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.auth.callers import Role
from app.auth.keys import HEADING, make_key
from tests.app.running import Service, Start

CLIENTS = {"own": "acme", "stranger": "other"}


@dataclass
class Keyed:
    """The service, its file of keys, and each caller's headers, by what the caller is."""

    service: Service
    file: Path
    callers: dict[str, dict[str, str]]

    async def call(self, caller: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = self.callers[caller] | options.pop("headers", {})
        return await self.service.http.request(method, path, headers=headers, **options)


def write_keys(file: Path) -> dict[str, str]:
    """Write a key of every kind to the file; return the keys by their kind."""
    text, tokens = HEADING, {}
    for name, role in (
        ("own", Role.CLIENT),
        ("stranger", Role.CLIENT),
        ("worker", Role.WORKER),
        ("operator", Role.OPERATOR),
    ):
        key, tokens[name] = make_key(role, CLIENTS.get(name), "2026-11-24")
        text += key.line()
    file.write_text(text)
    return tokens


@asynccontextmanager
async def keyed(start: Start, file: Path, **environment: str) -> AsyncIterator[Keyed]:
    """Start a service whose `http` is an operator's, with callers who have other keys, or none."""
    tokens = write_keys(file)
    callers = {name: bearer(token) for name, token in tokens.items()}
    known, other = tokens["own"], secrets.token_urlsafe(32)
    callers["none"] = {"Authorization": ""}  # which takes the operator's away
    callers["malformed"] = bearer("x")
    callers["wrong"] = bearer(known[: -len(other)] + other)
    async with start(JOBCACHE_API_KEYS=str(file), **environment) as service:
        service.http.headers.update(callers["operator"])
        yield Keyed(service, file, callers)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}

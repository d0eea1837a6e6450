"""Creates the jobs of a load, through the API."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from benchmarks.service import ServiceFailed
from loadtests.connection import Connection, Response, connect, get, post

if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_ONCE = 8
_PAUSE = 0.02  # seconds between two looks for a storyboard
_PATIENCE = 60.0  # seconds for one job
_PROMPT = "A cat sits on a mat. A dog runs over a hill."


def create(port: int, count: int) -> dict[int, int]:
    """Create jobs that an external worker is rendering; return their versions by their ids.

    Raises:
        ServiceFailed: the service refused, or took too long.
    """
    return asyncio.run(_create(port, count))


async def _create(port: int, count: int) -> dict[int, int]:
    versions: dict[int, int] = {}
    left = iter(range(count))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, count)):
                group.create_task(_create_some(port, left, versions))
    except* ServiceFailed as failed:
        raise failed.exceptions[0] from None
    return dict(sorted(versions.items()))


async def _create_some(port: int, left: Iterable[int], versions: dict[int, int]) -> None:
    client = _Client()
    await client.connect(port)
    body = json.dumps({"client_id": "acme", "prompt": _PROMPT, "renderer": "external"}).encode()
    try:
        for _ in left:
            async with asyncio.timeout(_PATIENCE):
                job = (await client.call(post("/api/v2/jobs", body)))["id"]
                path = f"/api/v2/jobs/{job}"
                while (await client.call(get(path)))["status"] != "storyboard_ready":  # noqa: ASYNC110 - not announced
                    await asyncio.sleep(_PAUSE)
                await client.call(post(f"{path}/approve"))
                versions[job] = (await client.call(post(f"{path}/render")))["version"]
    except TimeoutError as error:
        raise ServiceFailed(f"a job was not ready within {_PATIENCE:g} s") from error
    finally:
        client.close()


class _Client:
    """Sends one request after the other."""

    _connection: Connection
    _response: asyncio.Future[Response]

    async def connect(self, port: int) -> None:
        self._response = asyncio.get_running_loop().create_future()
        self._connection = await connect(port, self._received)

    async def call(self, request: bytes) -> dict[str, Any]:
        self._response = asyncio.get_running_loop().create_future()
        self._connection.send(request)
        response = await self._response
        if response.lost or response.status >= 400:
            text = response.body[:200].decode(errors="replace")
            line = request.partition(b"\r")[0].decode()
            raise ServiceFailed(f"{line} was answered {response.status}: {text}")
        document: dict[str, Any] = json.loads(response.body)
        return document

    def close(self) -> None:
        self._connection.close()

    def _received(self, response: Response) -> None:
        if not self._response.done():
            self._response.set_result(response)

"""A key is revoked: long polls and streams that are held for it end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from app.auth.callers import Role
from app.auth.key_file import KeyFile
from app.auth.keys import HEADING, Keyring, make_key, read_lines
from jobcache.http.held_requests import HeldRequest
from tests.app.keyed import Keyed, keyed
from tests.app.running import Start, choosing
from tests.app.test_disconnects import listening

HERE = ("localhost", 80)


async def until_held(access: Keyed, waits: int, streams: int) -> None:
    held = access.service.services.held
    async with asyncio.timeout(20):
        while held.counts() != {"waits": waits, "streams": streams, "most": held.most}:
            await asyncio.sleep(0.01)


def without(access: Keyed, caller: str) -> str:
    key_id = access.callers[caller]["Authorization"].partition("jc_")[2][:12]
    lines = access.file.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(key_id))


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service look at its file of keys often, not every two seconds."""
    assert KeyFile.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(KeyFile.__init__.__kwdefaults__, "every", 0.02)


CHANGES = ["removed", "another client", "another secret"]
BACKENDS = ["null", "memory", "redis", "tiered"]


@pytest.mark.usefixtures("watchful")
@pytest.mark.parametrize(
    ("backend", "change"),
    [
        *(("memory", change) for change in CHANGES),
        *((backend, "removed") for backend in BACKENDS if backend != "memory"),
        *(
            pytest.param(backend, change, marks=pytest.mark.long)
            for backend in BACKENDS
            for change in CHANGES
            if backend != "memory" and change != "removed"
        ),
    ],
)
async def test_streams_and_long_polls_end_when_their_key_is_taken_away(
    start: Start,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    backend: str,
    change: str,
) -> None:
    environment = choosing(request, backend)
    async with (
        keyed(start, tmp_path / "keys", JOBCACHE_HEARTBEAT_SECONDS="30", **environment) as access,
        listening(access.service) as port,
        asyncio.timeout(60),
    ):
        job = await access.service.rendering()
        path, tag = f"/api/v2/jobs/{job['id']}", f'"{job["version"]}-0"'

        async def said(caller: str, path: str, *headers: str) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            key = access.callers[caller]["Authorization"]
            lines = "".join(f"{each}\r\n" for each in headers)
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key}\r\n"
                f"Connection: close\r\n{lines}\r\n".encode()
            )
            received = await reader.read()
            writer.close()
            return received

        def hold(caller: str) -> list[asyncio.Task[bytes]]:
            waiting = said(caller, path, f"If-None-Match: {tag}", "Prefer: wait=50")
            return [
                asyncio.create_task(waiting),
                asyncio.create_task(said(caller, f"{path}/events")),
            ]

        revoked, others = hold("own"), hold("operator")
        await until_held(access, 2, 2)
        text = access.file.read_text()
        if change == "removed":
            text = without(access, "own")
        elif change == "another client":
            text = text.replace(" acme ", " other ")
        else:
            key_id = access.callers["own"]["Authorization"].partition("jc_")[2][:12]
            text = "".join(
                line[:-20].replace("sha256:", "sha256:0")[: len(line) - 20] + line[-20:]
                if line.startswith(key_id)
                else line
                for line in text.splitlines(keepends=True)
            )
            read_lines(text)
        access.file.write_text(text)
        # The service looks by itself.
        wait, stream = await asyncio.gather(*revoked)
        assert wait.startswith(b"HTTP/1.1 401 ")
        assert b"invalid_token" in wait
        assert stream.startswith(b"HTTP/1.1 200 ")
        assert stream.endswith(b"0\r\n\r\n"), "in order"
        assert b"\n:\n\n" not in stream, "before the first heartbeat"
        await until_held(access, 1, 1)
        assert not any(task.done() for task in others)
        await access.service.post(f"{job['id']}/cancel")
        wait, stream = await asyncio.gather(*others)
        assert json.loads(wait.partition(b"\r\n\r\n")[2])["status"] == "cancelled"
        assert b'"cancelled"' in stream


async def test_a_key_that_stays_is_the_same_caller_and_another_is_not() -> None:
    key, token = make_key(Role.CLIENT, "acme", "2026-11-24")
    other, _ = make_key(Role.CLIENT, "acme", "2026-11-24")
    first = Keyring(read_lines(HEADING + key.line()))
    caller = first.identify(token.encode())
    assert caller is not None
    same = Keyring(read_lines(HEADING + other.line() + key.line()), first)
    assert same.holds(caller)
    assert not Keyring(read_lines(HEADING + other.line()), same).holds(caller)
    gone = Keyring([], same)
    back = Keyring([key], gone)
    assert not back.holds(caller), "it was away in between"


async def test_a_client_with_a_revoked_key_is_not_held(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys") as access:
        services = access.service.services
        assert services.keys is not None
        token = access.callers["own"]["Authorization"].removeprefix("Bearer ").encode()
        caller = services.keys.ring.identify(token)
        assert caller is not None
        with services.held.slot("waits", caller.name, HERE, HeldRequest(caller)) as held:
            assert held
        access.file.write_text(without(access, "own"))
        await services.keys.refresh()
        with services.held.slot("waits", caller.name, HERE, HeldRequest(caller)) as held:
            assert not held

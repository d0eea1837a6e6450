"""A key file that cannot be read: revocations come through as soon as it can."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.auth.key_file import KeyFile
from tests.app.keyed import keyed, write_keys
from tests.app.running import Start

resource = pytest.importorskip("resource")


@contextmanager
def no_descriptors() -> Iterator[None]:
    """All that this process may have are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in taken:
            os.close(each)


def revoke(file: Path) -> None:
    """Replace the file by one without the client's key, as `app keys revoke` does."""
    rows = file.read_text().splitlines(keepends=True)
    new = file.with_name("new")
    new.write_text("".join(row for row in rows if " acme " not in row))
    new.replace(file)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
async def test_a_revocation_is_read_when_no_descriptor_is_free(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = write_keys(file)
    watched = KeyFile(file)
    watched.start()
    await watched.refresh()
    assert watched.ring.identify(tokens["own"].encode())
    for _ in range(2):  # the descriptor is there again
        revoke(file)
        with no_descriptors():
            await watched.refresh()
        assert watched.problem == ""
        assert watched.ring.identify(tokens["own"].encode()) is None
        tokens = write_keys(file)
        await watched.refresh()
    await watched.aclose()


async def test_a_file_that_cannot_be_used_is_looked_at_more_often(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = write_keys(file)
    naps: list[float] = []
    turn = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        await turn.acquire()

    async def until(number: int) -> None:
        async with asyncio.timeout(30):
            while len(naps) < number:
                await asyncio.sleep(0.001)

    watched = KeyFile(file, every=2.0, sleep=sleep)
    watched.start()
    whole = file.read_text()
    file.write_text("rubbish")
    turn.release()
    await until(2)
    assert watched.problem
    file.write_text(whole)
    revoke(file)
    turn.release()
    await until(3)
    assert watched.problem == ""
    assert watched.ring.identify(tokens["own"].encode()) is None
    assert naps == [2.0, 0.25, 2.0]
    await watched.aclose()


async def test_readyz_says_that_the_key_file_cannot_be_used(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    async with keyed(start, file) as service:
        assert (await service.call("none", "GET", "/readyz")).status_code == 200
        whole = file.read_text()
        assert service.service.services.keys is not None
        for broken in (b"rubbish", b"", b"\xff"):
            file.write_bytes(broken)
            await service.service.services.keys.refresh()
            response = await service.call("none", "GET", "/readyz")
            assert response.status_code == 503
            assert "API keys" in response.json()["detail"]
            assert (await service.call("own", "GET", "/api/v2/jobs")).status_code == 200
        file.write_text(whole)
        await service.service.services.keys.refresh()
        assert (await service.call("none", "GET", "/readyz")).status_code == 200

"""Downloads that continue where they stopped, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from jobcache.client import AsyncJobs, Conflict, Unavailable
from tests.jobcache.client.loopback import Reply, Server, Waits, reply

PATH = "/api/v2/jobs/7/video"
VIDEO = bytes(range(256)) * 1000


@pytest.fixture
def video(tmp_path: Path) -> FileResponse:
    path = tmp_path / "video.mp4"
    path.write_bytes(VIDEO)
    return FileResponse(path, stat_result=path.stat())


def files(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def cut(etag: str | None = '"a"', after: int = 1000, total: int = len(VIDEO)) -> Reply:
    """The beginning of a file, and the end of the connection."""

    async def answer(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield VIDEO[:after]

        tag = {} if etag is None else {"ETag": etag}
        return StreamingResponse(pieces(), headers={"Content-Length": str(total), **tag})

    return answer


def part(start: int, *, end: int = len(VIDEO), etag: str = '"a"') -> Response:
    headers = {"ETag": etag, "Content-Range": f"bytes {start}-{end - 1}/{len(VIDEO)}"}
    return Response(VIDEO[start:end], 206, headers)


def whole(etag: str = '"b"') -> Response:
    return Response(VIDEO, 200, {"ETag": etag})


async def test_a_lost_connection_loses_no_bytes(
    server: Server, waits: Waits, tmp_path: Path
) -> None:
    server.on(PATH, cut(after=1000), part(1000, end=5000), reply(503), part(5000))
    waits.chance = 0.5
    waits.jobs(server.url)
    found = await waits.call("download_video", 7, tmp_path / "new.mp4")
    assert found.read_bytes() == VIDEO
    assert server.headers("Range") == [None, "bytes=1000-", "bytes=5000-", "bytes=5000-"]
    assert server.headers("If-Range") == [None, '"a"', '"a"', '"a"']
    assert set(server.headers("Accept-Encoding")) == {"identity"}
    assert files(tmp_path) == ["new.mp4"]


async def test_a_later_call_goes_on_and_a_file_that_has_changed_is_fetched_anew(
    server: Server, waits: Waits, tmp_path: Path
) -> None:
    waits.chance = 0.5
    waits.jobs(server.url)
    path = tmp_path / "new.mp4"
    for last, ranges in ((part(1000), "bytes=1000-"), (whole(), "bytes=1000-")):
        server.on(PATH, cut(), reply(503))
        with pytest.raises(Unavailable, match="503"):
            await waits.call("download_video", 7, path)
        assert files(tmp_path) == ["new.mp4.part", "new.mp4.part.etag"]
        server.on(PATH, last)
        await waits.call("download_video", 7, path)
        assert path.read_bytes() == VIDEO
        assert server.headers("Range")[-1] == ranges
        assert files(tmp_path) == ["new.mp4"]
        path.unlink()


async def test_without_a_strong_tag_it_begins_again(
    server: Server, waits: Waits, tmp_path: Path
) -> None:
    server.on(PATH, cut(None), cut('W/"a"'), whole())
    waits.chance = 0.5
    waits.jobs(server.url)
    found = await waits.call("download_video", 7, tmp_path / "new.mp4")
    assert found.read_bytes() == VIDEO
    assert server.headers("Range") == [None, None, None]


async def test_what_is_complete_is_not_fetched_again(
    server: Server, waits: Waits, tmp_path: Path
) -> None:
    (tmp_path / "new.mp4.part").write_bytes(VIDEO)
    (tmp_path / "new.mp4.part.etag").write_text('"a"')
    server.on(PATH, reply(416, {"detail": "why"}, content_range=f"bytes */{len(VIDEO)}"))
    waits.chance = 0.5
    waits.jobs(server.url)
    found = await waits.call("download_video", 7, tmp_path / "new.mp4")
    assert found.read_bytes() == VIDEO


@pytest.mark.parametrize(
    "wrong",
    [
        reply(416, content_range="bytes */5"),
        reply(416),
        part(500),
        part(1000, etag='"b"'),
        part(1000, etag='W/"a"'),
        Response(VIDEO[1000:], 206, {"Content-Range": f"bytes 1000-{len(VIDEO) - 1}/{len(VIDEO)}"}),
        Response(VIDEO, 206, {"Content-Range": "bytes soon"}),
        Response(VIDEO, 206, {"Content-Type": "multipart/byteranges"}),
    ],
)
async def test_another_range_than_was_requested_is_not_used(
    server: Server, waits: Waits, tmp_path: Path, wrong: Response
) -> None:
    server.on(PATH, cut(), wrong, whole())
    waits.chance = 0.5
    waits.jobs(server.url)
    found = await waits.call("download_video", 7, tmp_path / "new.mp4")
    assert found.read_bytes() == VIDEO
    assert server.headers("Range") == [None, "bytes=1000-", None]


async def test_a_refusal_leaves_no_file(server: Server, waits: Waits, tmp_path: Path) -> None:
    server.on(PATH, reply(409, {"detail": "no video yet"}))
    waits.chance = 0.5
    waits.jobs(server.url)
    with pytest.raises(Conflict, match="no video yet"):
        await waits.call("download_video", 7, tmp_path / "new.mp4")
    assert files(tmp_path) == []


async def test_a_real_file_server_continues(
    server: Server, waits: Waits, tmp_path: Path, video: FileResponse
) -> None:
    server.on(PATH, cut(video.headers["etag"]), video)
    waits.chance = 0.5
    waits.jobs(server.url)
    found = await waits.call("download_video", 7, tmp_path / "new.mp4")
    assert found.read_bytes() == VIDEO
    assert server.headers("Range") == [None, "bytes=1000-"]


async def test_the_time_is_over(server: Server, waits: Waits, tmp_path: Path) -> None:
    server.on(PATH, reply(503, retry_after="4"))
    waits.chance = 0.5
    waits.jobs(server.url)
    with pytest.raises(Unavailable):
        await waits.call("download_video", 7, tmp_path / "new.mp4", timeout=10)
    assert sum(waits.pauses) <= 10


async def test_a_download_that_is_cancelled_can_go_on(server: Server, tmp_path: Path) -> None:
    async def stall(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield VIDEO[:1000]
            while not await request.is_disconnected():
                await asyncio.sleep(0.01)

        headers = {"Content-Length": str(len(VIDEO)), "ETag": '"a"'}
        return StreamingResponse(pieces(), headers=headers)

    server.on(PATH, stall, part(1000))
    path, begun = tmp_path / "new.mp4", tmp_path / "new.mp4.part"
    async with asyncio.timeout(60), AsyncJobs(server.url) as jobs:
        download = asyncio.create_task(jobs.download_video(7, path))
        while size(begun) < 1000:
            await asyncio.sleep(0.01)
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await download
        await jobs.download_video(7, path)
    assert path.read_bytes() == VIDEO
    assert server.headers("Range") == [None, "bytes=1000-"]

"""One request at a time: each is answered once, in order, whatever stands around its body.

Three protocols are tried: with the fast path, without, and the one for where httptools is missing.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import psutil
import pytest

from app.http.limits import HEADERS
from tests.app.keyed import write_keys
from tests.app.process import Process, serving

LIMITS = {
    "JOBCACHE_RENDERER": "simulated",
    "JOBCACHE_SIMULATED_SECONDS": "600",
    "JOBCACHE_DISCARD_BYTES": str(12 * 1024 * 1024),
}
END = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def without_httptools(directory: Path) -> dict[str, str]:
    """The environment of a service that cannot import httptools."""
    (directory / "httptools.py").write_text("raise ImportError('not here')\n")
    return {"PYTHONPATH": f"{directory}:{Path(__file__).parents[3]}"}


@pytest.fixture(scope="module", params=["fast path", "httptools", "h11"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("exchange")
    other = without_httptools(directory) if request.param == "h11" else {}
    fast = str(int(request.param == "fast path"))
    with serving(directory, **LIMITS, **other, JOBCACHE_FAST_PROTOCOL=fast) as running:
        yield running


@pytest.fixture(scope="module")
def job(service: Process) -> int:
    """A job that no request of these tests may cancel."""
    body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
    job_id: int = service.http.post("/api/v2/jobs", json=body).json()["id"]
    service.until(job_id, "storyboard_ready")
    return job_id


def connected(service: Process) -> closing[socket.socket]:
    return closing(socket.create_connection(("127.0.0.1", service.port), timeout=20))


def rest(connection: socket.socket) -> bytes:
    """All that the service says until it hangs up."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        said += b"<reset>"
    return said


def say(service: Process, *pieces: bytes) -> list[int]:
    """The statuses of all responses to what is sent; the service hangs up behind the last."""
    with connected(service) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.01)  # so that it is read by itself, most often
        said = rest(connection)
    assert b"<reset>" not in said
    return statuses(said)


def statuses(said: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d\d\d) ", said)]


def request(
    method: bytes, path: bytes, body: bytes = b"", headers: bytes = b"", *, chunked: bool = False
) -> bytes:
    if chunked:
        headers += b"Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif body:
        headers += b"Content-Length: %d\r\n" % len(body)
    return b"%b %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n%b" % (method, path, headers, body)


def cancel(job: int) -> bytes:
    return request(b"POST", b"/api/v2/jobs/%d/cancel" % job)


def untouched(service: Process, job: int) -> bool:
    return bool(service.http.get(f"/api/v2/jobs/{job}").json()["status"] == "storyboard_ready")


# --- upgrades ---


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        b"Connection: Upgrade\r\nUpgrade: x\r\n",
        b"Upgrade: x\r\nConnection: keep-alive, upgrade\r\n",
        b"Proxy-Connection: upgrade\r\nUpgrade: TLS/1.0\r\nUpgrade: h2c\r\n",
        H2C,
        WEBSOCKET,
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_the_body_of_an_upgrade_is_not_a_request(
    service: Process, job: int, asked: bytes, *, chunked: bool, apart: bool
) -> None:
    sent = request(b"GET", b"/healthz", cancel(job), asked, chunked=chunked)
    cut = sent.index(b"\r\n\r\n") + 4 if apart else len(sent)
    said = say(service, sent[:cut], sent[cut:] + END)
    assert said == [400 if b"websocket" in asked else 200, 200]
    assert untouched(service, job)


def test_the_body_of_connect_is_not_a_request(service: Process, job: int) -> None:
    sent = request(b"CONNECT", b"localhost:80", cancel(job))
    first, last = say(service, sent + END)
    assert first in {404, 405}
    assert last == 200
    assert untouched(service, job)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_job_is_created_by_a_client_that_offers_http2(service: Process, *, chunked: bool) -> None:
    body = b'{"client_id":"acme","prompt":"A cat sits.","renderer":"external"}'
    headers = H2C + b"Content-Type: application/json\r\n"
    sent = request(b"POST", b"/api/v2/jobs", body, headers, chunked=chunked)
    assert say(service, sent * 3 + END) == [202, 202, 202, 200]
    assert say(service, *(sent[at : at + 40] for at in range(0, len(sent), 40)), END) == [202, 200]


def test_a_poll_with_an_upgrade_is_a_poll(service: Process, job: int) -> None:
    path = b"/api/v2/jobs/%d" % job
    assert say(service, request(b"GET", path, headers=H2C) * 3 + END) == [200, 200, 200, 200]


def test_a_websocket_is_rejected_in_order(service: Process, job: int) -> None:
    path = b"/api/v2/jobs/%d" % job
    socket_, poll = request(b"GET", path, headers=WEBSOCKET), request(b"GET", path)
    storyboard = request(b"GET", path + b"/storyboard")
    assert say(service, storyboard + socket_ + poll + socket_ + END) == [200, 400, 200, 400, 200]


# --- trailers ---


def trailing(method: bytes, path: bytes, trailers: bytes, headers: bytes = b"") -> bytes:
    headers += b"Transfer-Encoding: chunked\r\n"
    return b"%b %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n0\r\n%b\r\n" % (
        method,
        path,
        headers,
        trailers,
    )


@pytest.mark.parametrize("protocol", ["httptools", "h11"])
def test_a_key_in_a_trailer_is_none(tmp_path: Path, protocol: str) -> None:
    tokens = write_keys(tmp_path / "keys")
    other = without_httptools(tmp_path) if protocol == "h11" else {}
    environment = {**LIMITS, **other, "JOBCACHE_API_KEYS": str(tmp_path / "keys")}
    key = b"Authorization: Bearer %b\r\n" % tokens["operator"].encode()
    with serving(tmp_path, **environment) as service:
        for method in (b"GET", b"POST"):
            path = b"/api/v2/jobs/999"
            for headers, expected in ((b"", 401), (key, 404 if method == b"GET" else 405)):
                assert say(service, trailing(method, path, key, headers) + END) == [expected, 200]
                cut = trailing(method, path, b"", headers)
                said = say(service, cut[:-2], key, b"\r\n" + END)
                # A response that comes before the trailers is followed by nothing.
                assert said in ([expected, 200], [expected])


def test_trailers_change_nothing(service: Process, job: int) -> None:
    trailers = (
        b"Host: other\r\nConnection: upgrade\r\n"
        b"Upgrade: websocket\r\nPrefer: wait=30\r\nExpect: 100-continue\r\n"
        b"X-Forwarded-For: 1.2.3.4\r\n"
    )
    path = b"/api/v2/jobs/%d" % job
    assert say(service, trailing(b"GET", path, trailers) * 2 + END) == [200, 200, 200]


@pytest.mark.parametrize(
    "trailers",
    [b"x: y\r\n" * (HEADERS + 1), b"x: y\r\n" * 10_000, b"x: %b\r\n" % (b"y" * 20_000)],
)
def test_trailers_have_the_limits_of_headers(service: Process, job: int, trailers: bytes) -> None:
    path = b"/api/v2/jobs/%d/cancel" % job
    assert say(service, trailing(b"POST", path, trailers)) == [431]
    assert untouched(service, job)


# --- pipelines ---


def test_pipelined_requests_take_little_memory_and_are_all_answered(service: Process) -> None:
    memory = psutil.Process(service.child.pid).memory_info
    before = memory().rss
    one = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        connection.connect(("127.0.0.1", service.port))
        connection.settimeout(0)
        sent = 0
        wanted = (one * 20_000)[: 200 * 1024 // len(one) * len(one)]
        try:
            while sent < len(wanted):
                sent += connection.send(wanted[sent:])
        except BlockingIOError:
            pass
        for _ in range(5):
            assert service.http.get("/healthz").status_code == 200
        assert memory().rss - before < 12 * 1024 * 1024
        # Somebody who reads at last gets them all.
        connection.settimeout(60)
        count, seen = 0, b""
        whole = sent // len(one)
        while count < whole:
            piece = connection.recv(65536)
            assert piece, "the connection was closed"
            seen = seen[-11:] + piece
            count += seen.count(b"HTTP/1.1 404")
    assert count == whole


def test_polls_in_one_read_do_not_outrun_a_client_that_does_not_read(
    service: Process, job: int
) -> None:
    memory = psutil.Process(service.child.pid).memory_info
    before = memory().rss
    poll = request(b"GET", b"/api/v2/jobs/%d" % job)
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        connection.connect(("127.0.0.1", service.port))
        connection.settimeout(0)
        try:
            while True:
                connection.send(poll * 4000)
        except BlockingIOError:
            pass
        for _ in range(5):
            assert service.http.get("/healthz").status_code == 200
        assert memory().rss - before < 12 * 1024 * 1024


# --- one request, one response ---


def begun(method: bytes, path: bytes) -> bytes:
    return request(method, path, chunked=True).removesuffix(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "broken", [b"zz\r\n", b"1\r\nxyz\r\n", b"0\r\n" + b"x: y\r\n" * 10_000, b"1;" + b"x" * 70_000]
)
def test_a_body_that_breaks_behind_its_response_adds_none(service: Process, broken: bytes) -> None:
    with connected(service) as connection:
        connection.sendall(begun(b"POST", b"/nowhere"))
        said = b""
        while b"\r\n\r\n" not in said:
            said += connection.recv(65536)
        with suppress(OSError):
            connection.sendall(broken)
        said += rest(connection)
    assert statuses(said) == [404]


@pytest.mark.parametrize("broken", [b"zz\r\n", b"1\r\nxyz\r\n", b"0\r\n" + b"x: y\r\n" * 10_000])
def test_a_body_that_breaks_is_refused_once(service: Process, job: int, broken: bytes) -> None:
    head = begun(b"POST", b"/api/v2/cache/invalidate").replace(
        b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n"
    )
    assert say(service, head, b"1\r\n{\r\n", broken + cancel(job)) in ([400], [431])
    assert untouched(service, job)


def test_rubbish_behind_a_request_is_refused_behind_its_response(
    service: Process, job: int
) -> None:
    path = b"/api/v2/jobs/%d" % job
    for before in (path, path + b"/storyboard", b"/nowhere"):
        first, second = say(service, request(b"GET", before) + b"\0rubbish" + cancel(job))
        assert (first, second) in {(200, 400), (404, 400)}
    assert untouched(service, job)


# --- how a body is announced ---


def test_zeros_in_front_of_a_length_do_not_break_the_connection(service: Process, job: int) -> None:
    body = cancel(job) + b"x"
    length = b"Content-Length: %b%d\r\n" % (b"0" * 5000, len(body))
    sent = request(b"POST", b"/nowhere", headers=length) + body
    # h11 refuses more than 20 digits, whatever they are.
    assert say(service, sent + END) in ([404, 200], [400])
    assert untouched(service, job)


@pytest.mark.parametrize("digits", [b"9" * 20, b"9" * 5000])
def test_a_length_that_is_no_possible_number_is_refused(service: Process, digits: bytes) -> None:
    length = b"Content-Length: %b\r\n" % digits
    (status,) = say(service, request(b"POST", b"/nowhere", headers=length))
    assert status in {400, 413}


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"chunked, gzip"])
def test_a_transfer_coding_that_is_not_supported_is_refused(
    service: Process, job: int, coding: bytes
) -> None:
    headers = b"Transfer-Encoding: %b\r\n" % coding
    (status,) = say(service, request(b"POST", b"/nowhere", headers=headers) + cancel(job))
    assert status in {400, 501}
    assert untouched(service, job)


# --- what is refused early ---


def test_urllib_sees_why_a_large_body_is_refused(service: Process) -> None:
    for path, expected in (("/api/v2/jobs", 413), ("/nowhere", 413)):
        sent = urllib.request.Request(service.url + path, data=b"x" * 10_000_000)  # noqa: S310
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(sent, timeout=30)  # noqa: S310
        with refused.value:
            assert refused.value.code == expected
            assert json.loads(refused.value.read())["status"] == expected


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_an_end_is_cut_off(
    service: Process, method: bytes, *, chunked: bool
) -> None:
    most = 1024 * 1024 * 1024
    head = b"%b /healthz HTTP/1.1\r\nHost: localhost\r\n" % method
    head += (
        b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % most
    )
    piece = b"%x\r\n%b\r\n" % (65536, b"x" * 65536) if chunked else b"x" * 65536
    sent = 0
    with connected(service) as connection:
        connection.sendall(head)
        try:
            while sent < 100 * 1024 * 1024:
                sent += connection.send(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < 50 * 1024 * 1024


def test_a_held_request_does_not_read_a_body_without_an_end(service: Process, job: int) -> None:
    head = b"GET /api/v2/jobs/%d/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    sent = 0
    with connected(service) as connection:
        connection.sendall(head % (job, 1024 * 1024 * 1024))
        try:
            while sent < 100 * 1024 * 1024:
                sent += connection.send(b"x" * 65536)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < 50 * 1024 * 1024


@pytest.mark.parametrize("path", [b"/nowhere", b"/api/v2/jobs"])
def test_a_client_that_expects_100_gets_the_refusal_instead(service: Process, path: bytes) -> None:
    headers = b"Expect: 100-continue\r\nContent-Length: 10000000\r\n"
    said = say(service, request(b"POST", path, headers=headers))
    assert said == [413]


def test_a_small_body_that_was_read_does_not_end_the_connection(service: Process) -> None:
    sent = request(b"POST", b"/nowhere", b"abc")
    assert say(service, sent + sent + END) == [404, 404, 200]


# --- any of it, in any order, cut anywhere ---


async def test_there_are_as_many_responses_as_requests(service: Process, job: int) -> None:
    path = b"/api/v2/jobs/%d" % job
    inner = cancel(job)
    parts: list[tuple[bytes, int]] = [
        (request(b"GET", path), 200),
        (request(b"GET", path + b"/storyboard"), 200),
        (request(b"GET", b"/nowhere"), 404),
        (request(b"POST", b"/nowhere", inner), 404),
        (request(b"POST", b"/nowhere", inner, chunked=True), 404),
        (request(b"GET", b"/healthz", inner, H2C), 200),
        (request(b"GET", b"/healthz", inner, H2C, chunked=True), 200),
        (request(b"GET", path, headers=H2C), 200),
        (request(b"GET", path, headers=WEBSOCKET), 400),
        (request(b"GET", path, inner, WEBSOCKET, chunked=True), 400),
        (trailing(b"GET", path, b"Upgrade: x\r\nConnection: upgrade\r\n"), 200),
        (request(b"POST", path, b"\r\n\r\n" * 20), 405),
        (request(b"POST", path, b"\r\n\r\n" * 20, chunked=True), 405),
    ]
    random = Random(20_261_128)

    async def one() -> None:
        chosen = random.choices(parts, k=random.randint(1, 9))
        sent = b"".join(part for part, _ in chosen) + END
        cuts = sorted(random.choices(range(1, len(sent)), k=random.randint(0, 6)))
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            writer.write(sent[start:end])
            await writer.drain()
            await asyncio.sleep(random.choice([0, 0, 0.003]))
        async with asyncio.timeout(60):
            said = statuses(await reader.read())
        writer.close()
        expected = [status for _, status in chosen] + [200]
        # A response before the end of a body is the last.
        assert said == expected[: len(said)], (chosen, cuts)
        bodies = [place for place, (part, _) in enumerate(chosen) if not part.endswith(b"\r\n\r\n")]
        bodies += [place for place, (part, _) in enumerate(chosen) if b"chunked" in part]
        bodies += [place for place, (part, _) in enumerate(chosen) if b"Content-Length" in part]
        assert len(said) == len(expected) or len(said) - 1 in bodies, (chosen, cuts)

    for _ in range(15):
        await asyncio.gather(*(one() for _ in range(10)))
    assert untouched(service, job)

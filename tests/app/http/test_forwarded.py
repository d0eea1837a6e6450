"""The client's address behind proxies: believed as far as it can be, and the same on every path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from uvicorn.middleware.proxy_headers import _TrustedHosts

from app import settings
from app.http.forwarded import TrustedProxies
from jobcache import SettingsError
from tests.app.keyed import bearer, write_keys
from tests.app.process import Process, serving
from tests.app.servers import PYTHON, served

LOCAL = ("127.0.0.1", 4711)


def found(trusted: str, client: tuple[str, int] | None, *lines: str) -> str | None:
    headers = [(b"x-forwarded-for", line.encode("latin-1")) for line in lines]
    scope = {"type": "http", "client": client, "headers": headers}
    address = TrustedProxies(trusted).address(scope)
    return None if address is None else str(address)


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ([], "127.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        ([" 203.0.113.9 "], "203.0.113.9"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["2001:db8::1"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (['"[2001:db8::1]:4711"'], "2001:db8::1"),
        (["2001:DB8:0::0001"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["fe80::1%anything"], "fe80::1"),
        (["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        (["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        (["1.1.1.1", "2.2.2.2, 203.0.113.9 , 127.0.0.1"], "203.0.113.9"),
        (["203.0.113.9,,  ,"], "203.0.113.9"),
        (["203.0.113.9, ::1"], "203.0.113.9"),
        # Nothing stands before what cannot be read.
        (["1.1.1.1, unknown"], "127.0.0.1"),
        (["1.1.1.1, unknown, 127.0.0.1"], "127.0.0.1"),
        (["1.1.1.1, 999.1.1.1"], "127.0.0.1"),
        (["unknown"], "127.0.0.1"),
        (["_hidden, 0x7f000001, 127.1, 1"], "127.0.0.1"),
        (["[", "]", "[]", ":", "::1%", "\xff\xfe", "1.1.1.1:x:y"], "127.0.0.1"),
        (["1.1.1.1, " + "127.0.0.1," * 1600], "127.0.0.1"),
    ],
)
def test_the_last_entry_that_no_trusted_proxy_made(lines: list[str], address: str) -> None:
    assert found("127.0.0.1,::1", LOCAL, *lines) == address


def test_nobody_else_is_believed() -> None:
    for peer in ("192.0.2.1", "10.0.0.1", "::2", "2001:db8::5"):
        assert found("127.0.0.1,::1", (peer, 1), "203.0.113.9") == peer


@pytest.mark.parametrize(
    ("trusted", "peer", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3", "203.0.113.9"),
        ("10.0.0.7/8", "10.1.2.3", "203.0.113.9"),
        ("10.0.0.0/8", "11.1.2.3", "11.1.2.3"),
        ("192.0.2.1, 2001:db8::/32", "2001:db8::5", "203.0.113.9"),
        ("10.0.0.0/8", "::ffff:10.1.2.3", "203.0.113.9"),
        ("127.0.0.1", "::ffff:127.0.0.1", "203.0.113.9"),
        ("*", "198.51.100.1", "203.0.113.9"),
        ("none", "127.0.0.1", "127.0.0.1"),
        ("", "127.0.0.1", "127.0.0.1"),
    ],
)
def test_addresses_and_networks_are_trusted(trusted: str, peer: str, address: str) -> None:
    assert found(trusted, (peer, 1), "203.0.113.9") == address


def test_every_hop_is_believed_where_that_is_asked_for() -> None:
    assert found("*", LOCAL, "203.0.113.9, 198.51.100.1") == "203.0.113.9"
    assert found("*", LOCAL, "unknown, 198.51.100.1") == "198.51.100.1"


def test_a_unix_socket_is_this_machine() -> None:
    assert found("none", None, "203.0.113.9") == "203.0.113.9"
    assert found("none", None) is None
    assert found("127.0.0.1,unix:", LOCAL, "203.0.113.9, unix:") == "203.0.113.9"


@pytest.mark.parametrize("trusted", ["127.0.0.1", "*", "127.0.0.1,198.51.100.0/24"])
@pytest.mark.parametrize("line", ["1.1.1.1, 203.0.113.9", "203.0.113.9, 198.51.100.4", "127.0.0.1"])
def test_what_uvicorn_has_done_before_changes_nothing(trusted: str, line: str) -> None:
    client = _TrustedHosts(trusted).get_trusted_client_address(line)
    assert found(trusted, client, line) == found(trusted, LOCAL, line)


@pytest.mark.parametrize("text", ["10.0.0.0/99", "a/b", "127.0.0.1,10.0.0.0/x"])
def test_a_network_that_is_none_stops_the_start(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", text)
    with pytest.raises(SettingsError, match="FORWARDED_ALLOW_IPS"):
        settings.load()


@contextmanager
def under_uvicorn(directory: Path, **environment: str) -> Iterator[Process]:
    """The service under uvicorn's own command, which reads the headers, too."""
    command = (*PYTHON, "uvicorn", "--factory", "app.main:from_environment", "--port", "{port}")
    with served(directory, command, **environment) as process:
        yield process


PATHS = {
    "a list": ("/api/v2/jobs", {}),
    "a poll that the fast path answers": ("/api/v2/jobs/1", {}),
    "a poll that the application answers": ("/api/v2/jobs/1", {"Prefer": "x=y"}),
    "a job that is not there": ("/api/v2/jobs/999", {}),
    "no path of ours": ("/nowhere", {}),
}


@pytest.mark.parametrize(
    ("start", "backend"),
    [
        (serving, "memory"),
        (serving, "redis"),
        (under_uvicorn, "memory"),
        pytest.param(under_uvicorn, "redis", marks=pytest.mark.long),
    ],
)
def test_each_forwarded_address_has_its_own_count_on_every_path(
    tmp_path: Path,
    start: Callable[..., contextmanager[Process]],
    backend: str,
    request: pytest.FixtureRequest,
) -> None:
    environment = {
        "JOBCACHE_RATE_LIMIT": "3/hour",
        "JOBCACHE_RENDERER": "simulated",
        "JOBCACHE_BACKEND": backend,
    }
    if backend == "redis":
        environment["REDIS_URL"] = request.getfixturevalue("redis_url")
    with start(tmp_path, **environment) as service:
        body = {"client_id": "acme", "prompt": "A cat sits."}
        assert service.http.post("/api/v2/jobs", json=body).status_code == 202
        for number, (path, headers) in enumerate(PATHS.values()):

            def status(host: str, path: str = path, headers: dict[str, str] = headers) -> int:
                forwarded = {"X-Forwarded-For": host, **headers}
                return service.http.get(path, headers=forwarded).status_code

            statuses = [status(f"198.51.{number}.{last}") for last in range(6)]
            assert 429 not in statuses, path
            # One client, however it begins the list, and in whatever way its address is written.
            invented = [status(f"{first}.1.1.1, 203.0.{number}.9") for first in range(3)]
            assert 429 not in invented, path
            assert status(f"7.7.7.7,203.0.{number}.9:4711") == 429, path
        # Counted together, whatever the path: three of the five.
        mixed = [
            service.http.get(path, headers={"X-Forwarded-For": "192.0.2.77", **headers}).status_code
            for path, headers in PATHS.values()
        ]
        assert mixed[3:] == [429, 429]
        assert 429 not in mixed[:3]


def test_a_forwarded_address_never_names_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = write_keys(file)
    key_id = tokens["stranger"].split("_")[1]
    environment = {"JOBCACHE_API_KEYS": str(file), "JOBCACHE_RATE_LIMIT": "2/hour"}
    with serving(tmp_path, JOBCACHE_RENDERER="simulated", **environment) as service:
        for spelling in (key_id, f"key:{key_id}", f"address:{key_id}"):
            for path in ("/api/v2/jobs", "/api/v2/jobs/1"):
                service.http.get(path, headers={"X-Forwarded-For": spelling})
        with httpx.Client(base_url=service.url, headers=bearer(tokens["stranger"])) as stranger:
            assert [stranger.get("/api/v2/jobs").status_code for _ in "123"] == [200, 200, 429]


def test_garbage_gives_no_new_count(tmp_path: Path) -> None:
    with serving(tmp_path, JOBCACHE_RENDERER="simulated", JOBCACHE_RATE_LIMIT="5/hour") as service:
        statuses = [
            service.http.get(path, headers={"X-Forwarded-For": f"junk{number}"}).status_code
            for number in range(5)
            for path in ("/api/v2/jobs", "/api/v2/jobs/999")
        ]
        assert statuses == [200, 404, 200, 404, 200, *[429] * 5]

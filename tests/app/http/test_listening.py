"""Listening on addresses and Unix sockets, and the error if that is impossible."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.devservers import free_port
from app.http.listening import CannotListen, listening, shown
from tests.app.process import Child, launch, run, start

IN_USE = 4


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextmanager
def taken(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that somebody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        yield other.getsockname()[1]


def until_listening(child: Child, log: Path) -> None:
    deadline = time.monotonic() + 60
    while "listening on" not in log.read_text():
        assert child.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)  # between bounded attempts


def several(workers: str) -> tuple[str, ...]:
    return ("--workers", workers) if workers != "1" else ()


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("serve", "--workers", "2", "--backend", "null"),
        ("dev", "--backend", "redis", "--database", "postgres"),
    ],
)
def test_a_port_in_use_is_found_before_anything_is_started(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    with taken() as port:
        # A database that cannot be reached would be reported otherwise, with another status.
        nowhere = {"DATABASE_URL": f"postgresql://u@127.0.0.1:{free_port()}/d"}
        environment = {} if arguments[0] == "dev" else nowhere
        status, said = run(tmp_path, *arguments, JOBCACHE_PORT=str(port), **environment)
    assert status == IN_USE, said
    assert said.count("\n") == 1, said
    assert said.startswith(f"Cannot listen on 127.0.0.1:{port}: ")
    assert list(tmp_path.iterdir()) == [], "no database, no videos, no server of `dev`"


def test_two_that_have_only_just_begun_to_listen_do_not_share_a_port() -> None:
    with listening("127.0.0.1", 0, None) as sockets:
        port = sockets[0].getsockname()[1]
        used = pytest.raises(CannotListen, match=f"127.0.0.1:{port}: ")
        with used, listening("127.0.0.1", port, None):
            pass
    with listening("127.0.0.1", port, None):
        pass


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "x" * 300])
def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(CannotListen, match=host[:10]), listening(host, 0, None):
        pass


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(
    ("host", "workers"),
    [
        ("[::1]", "1"),
        ("::1", "1"),
        pytest.param("[::1]", "2", marks=pytest.mark.long),
        pytest.param("::1", "2", marks=pytest.mark.long),
    ],
)
def test_ipv6_with_and_without_brackets(tmp_path: Path, host: str, workers: str) -> None:
    arguments = ("serve", "--host", host, "--backend", "null", *several(workers))
    port = free_port()
    log = tmp_path / "log"
    child = launch(tmp_path, port, log, *arguments)
    try:
        until_listening(child, log)
        with httpx.Client(timeout=30) as http:
            answer = http.get(f"http://[::1]:{port}/readyz")
            assert answer.json() == {"status": "ready"}
    finally:
        child.terminate()
        child.wait(20)
    assert child.returncode == 0
    assert f"listening on http://[::1]:{port}" in log.read_text()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_name_with_several_addresses_is_listened_on_at_each() -> None:
    with listening("localhost", 0, None) as sockets:
        ports = {each.getsockname()[1] for each in sockets}
        assert len(ports) == 1
        assert shown(sockets).count("http://") == len(sockets)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_every_address_of_ipv6_includes_those_of_ipv4() -> None:
    with (
        listening("::", 0, None) as (one,),
        socket.create_connection(("127.0.0.1", one.getsockname()[1]), timeout=30) as caller,
    ):
        assert caller.getpeername()[0] == "127.0.0.1"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket_serves_and_is_removed(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "service.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # as a process leaves it that was killed
    log = tmp_path / "log"
    arguments = ("serve", "--uds", str(path), "--backend", "null", *several(workers))
    everywhere = ("--host", "0.0.0.0")  # noqa: S104
    child = start(tmp_path, log, *arguments, *everywhere, JOBCACHE_RENDERER="simulated")
    try:
        until_listening(child, log)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=30) as http:
            assert http.get("/readyz").json() == {"status": "ready"}
            body = {"client_id": "acme", "prompt": "A cat sits."}
            made = http.post("/api/v2/jobs", json=body)
            assert made.status_code == 202, made.text
            for _ in range(4):
                assert http.get(made.headers["location"]).status_code == 200
            assert path.stat().st_mode & 0o777 == 0o666
            status, said = run(tmp_path, "serve", "--uds", str(path))
            assert (status, said.count("\n")) == (IN_USE, 1)
            assert http.get("/healthz").status_code == 200, "the first still has its socket"
    finally:
        child.terminate()
        child.wait(20)
    assert child.returncode == 0
    assert not path.exists()
    assert f"listening on unix:{path}" in log.read_text()


def test_what_is_no_socket_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    status, said = run(tmp_path, "serve", "--uds", str(path))
    assert status == IN_USE
    assert "not a socket" in said
    assert path.read_text() == "data"
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(CannotListen, match="not a socket"), listening("", 0, link):
        pass
    assert link.is_symlink()


def test_a_socket_that_has_been_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening("", 0, path):
        path.unlink()
        path.write_text("of somebody else")
    assert path.exists()


@pytest.mark.parametrize("name", ["x" * 200, "missing/s"])
def test_a_path_that_cannot_be_a_socket_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CannotListen, match=name[-2:]), listening("", 0, tmp_path / name):
        pass


def answered(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[int, str]) -> None:
    """Have a host name resolved to these addresses."""
    found = [(family, socket.SOCK_STREAM, 0, "", (host, 0)) for family, host in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


ELSEWHERE = (socket.AF_INET, "192.0.2.1")
HERE = (socket.AF_INET, "127.0.0.1")


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address on Linux only")
def test_all_addresses_of_a_name_get_the_same_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, HERE, (socket.AF_INET, "127.0.0.2"))
    with listening("name", 0, None) as sockets:
        names = [each.getsockname() for each in sockets]
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in names}) == 1


def test_addresses_of_a_name_that_are_not_ours_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered(monkeypatch, ELSEWHERE, HERE)
    with listening("name", 0, None) as (one,):
        assert one.getsockname()[0] == "127.0.0.1"
    answered(monkeypatch, ELSEWHERE, ELSEWHERE)
    with pytest.raises(CannotListen, match="name:0"), listening("name", 0, None):
        pass


def test_if_one_address_of_a_name_is_in_use_the_others_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with taken() as port:
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", number))
            for number in (free_port(), port)
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(CannotListen, match="in use"), listening("name", port, None):
            pass
        with socket.socket() as again:
            again.bind(found[0][4])  # free again


def test_a_socket_whose_process_is_too_slow_to_accept_is_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def too_slow(*_: object) -> None:
        raise TimeoutError

    path = tmp_path / "s"
    with listening("", 0, path):
        with monkeypatch.context() as slow:
            slow.setattr(socket.socket, "connect", too_slow)
            with pytest.raises(CannotListen, match="in use"), listening("", 0, path):
                pass
        assert path.exists()


def test_a_socket_that_has_been_removed_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening("", 0, path):
        path.unlink()
    assert not path.exists()

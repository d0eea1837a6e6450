"""What the development memcached promises, asked of a real one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from app.devservers import MemcachedServer, ServerFailed, ServerMissing, free_port
from app.devservers import memcached as memcached_module
from app.devservers import port_server as port_server_module
from app.devservers.programs import memcached_program
from tests.installed import require_program


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    require_program(memcached_program)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the servers make theirs, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_server_lives_as_long_as_its_block(temporary: Path) -> None:
    with MemcachedServer() as server:
        pid = server.pid
        assert server.url == f"memcached://127.0.0.1:{server.port}"
        assert server.order(b"version").startswith(b"VERSION ")
        assert [*temporary.iterdir()] != []
    assert not psutil.pid_exists(pid)
    assert [*temporary.iterdir()] == []
    with pytest.raises(ConnectionRefusedError):
        server.order(b"version")


def test_a_killed_server_starts_again_empty_on_the_same_port() -> None:
    with MemcachedServer() as server:
        port, pid = server.port, server.pid
        assert server.order(b"set k 0 0 1\r\nv") == b"STORED"
        server.kill()
        server.kill()
        with pytest.raises(ServerFailed, match="is not running"):
            server.pause()
        server.start()
        assert (server.port, server.pid != pid) == (port, True)
        assert server.order(b"get k") == b"END"


def test_a_paused_server_answers_once_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memcached_module, "_PATIENCE", 0.05)
    with MemcachedServer() as server:
        server.pause()
        with pytest.raises(TimeoutError):
            server.order(b"version")
        monkeypatch.setattr(memcached_module, "_PATIENCE", 30.0)
        server.resume()
        assert server.order(b"version").startswith(b"VERSION ")


def test_a_port_that_is_lost_to_somebody_else_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with MemcachedServer() as first:
        ports = iter([first.port, free_port()])
        monkeypatch.setattr(port_server_module, "free_port", lambda: next(ports))
        with MemcachedServer() as second:
            assert second.port != first.port
        third = MemcachedServer(port=first.port)
        with pytest.raises(ServerFailed, match="already in use"), third:
            pass


def test_a_missing_memcached_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ServerMissing, match="apt-get install memcached"):
        MemcachedServer()

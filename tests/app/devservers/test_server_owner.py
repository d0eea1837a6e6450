"""A server ends with the program that asked for it, and with nothing less."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from app.devservers import RedisServer, redis_servers

PROGRAMS = redis_servers()
OWNER = """
import sys, time
from pathlib import Path
from app.devservers import PostgresServer, RedisServer

servers = [RedisServer(Path(program)) for program in sys.argv[1:]] + [PostgresServer()]
for server in servers:
    server.start()
print(*(server.pid for server in servers), flush=True)
time.sleep(60)
"""


def ended(process: psutil.Process) -> bool:
    """Say whether a process, which may be nobody's child here, has ended, reaped or not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def test_a_server_outlives_the_thread_that_started_it() -> None:
    server = RedisServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.05)  # for a signal that must not come
        assert psutil.pid_exists(server.pid)
    finally:
        server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_servers_of_a_killed_owner_end() -> None:
    # Not tmp_path, which root's PostgreSQL could not enter.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        Path(place).chmod(0o755)
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, *map(str, PROGRAMS.values())],
            env=os.environ | {"TMPDIR": place},
            stdout=subprocess.PIPE,
            text=True,
        )
        with owner:
            assert owner.stdout is not None
            servers = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
            assert len(servers) == len(PROGRAMS) + 1
            assert not any(ended(server) for server in servers)
            owner.kill()
        deadline = time.monotonic() + 60
        while not all(ended(server) for server in servers) and time.monotonic() < deadline:
            time.sleep(0.02)
        survivors = [server for server in servers if not ended(server)]
        for server in survivors:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()
        assert survivors == []

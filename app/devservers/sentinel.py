"""A private Redis master with replicas and sentinels."""

from __future__ import annotations

import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from app.devservers.port_server import LOOPBACK, free_port
from app.devservers.process import ServerFailed, ServerProcess, Started
from app.devservers.programs import redis_programs
from app.devservers.redis import RedisServer, order

if TYPE_CHECKING:
    from collections.abc import Callable

_SETTLED = 30.0  # seconds
_POLL = 0.01


class SentinelServer:
    """One sentinel.

    Args:
        program: The server program.
        service: Its name for the master.
        master: The server that it watches at first.
        quorum: The number of sentinels that must agree that a master is down.
        down_after: Seconds without a reply after which a server counts as down.
    """

    def __init__(
        self, program: Path, service: str, master: RedisServer, *, quorum: int, down_after: float
    ) -> None:
        self.port = free_port()
        self._program = program.absolute()
        self._own = tempfile.TemporaryDirectory(prefix="devserver-sentinel-")
        self._file = Path(self._own.name) / "sentinel.conf"
        self._process = ServerProcess(
            "the sentinel", when_orphaned=signal.SIGKILL, ready=b"sentinel id is"
        )
        # The sentinel writes its state into this file.
        self._file.write_text(
            f"port {self.port}\n"
            f"bind {LOOPBACK}\n"
            f"dir {self._own.name}\n"
            f"sentinel monitor {service} {LOOPBACK} {master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {service} {round(down_after * 1000)}\n"
            f"sentinel failover-timeout {service} 3000\n",
            "ascii",
        )

    def start(self) -> None:
        """Start it, and return once it takes connections."""
        command = [str(self._program), str(self._file), "--sentinel"]
        self._process.start(command, directory=Path(self._own.name))

    def kill(self) -> None:
        """Kill it, as a crash would. Does nothing if it is not running."""
        self._process.end()

    def pause(self) -> None:
        """Freeze it: its port accepts connections, but it sends no replies."""
        self._process.freeze()

    def resume(self) -> None:
        """Let it continue."""
        self._process.thaw()

    def close(self) -> None:
        """Kill it and remove its directory. May be called again."""
        self.kill()
        self._own.cleanup()


class RedisSentinels(Started):
    """A master, its replicas and some sentinels, as a context manager.

    Args:
        program: The server program; ``None`` takes the first of `redis_servers`.
        service: The sentinels' name for the master.
        replicas: The number of replicas.
        sentinels: The number of sentinels; more than half of them must agree.
        down_after: Seconds without a reply after which a server counts as down.

    Attributes:
        service: The sentinels' name for the master.
        servers: The first master, then the replicas.
        sentinels: The sentinels.

    Raises:
        ServerMissing: If no program is given and none is installed.
    """

    def __init__(
        self,
        program: Path | None = None,
        *,
        service: str = "jobs",
        replicas: int = 1,
        sentinels: int = 3,
        down_after: float = 0.5,
    ) -> None:
        program = redis_programs()[0] if program is None else program
        self.service = service
        self.servers = [
            RedisServer(program, arguments=("--repl-diskless-sync-delay", "0"))
            for _ in range(1 + replicas)
        ]
        self._program = program
        self._sentinels = sentinels
        self._down_after = down_after
        self.sentinels: list[SentinelServer] = []
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        """Return the URL of the sentinels and their service, as jobcache understands it."""
        places = ",".join(f"{LOOPBACK}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{self.service}/0"

    def start(self) -> None:
        """Start all of them, and return once a failover can begin.

        Raises:
            ServerFailed: If one does not start, or they do not find each other in time.
        """
        master, *replicas = [self._stack.enter_context(server) for server in self.servers]
        for replica in replicas:
            order(replica.port, "REPLICAOF", LOOPBACK, master.port)
        for _ in range(self._sentinels):
            sentinel = SentinelServer(
                self._program,
                self.service,
                master,
                quorum=self._sentinels // 2 + 1,
                down_after=self._down_after,
            )
            self._stack.callback(sentinel.close)
            self.sentinels.append(sentinel)
            sentinel.start()
        self.wait_until_well()

    def close(self) -> None:
        """Kill all of them, and remove their directories. May be called again."""
        self._stack.close()

    def master(self) -> RedisServer:
        """Return the master that a reachable sentinel names.

        Raises:
            ServerFailed: If none answers.
        """
        for sentinel in self.sentinels:
            try:
                port = int(self._state(sentinel)["port"])
            except redis.RedisError:
                continue
            return next(server for server in self.servers if server.port == port)
        raise ServerFailed("No sentinel answers.")

    def fail_over(self) -> None:
        """Make the sentinels replace the living master; return once they have agreed."""
        order(self.sentinels[0].port, "SENTINEL", "FAILOVER", self.service)

    def wait_until_well(self) -> None:
        """Return once all sentinels know each other and replicas that are in sync.

        Raises:
            ServerFailed: If a server is not running, or it takes too long.
        """
        self._wait(lambda: all(map(self._is_well, self.sentinels)), "all is well")

    def wait_until_another_is_master(self, than: RedisServer) -> None:
        """Return once all sentinels name another master than `than`.

        Raises:
            ServerFailed: If that takes too long.
        """

        def another() -> bool:
            ports = {int(self._state(sentinel)["port"]) for sentinel in self.sentinels}
            return len(ports) == 1 and than.port not in ports

        self._wait(another, "another server is master")

    def _is_well(self, sentinel: SentinelServer) -> bool:
        state = self._state(sentinel)
        in_step = order(int(state["port"]), "INFO replication").count("state=online")
        return (
            state["flags"] == "master"
            and int(state["num-other-sentinels"]) == len(self.sentinels) - 1
            and int(state["num-slaves"]) == in_step == len(self.servers) - 1
        )

    def _state(self, sentinel: SentinelServer) -> dict[str, str]:
        state: dict[str, str] = order(sentinel.port, "SENTINEL", "MASTER", self.service)
        return state

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _SETTLED
        while not _holds(condition):
            if time.monotonic() > deadline:
                raise ServerFailed(f"It was not so within {_SETTLED:g} s that {what}.")
            time.sleep(_POLL)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except redis.RedisError:
        return False  # a server that is not there, or still loading

"""A private Redis Cluster."""

from __future__ import annotations

import itertools
import random
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis

from app.devservers.port_server import LOOPBACK
from app.devservers.process import ServerFailed, Started
from app.devservers.redis import RedisServer, order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLOTS = 16384

_BUS = 10_000
"""A node talks to the others on a port so far above its own: Redis 6.2 allows no other."""
_LOWEST_PORT = 11_000
_EPHEMERAL = 32_768
"""The first of the ports that Linux gives to outgoing connections; others begin higher."""
_FORMED = 30.0  # seconds
_POLL = 0.01


class RedisCluster(Started):
    """Primaries that share all slots evenly, each with as many replicas, as a context manager.

    Args:
        program: The server program; ``None`` takes the first of `redis_servers`.
        primaries: The number of primaries.
        replicas: The number of replicas of each primary.
        spares: The number of nodes without slots that are no replicas.
        node_timeout: Seconds after which a node that does not answer counts as failed.

    Attributes:
        nodes: The servers in their first roles: primaries, replicas, spares; complete once `start`
            has returned. Each can be killed, paused and started again, and comes back in the role
            that the other nodes give it.

    Raises:
        ServerMissing: If no program is given and none is installed.
    """

    def __init__(
        self,
        program: Path | None = None,
        *,
        primaries: int = 3,
        replicas: int = 0,
        spares: int = 0,
        node_timeout: float = 1.0,
    ) -> None:
        self._program = program
        self._primaries = primaries
        self._replicas = primaries * replicas
        self._arguments = (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(round(node_timeout * 1000))),
            # A node that has lost its last slot must not become a replica.
            *("--cluster-allow-replica-migration", "no"),
            # A replica is promoted even after a long disconnection, and syncs at once.
            *("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"),
        )
        self.nodes = self._nodes(primaries * (1 + replicas) + spares)

    @property
    def url(self) -> str:
        """Return the URL of the nodes, in the form that jobcache understands."""
        places = ",".join(f"{LOOPBACK}:{node.port}" for node in self.nodes)
        return f"redis+cluster://{places}"

    def start(self) -> None:
        """Start the nodes, join them to a cluster, and return once all report that it is healthy.

        Raises:
            ServerFailed: If a node does not start, or they do not come together in time.
        """
        try:
            self._start_nodes()
        except ServerFailed as failure:
            # Between finding a port and binding it, or the one that is for the other nodes,
            # somebody else may have bound it. Twice in a row is no accident.
            if "Address already in use" not in str(failure):
                raise
            self.close()
            self.nodes = self._nodes(len(self.nodes))
            self._start_nodes()
        bounds = [SLOTS * n // self._primaries for n in range(self._primaries + 1)]
        for number, (node, (first, end)) in enumerate(
            zip(self.nodes, itertools.pairwise(bounds), strict=False)
        ):
            self.order(node, "CLUSTER", "ADDSLOTS", *range(first, end))
            self.order(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.order(node, "CLUSTER", "MEET", LOOPBACK, self.nodes[0].port)
        self._wait(self._all_have_met, "its nodes do not meet")
        for number, node in enumerate(self.nodes[self._primaries :][: self._replicas]):
            primary = self.nodes[number % self._primaries]
            self.order(node, "CLUSTER", "REPLICATE", self.id_of(primary))
        self.wait_until_well()

    def close(self) -> None:
        """Kill the nodes and remove their directories. May be called again."""
        for node in self.nodes:
            node.close()

    def wait_until_well(self) -> None:
        """Return once all nodes agree that the cluster is healthy, and all replicas are in sync.

        Raises:
            ServerFailed: If a node is not running, or that takes too long.
        """
        self._wait(
            lambda: (
                all(map(self._is_well, self.nodes)) and len(set(map(self._map, self.nodes))) == 1
            ),
            "it is not well",
        )

    def order(self, node: RedisServer, *words: str | int) -> Any:  # noqa: ANN401 - any reply
        """Return the reply of `node` to a command; raise `redis.RedisError` if it is an error."""
        return order(node.port, *words)

    def id_of(self, node: RedisServer) -> str:
        """Return the id of `node` in the cluster."""
        return str(self.order(node, "CLUSTER", "MYID"))

    def owner(self, slot: int) -> RedisServer:
        """Return the primary that owns `slot`, as reported by the first node that answers.

        Raises:
            ServerFailed: If none does.
        """
        for node in self.nodes:
            try:
                ranges = self.order(node, "CLUSTER", "SLOTS")
            except redis.RedisError:
                continue
            for first, last, (_, port, *_), *_ in ranges:
                if first <= slot <= last:
                    return next(node for node in self.nodes if node.port == port)
        raise ServerFailed(f"No node of the cluster knows who owns slot {slot}.")

    def move_slot(self, slot: int, to: RedisServer) -> Iterator[str]:
        """Move a slot and its keys while clients use them; yield the name of each step after it."""
        source = self.owner(slot)
        self.order(to, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.order(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        yield "announced"
        while keys := self.order(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            self.order(source, "MIGRATE", LOOPBACK, to.port, keys[0], 0, 5000)
            yield "a key moved"
        for node in (to, source):
            self.order(node, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))
        yield "done"

    def _nodes(self, count: int) -> list[RedisServer]:
        return [
            RedisServer(self._program, port=port, arguments=self._arguments)
            for port in _free_ports(count)
        ]

    def _start_nodes(self) -> None:
        for node in self.nodes:
            node.start()

    def _all_have_met(self) -> bool:
        known = f"cluster_known_nodes:{len(self.nodes)}\r"
        return all(known in str(self.order(node, "CLUSTER", "INFO")) for node in self.nodes)

    def _is_well(self, node: RedisServer) -> bool:
        replication = str(self.order(node, "INFO replication"))
        in_step = "role:master" in replication or "master_link_status:up" in replication
        return in_step and "cluster_state:ok" in str(self.order(node, "CLUSTER", "INFO"))

    def _map(self, node: RedisServer) -> frozenset[tuple[int, int, int]]:
        """Return the ranges of slots and the ports of their primaries, as `node` reports them."""
        ranges = self.order(node, "CLUSTER", "SLOTS")
        return frozenset((first, last, port) for first, last, (_, port, *_), *_ in ranges)

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + _FORMED
        while not _holds(condition):
            if time.monotonic() > deadline:
                raise ServerFailed(f"The cluster was not made within {_FORMED:g} s: {complaint}.")
            time.sleep(_POLL)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except redis.RedisError:
        return False  # a node that is not there, or still loading


def _free_ports(count: int) -> list[int]:
    """Return ports whose bus ports are free too, below the range of outgoing connections.

    A cluster chooses its ports some time before its last node listens, and its nodes connect to
    each other meanwhile.
    """
    ports: list[int] = []
    chosen = random.SystemRandom()  # tests that run at the same time may have the same seed
    for port in chosen.sample(range(_LOWEST_PORT, _EPHEMERAL - _BUS), _EPHEMERAL // 8):
        if len(ports) == count:
            break
        with suppress(OSError):
            for each in (port, port + _BUS):
                with socket.socket() as listener:
                    listener.bind((LOOPBACK, each))
            ports.append(port)
    return ports

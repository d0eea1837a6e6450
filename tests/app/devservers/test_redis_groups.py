"""What the development cluster and sentinels promise, beyond what the library's tests use."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import psutil
import pytest

from app.devservers import ServerFailed, redis_servers
from app.devservers import cluster as cluster_module
from app.devservers import sentinel as sentinel_module
from app.devservers.cluster import SLOTS, RedisCluster
from app.devservers.redis import order
from app.devservers.sentinel import RedisSentinels

OLDEST = list(redis_servers().values())[-1]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory in which the servers make theirs, empty."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_cluster_covers_all_slots_and_leaves_nothing_behind(temporary: Path) -> None:
    """It starts on other ports if one of its ports has been taken meanwhile."""
    cluster = RedisCluster(OLDEST)
    bus = cluster.nodes[-1].port + 10_000
    with socket.create_server(("127.0.0.1", bus)), cluster:
        assert bus - 10_000 not in {node.port for node in cluster.nodes}
        pids = [node.pid for node in cluster.nodes]
        assert [cluster.owner(slot) for slot in (0, SLOTS // 2, SLOTS - 1)] == cluster.nodes
        assert all(
            "cluster_slots_ok:16384" in order(n.port, "CLUSTER", "INFO") for n in cluster.nodes
        )
        assert cluster.url == "redis+cluster://" + ",".join(
            f"127.0.0.1:{node.port}" for node in cluster.nodes
        )
        for step in cluster.move_slot(0, cluster.nodes[2]):
            assert (step == "done") == (cluster.owner(0) is cluster.nodes[2])
    assert not any(map(psutil.pid_exists, pids))
    assert list(temporary.iterdir()) == []
    with pytest.raises(ServerFailed, match="knows who owns slot 0"):
        cluster.owner(0)


def test_a_cluster_that_does_not_come_together_is_a_failure_and_leaves_nothing_behind(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_FORMED", 0.0)
    with pytest.raises(ServerFailed, match="its nodes do not meet"), RedisCluster(OLDEST):
        pass
    assert list(temporary.iterdir()) == []


def test_sentinels_that_do_not_settle_are_a_failure_and_leave_nothing_behind(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentinel_module, "_SETTLED", 0.0)
    sentinels = RedisSentinels(OLDEST)
    with pytest.raises(ServerFailed, match="that all is well"), sentinels:
        pass
    with pytest.raises(ServerFailed, match="No sentinel answers"):
        sentinels.master()
    assert list(temporary.iterdir()) == []

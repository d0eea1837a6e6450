"""The queue of messages on a real broker, and without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from app.celery_app import CeleryQueue, make_celery_app
from app.devservers import free_port


@pytest.fixture
def queue(redis_url: str) -> Iterator[CeleryQueue]:
    queue = CeleryQueue(make_celery_app(redis_url, "one"))
    yield queue
    queue.close()


def test_messages_are_counted_until_a_worker_takes_them(queue: CeleryQueue, redis_url: str) -> None:
    assert queue.count() == 0
    queue.send(3)
    assert queue.count() == 3
    other = CeleryQueue(make_celery_app(redis_url, "another"))
    assert other.count() == 0, "services with other prefixes do not share messages"
    other.close()


def test_a_broker_that_is_away_is_an_error_of_the_system() -> None:
    queue = CeleryQueue(make_celery_app(f"redis://127.0.0.1:{free_port()}/0", "one"))
    with pytest.raises(OSError, match="refused"):
        queue.send(1)
    with pytest.raises(OSError, match="refused"):
        queue.count()
    queue.close()

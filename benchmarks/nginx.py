"""nginx in front of the service, with a cache of one second: the usual remedy.

Its responses are up to a second old, and it is configured to cache private responses.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import free_port
from benchmarks.asgi import wait_for_listener
from benchmarks.process import Process
from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Generator

_ON_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_CONFIGURATION = """
worker_processes 1;
daemon off;
{user}
pid {place}/pid;
error_log stderr warn;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {place}/body;
  proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi;
  uwsgi_temp_path {place}/uwsgi;
  scgi_temp_path {place}/scgi;
  proxy_cache_path {place}/cache keys_zone=micro:4m;
  keepalive_requests 100000000;
  upstream service {{ server {host}:{service}; keepalive 16; }}
  server {{
    listen {host}:{port};
    location / {{
      proxy_pass http://service;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Connection "";
      proxy_cache micro;
      proxy_cache_valid 200 1s;
      proxy_cache_lock on;
      proxy_cache_use_stale updating;
      proxy_cache_background_update on;
      proxy_ignore_headers Cache-Control Vary;
    }}
  }}
}}
"""


def nginx_program() -> str | None:
    """Return the path of nginx, or None if it is not installed."""
    return shutil.which("nginx", path=_ON_PATH)


@contextmanager
def micro_cache(program: str, service: int) -> Generator[int, None, None]:
    """Run nginx in front of a service's port; yield the port of nginx."""
    with tempfile.TemporaryDirectory(prefix="jobcache-nginx-") as place:
        port = free_port()
        file = Path(place) / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        file.write_text(
            _CONFIGURATION.format(place=place, host=HOST, port=port, service=service, user=user)
        )
        command = [program, "-e", "stderr", "-p", place, "-c", str(file)]
        with Process(command, os.environ) as process:
            wait_for_listener(port, process)
            yield port

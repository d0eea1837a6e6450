"""Where Redis is, from a URL: one server, a master that sentinels name, or a cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import parse_url

from jobcache.settings import REDIS_URL

Kind = Literal["", "sentinel", "cluster"]

_POSITIVE = frozenset({"max_connections", "port"})
_ABSURD = 2**31
_PORTS = {"sentinel": 26379, "cluster": 6379}


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """As people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class RedisURL:
    """What a URL says.

    Attributes:
        kind: "sentinel", "cluster", or empty for one server.
        hosts: the sentinels, or some of the cluster's nodes.
        service: what the sentinels call the master.
        options: redis-py's, of a connection and its pool; of one server with its host and port.
        sentinel_options: those of a connection to a sentinel, where they differ.
    """

    kind: Kind
    hosts: tuple[Address, ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def read_url(url: str) -> RedisURL:
    """What `url` says; see `RedisBackend` for what it may.

    Raises:
        ValueError: it cannot be read. May quote the URL, password and all.
    """
    if not REDIS_URL.fullmatch(url):
        raise ValueError("it has not the form of a Redis URL")
    url = re.sub("^valkey(s?)(?=[+:])", r"redis\1", url)  # the same protocol
    location = _parse(url)
    for name, value in {**location.options, **location.sentinel_options}.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            positive = name in _POSITIVE or name.endswith("timeout")
            if not 0 <= value < _ABSURD or (positive and value == 0):
                raise ValueError(f"{name}={value} cannot be meant")
    return location


def _parse(url: str) -> RedisURL:
    scheme, separator, rest = url.partition("://")
    tls, _, word = scheme.partition("+")
    if word not in _PORTS or tls not in {"redis", "rediss"}:
        if tls != "unix" and urlsplit(url).port == 0:
            raise ValueError("a server has no port 0")  # redis-py would take 6379
        return RedisURL("", (), "", dict(parse_url(url)), {})
    kind: Kind = "sentinel" if word == "sentinel" else "cluster"
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]
    path, question, query = rest[len(netloc) :].partition("?")
    credentials, at, hosts = netloc.rpartition("@")
    service, database = "", path.strip("/")
    if kind == "sentinel":
        service, _, database = database.partition("/")
    # The rest is redis-py's to read.
    options: dict[str, Any] = dict(
        parse_url(f"{tls}{separator}{credentials}{at}host/{database}{question}{query}")
    )
    del options["host"]
    sentinel_options = {
        name: options.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in options
    }
    addresses = tuple(_address(host, _PORTS[kind]) for host in hosts.split(","))
    return RedisURL(kind, addresses, unquote(service), options, sentinel_options)


def _address(text: str, default_port: int) -> Address:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError(f"{text!r} is no host")
    return Address(parts.hostname, default_port if parts.port is None else parts.port)

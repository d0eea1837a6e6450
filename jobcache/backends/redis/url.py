"""Parse the URL of Redis: one server, a master that sentinels name, or a cluster."""

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
        """Return `host:port`; an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class RedisURL:
    """A parsed URL.

    Attributes:
        kind: "sentinel", "cluster", or empty for one server.
        hosts: the sentinels, or some of the cluster's nodes; empty for one server.
        service: the name that the sentinels have for the master.
        options: redis-py's options for connections and pools. For one server they include its host
            and port.
        sentinel_options: options for connections to sentinels that override `options`.
    """

    kind: Kind
    hosts: tuple[Address, ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def read_url(url: str) -> RedisURL:
    """Parse a URL, whose forms `RedisBackend` documents.

    Raises:
        ValueError: the URL is wrong. The message may contain the URL with its password.
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
    # redis-py parses the rest.
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

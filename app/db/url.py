"""PostgreSQL URLs as libpq, and so most providers, write them, for SQLAlchemy with asyncpg."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlencode

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL

SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SURE_TLS: Final = ("require", "verify-ca", "verify-full")
_WRITABLE: Final = ("any", "primary", "read-write")
_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
# asyncpg reads these out of a URL only, and has no arguments for them.
_TLS: Final = (
    *("sslmode", *_FILES, "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)
_STARTUP: Final = ("application_name", "options")
_ARGUMENTS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "user": ("user", str),
    "password": ("password", str),
    "passfile": ("passfile", str),
    "dbname": ("database", str),
    "database": ("database", str),
    "krbsrvname": ("krbsrvname", str),
    "gsslib": ("gsslib", str),
    "target_session_attrs": ("target_session_attrs", str),
    # SQLAlchemy's and asyncpg's own
    "timeout": ("timeout", float),
    "command_timeout": ("command_timeout", float),
    "statement_cache_size": ("statement_cache_size", int),
    "prepared_statement_cache_size": ("prepared_statement_cache_size", int),
}
_CHECKED: Final[dict[str, tuple[str, ...]]] = {
    "sslmode": SSL_MODES,
    "target_session_attrs": _WRITABLE,
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer"),
    "pgbouncer": ("true", "false"),
}
KNOWN: Final = sorted(
    {"host", "port", "ssl", "connect_timeout", "fallback_application_name", "client_encoding"}
    | {*_TLS, *_STARTUP, *_ARGUMENTS, *_CHECKED}
)


@dataclass(frozen=True, slots=True)
class PostgresAddress:
    """How to connect.

    Attributes:
        url: for SQLAlchemy, without the parameters that the driver would not understand.
        arguments: further arguments of `asyncpg.connect`.
        pooled: True if the URL says that a pooler stands before the server.
        warning: what of the URL cannot be honoured, for the log; empty as a rule.
    """

    url: URL
    arguments: dict[str, Any] = field(repr=False)
    pooled: bool
    warning: str


def with_one_host(text: str) -> str:
    """Rewrite ``//host1:port1,host2:port2/`` as parameters; return any other URL unchanged."""
    found = re.fullmatch(
        r"(postgres\w*(?:\+\w+)?://)([^/?#]*@)?([^/?#@]*,[^/?#@]*)(/[^?#]*)?(?:\?(.*))?", text
    )
    if found is None:
        return text
    scheme, user, hosts, path, query = (part or "" for part in found.groups())
    split = [_host_and_port(each) for each in hosts.split(",")]
    listed = f"host={quote(','.join(unquote(host) for host, _ in split), safe=',')}"
    listed += f"&port={','.join(port or '5432' for _, port in split)}"
    return f"{scheme}{user}{path or '/'}?{listed}{'&' if query else ''}{query}"


def read_postgres_url(url: URL) -> PostgresAddress:
    """Sort the parameters of a URL into those of SQLAlchemy, asyncpg and the server.

    Raises:
        ValueError: a parameter is unknown, given twice, or has a value that cannot be used. The
            message names it, and no value that may be secret.
    """
    given = _single_values(url)
    for name, allowed in _CHECKED.items():
        if name in given and given[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}")
    if given.get("client_encoding", "utf8").lower().replace("-", "") not in {"utf8", "auto"}:
        raise ValueError("client_encoding must be utf8")
    arguments = _arguments(given)
    tls = _tls(given)
    if tls:
        arguments["dsn"] = f"postgresql://?{urlencode(tls)}"
    query: dict[str, str] = {}
    hosts = given.get("host", "").split(",")
    if len(hosts) > 1:
        arguments["host"], arguments["port"] = _hosts(hosts, given.get("port", ""))
    else:
        query = {name: given[name] for name in ("host", "port") if name in given}
    return PostgresAddress(
        url.set(query=query),
        arguments,
        pooled=given.get("pgbouncer") == "true",
        warning=_channel_binding(given.get("channel_binding"), tls.get("sslmode", "prefer")),
    )


def _arguments(given: dict[str, str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name, (argument, kind) in _ARGUMENTS.items():
        if name in given:
            arguments[argument] = _number(name, given[name], kind)
    if "connect_timeout" in given:
        seconds = _number("connect_timeout", given["connect_timeout"], int)
        arguments["timeout"] = seconds if seconds > 0 else None
    startup = {name: given[name] for name in _STARTUP if name in given}
    if "fallback_application_name" in given:
        startup.setdefault("application_name", given["fallback_application_name"])
    if startup:
        arguments["server_settings"] = startup
    return arguments


def _single_values(url: URL) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in url.query.items():
        if name not in KNOWN:
            raise ValueError(f"unknown parameter {name!r}; known are {', '.join(KNOWN)}")
        if isinstance(value, str):
            given[name] = value
        elif name in {"host", "port"}:
            given[name] = ",".join(value)
        else:
            raise ValueError(f"{name} is given twice")
    if "ssl" in given:  # asyncpg's name for it
        given.setdefault("sslmode", given.pop("ssl"))
    return given


def _tls(given: dict[str, str]) -> dict[str, str]:
    tls: dict[str, str] = {name: given[name] for name in _TLS if name in given}
    if tls.get("sslrootcert") == "system":
        bundle = ssl.get_default_verify_paths().cafile
        if bundle is None:
            raise ValueError("sslrootcert=system: this system has no file of root certificates")
        if tls.setdefault("sslmode", "verify-full") != "verify-full":
            raise ValueError("sslrootcert=system needs sslmode=verify-full")
        tls["sslrootcert"] = bundle
    for name in _FILES:
        if name in tls and not Path(tls[name]).is_file():
            raise ValueError(f"{name}: there is no file {tls[name]}")
    return tls


def _channel_binding(wanted: str | None, ssl_mode: str) -> str:
    if wanted != "require":
        return ""
    if ssl_mode not in _SURE_TLS:
        raise ValueError(f"channel_binding=require needs sslmode={' or '.join(_SURE_TLS)}")
    return (
        "the PostgreSQL driver has no channel binding: channel_binding=require is not enforced."
        " sslmode=verify-full protects as well against a server that stands in between."
    )


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:  # noqa: ANN401 - as `kind`
    try:
        value = kind(text)
    except ValueError as error:
        raise ValueError(f"{name} must be a number") from error
    if kind is not str and value < 0:
        raise ValueError(f"{name} must be a number, 0 or more")
    return value


def _hosts(hosts: list[str], ports: str) -> tuple[list[str], list[int]]:
    split = [_host_and_port(each) for each in hosts]
    listed = ports.split(",") if ports else [port or "5432" for _, port in split]
    if len(listed) == 1:
        listed *= len(split)
    if len(listed) != len(split) or not all(host for host, _ in split):
        raise ValueError("host and port must list as many hosts as ports")
    return [host for host, _ in split], [int(_number("port", each, int)) for each in listed]


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("/"):
        return text, ""
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]*))(?::(\d+))?", text)
    if found is None:
        return text, ""  # an IPv6 address without brackets
    return found[1] or found[2] or "", found[3] or ""


def scheme_and_host(database_url: str) -> str:
    """Return the parts of a database URL that may be logged: its options may hold a password."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - takes half a second to import

    url = make_url(database_url)
    if url.get_backend_name() == "sqlite" and url.database is not None:
        return f"{url.drivername}:///{url.database}"
    return f"{url.drivername}://{(url.host or '').rpartition('@')[2]}"

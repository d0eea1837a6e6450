"""Parameters of a PostgreSQL URL have the effect that they have in libpq."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
import trustme
from sqlalchemy import text
from sqlalchemy.engine import make_url

from app.db.database import Database
from app.db.errors import DatabaseUnavailable
from app.db.url import SSL_MODES, read_postgres_url, with_one_host
from app.devservers import PgBouncerServer, PostgresServer, free_port
from app.devservers.programs import pgbouncer_program
from tests.app.db.databases import closed
from tests.installed import require_program


@asynccontextmanager
async def using(url: str) -> AsyncIterator[Database]:
    database = Database(with_one_host(url))
    try:
        yield database
    finally:
        await closed(database)


async def show(url: str, name: str) -> str:
    async with using(url) as database:
        ((value,),) = await database.read(text(f"SELECT current_setting('{name}')"), "test")
        return str(value)


def read(query: str) -> dict[str, Any]:
    return read_postgres_url(make_url(f"postgresql+asyncpg://h/d?{query}")).arguments


async def test_parameters_of_the_session_reach_the_server(postgres_url: str) -> None:
    assert await show(f"{postgres_url}&application_name=my%20app", "application_name") == "my app"
    assert await show(f"{postgres_url}&fallback_application_name=x", "application_name") == "x"
    both = f"{postgres_url}&fallback_application_name=x&application_name=y"
    assert await show(both, "application_name") == "y"
    options = "options=-c%20statement_timeout%3D7s%20-c%20work_mem%3D5MB"
    assert await show(f"{postgres_url}&{options}", "statement_timeout") == "7s"
    assert await show(f"{postgres_url}&{options}", "work_mem") == "5MB"
    assert await show(f"{postgres_url}&connect_timeout=3", "application_name") == ""


async def test_a_url_as_providers_give_it_is_taken(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{postgres_url}&sslmode=require&channel_binding=require&connect_timeout=10"
    with caplog.at_level(logging.WARNING, "app"):
        assert await show(f"{url}&application_name=jobs", "application_name") == "jobs"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "app"]
    assert "channel_binding=require is not enforced" in line


def test_connect_timeout_is_in_seconds_and_0_waits_as_long_as_it_takes() -> None:
    assert read("connect_timeout=7")["timeout"] == 7
    assert read("connect_timeout=0")["timeout"] is None


async def test_a_host_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with using(f"postgresql+asyncpg://u@127.0.0.1:{port}/d?timeout=0.05") as database:
            with pytest.raises(DatabaseUnavailable, match="Timeout"):
                await database.read(text("SELECT 1"), "test")


@pytest.mark.parametrize("hosts", ["netloc", "parameters"])
async def test_of_several_hosts_the_one_that_takes_writes_is_used(
    postgres: PostgresServer, postgres_url: str, hosts: str
) -> None:
    with PostgresServer() as second:
        second.create_database("tests")
        reader = await asyncpg.connect(second.url().replace("+asyncpg", ""))
        await reader.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await reader.execute("SELECT pg_reload_conf()")
        await reader.close()
        first, other = (each.socket_directory for each in (second, postgres))
        if hosts == "netloc":
            first, other = (str(each).replace("/", "%2F") for each in (first, other))
            url = f"postgresql+asyncpg://postgres@{first}:5432,{other}:5432/tests?"
        else:
            url = f"postgresql+asyncpg://postgres@/tests?host={first},{other}&port=5432,5432&"
        async with using(f"{url}target_session_attrs=read-write") as database:
            for _ in range(3):
                assert await database.write(text("SELECT 1")) == [(1,)]


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://u:p@a:1,b:2/d", ["a", "b"], [1, 2]),
        ("postgresql://u:p@a,b/d?sslmode=disable", ["a", "b"], [5432, 5432]),
        ("postgresql://[::1]:1,[::2]/d", ["::1", "::2"], [1, 5432]),
        ("postgresql:///d?host=a,b&port=7", ["a", "b"], [7, 7]),
        ("postgresql:///d?host=a:1&host=b:2", ["a", "b"], [1, 2]),
    ],
)
def test_hosts_and_ports_are_paired(url: str, hosts: list[str], ports: list[int]) -> None:
    address = read_postgres_url(make_url(with_one_host(url)))
    assert (address.arguments["host"], address.arguments["port"]) == (hosts, ports)
    assert address.url.database == "d"


@pytest.mark.parametrize("query", ["host=a,b&port=1,2,3", "host=a,&port=1,2", "host=a,b&port=x,y"])
def test_hosts_that_cannot_be_paired_are_refused(query: str) -> None:
    with pytest.raises(ValueError, match=r"host|port"):
        read(query)


# --- TLS, which the development server of PostgreSQL has not: PgBouncer has ---


@pytest.fixture(scope="module")
def certificate() -> Iterator[Path]:
    """Make a self-signed certificate for `localhost`."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    with TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # PgBouncer is another user's process
        issued.private_key_pem.write_to_path(str(directory / "key.pem"))
        issued.cert_chain_pems[0].write_to_path(str(directory / "server.pem"))
        authority.cert_pem.write_to_path(str(directory / "cert.pem"))
        (directory / "key.pem").chmod(0o644)
        yield directory / "cert.pem"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def tcp(
    request: pytest.FixtureRequest, postgres: PostgresServer, certificate: Path
) -> Iterator[tuple[bool, str]]:
    require_program(pgbouncer_program)
    settings = {"listen_addr": "127.0.0.1", "listen_port": str(free_port())}
    if request.param:
        settings |= {
            "client_tls_sslmode": "require",
            "client_tls_cert_file": str(certificate.with_name("server.pem")),
            "client_tls_key_file": str(certificate.with_name("key.pem")),
        }
    with PgBouncerServer(postgres, settings=settings):
        port = settings["listen_port"]
        yield request.param, f"postgresql+asyncpg://postgres@localhost:{port}/postgres"


@pytest.mark.parametrize("mode", SSL_MODES)
async def test_sslmode_decides_whether_tls_is_used_and_checked(
    tcp: tuple[bool, str], certificate: Path, mode: str
) -> None:
    tls, url = tcp
    works = mode != "disable" if tls else mode in {"disable", "allow", "prefer"}
    checked = mode.startswith("verify")
    async with using(f"{url}?sslmode={mode}&sslrootcert={certificate}") as database:
        if works:
            assert await database.read(text("SELECT 1"), "test") == [(1,)]
        else:
            with pytest.raises(DatabaseUnavailable):
                await database.read(text("SELECT 1"), "test")
    if tls and checked:
        by_address = url.replace("localhost", "127.0.0.1")
        async with using(f"{by_address}?sslmode={mode}&sslrootcert={certificate}") as database:
            if mode == "verify-ca":
                assert await database.read(text("SELECT 1"), "test") == [(1,)]
            else:  # the certificate names another host
                with pytest.raises(DatabaseUnavailable):
                    await database.read(text("SELECT 1"), "test")


async def test_a_certificate_of_an_unknown_authority_is_refused(tcp: tuple[bool, str]) -> None:
    tls, url = tcp
    if tls:
        async with using(f"{url}?sslmode=verify-full&sslrootcert=system") as database:
            with pytest.raises(DatabaseUnavailable, match="certificate"):
                await database.read(text("SELECT 1"), "test")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("client_encoding=latin1", "client_encoding must be utf8"),
        ("connect_timeout=-1", "connect_timeout must be a number, 0 or more"),
        ("connect_timeout=soon", "connect_timeout must be a number"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system needs sslmode=verify-full"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(query: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(query)


def test_sslmode_may_have_the_name_that_asyncpg_gives_it() -> None:
    assert read("ssl=require") == read("sslmode=require")


def test_the_roots_of_a_system_that_has_none_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ssl.get_default_verify_paths()._replace(cafile=None)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    with pytest.raises(ValueError, match="no file of root certificates"):
        read("sslrootcert=system")

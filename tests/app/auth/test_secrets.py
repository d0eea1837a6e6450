"""Keys and passwords are in no log, error, repr or statistic."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import container
from app import settings as service_settings
from app.auth.middleware import Authenticator, bearer_token
from app.devservers import RedisServer
from tests.app.keyed import Keyed, bearer, keyed, write_keys
from tests.app.process import serving
from tests.app.running import Start

PASSWORD = "s3cret-passw0rd"  # noqa: S105 - of a server of the test's own
PATHS = [
    ("GET", "/api/v2/jobs"),
    ("GET", "/api/v2/jobs/1"),
    ("GET", "/api/v2/jobs/x"),
    ("GET", "/nowhere"),
    ("PUT", "/api/v2/jobs"),
    ("POST", "/api/v2/jobs"),
    ("POST", "/api/v2/jobs/1/progress"),
    ("GET", "/api/v2/cache/stats"),
    ("GET", "/metrics"),
    ("POST", "/api/v2/cache/invalidate"),
    ("GET", "/openapi.json"),
]


@pytest.fixture(scope="module")
def guarded_redis() -> Iterator[str]:
    """A Redis that asks for a password; its URL, which has it."""
    with RedisServer(arguments=["--requirepass", PASSWORD]) as server:
        yield server.url.replace("redis://", f"redis://:{PASSWORD}@", 1)


def parts_of(secret: str) -> list[str]:
    """The secret, and what would give half of it away."""
    return [secret, secret[-43:], secret[-43:][:20], secret[-20:]]


async def everything_said(access: Keyed, caplog: pytest.LogCaptureFixture) -> str:
    said = []
    for caller in access.callers:
        for method, path in PATHS:
            answer = await access.call(caller, method, path, content=b"{")
            said += [answer.text, repr(answer.headers)]
    services = access.service.services
    ring = services.keys.ring if services.keys is not None else None
    for headers in access.callers.values():
        token = bearer_token([(b"authorization", headers["Authorization"].encode())])
        said.append(repr(Authenticator(services.keys, None).identify(token)))
    settings = access.service.settings
    said += [repr(settings), str(settings), repr(settings.cache), str(await access.service.stats())]
    texts = (services, ring, *vars(services).values(), services.cache.backend)
    said += [repr(part) for part in texts]
    said += [record.getMessage() + str(record.__dict__) for record in caplog.records]
    return "\n".join([*said, caplog.text])


async def test_no_key_is_ever_repeated(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with keyed(start, tmp_path / "keys", JOBCACHE_RATE_LIMIT="25/hour") as access:
        access.callers["misplaced"] = {"Authorization": access.callers["own"]["Authorization"][7:]}
        secrets = {h["Authorization"].removeprefix("Bearer ") for h in access.callers.values()}
        said = await everything_said(access, caplog)
        (tmp_path / "keys").write_text("\n".join(secrets))
        assert access.service.services.keys is not None
        await access.service.services.keys.refresh()
        said += caplog.text
    assert "the keys stay as they were" in said
    assert '"status":401' in said
    assert '"status":403' in said
    assert '"status":404' in said
    assert '"status":429' in said
    for secret in secrets - {"", "x"}:
        for part in parts_of(secret):
            assert part not in said


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
async def test_no_password_is_ever_repeated(
    start: Start,
    tmp_path: Path,
    guarded_redis: str,
    caplog: pytest.LogCaptureFixture,
    *,
    right: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    url = guarded_redis if right else guarded_redis.replace(PASSWORD, f"{PASSWORD}-not")
    environment = {"JOBCACHE_BACKEND": "redis", "REDIS_URL": url}
    async with keyed(start, tmp_path / "keys", **environment) as access:
        stats = (await access.service.stats())["statistics"]
        assert stats["redis_available"] is right
        assert PASSWORD not in await everything_said(access, caplog)


def test_a_password_of_the_database_is_in_no_repr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBCACHE_VAR_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:{PASSWORD}@127.0.0.1:1/d")
    chosen = service_settings.load()
    assert PASSWORD in chosen.database_url
    services = container.build(chosen)
    for thing in (chosen, services, *vars(services).values(), *vars(services.database).values()):
        assert PASSWORD not in repr(thing) + str(thing)


@pytest.mark.parametrize("chosen", ["text", "json"])
def test_a_service_as_a_process_logs_no_secret(
    tmp_path: Path, guarded_redis: str, chosen: str
) -> None:
    tokens = write_keys(tmp_path / "keys")
    environment = {
        "JOBCACHE_API_KEYS": str(tmp_path / "keys"),
        "JOBCACHE_BACKEND": "redis",
        # Other tests have another database, and the same server.
        "JOBCACHE_PREFIX": f"process-{chosen}:",
        "JOBCACHE_LOG_LEVEL": "debug",
        "JOBCACHE_LOG_FORMAT": chosen,
        "JOBCACHE_ACCESS_LOG": "1",
    }
    with serving(tmp_path, REDIS_URL=guarded_redis, **environment) as service:
        for token in [*tokens.values(), tokens["own"][:-1], "x" * 20_000]:
            for path in ("/api/v2/jobs", f"/api/v2/jobs?key={token}", f"/api/v2/jobs/{token}"):
                service.http.get(path, headers=bearer(token))
        service.stop()
        log = service.log.read_text()
    assert "GET /api/v2/jobs 200" in log
    assert PASSWORD not in log
    for token in tokens.values():
        for part in parts_of(token):
            assert part not in log

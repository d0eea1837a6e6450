"""Responses and the work for them are bounded: errors, readiness, unfinished jobs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.jobs.schemas import CreateJob
from app.ops.readiness import Readiness
from jobcache import SourceUnavailable
from tests.app.keyed import keyed
from tests.app.running import Service, Start
from tests.pairs import DATABASES

JOBS = "/api/v2/jobs"
on_one_backend = pytest.mark.parametrize("backend_environment", ["memory"], indirect=True)


async def sent(service: Service, path: str, content: bytes) -> dict[str, Any]:
    answer = await service.http.post(
        path, content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422, answer.text[:500]
    assert len(answer.content) < 16_000
    body: dict[str, Any] = answer.json()
    assert 1 <= len(body["errors"]) <= 20
    return body


def compact(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


SEVEN_THOUSAND = {str(n): 0 for n in range(7000)}
MANY = {
    "unknown fields": compact(SEVEN_THOUSAND),
    "unknown fields beside the known": compact(
        {"client_id": "a", "prompt": "A cat."} | SEVEN_THOUSAND
    ),
    "one long unknown field": json.dumps({"x" * 60_000: 0}).encode(),
    "a long value": json.dumps({"client_id": "x" * 60_000, "prompt": 1}).encode(),
    "a deep array": b"[" * 30_000 + b"]" * 30_000,
    "a deep object": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    "a deep value": b'{"client_id":' + b"[" * 900 + b"]" * 900 + b"}",
    "a long array": json.dumps([0] * 20_000).encode(),
    "a long number": b'{"scenes":' + b"9" * 60_000 + b"}",
    "the same field": b'{"x":1' + b',"x":1' * 9_000 + b"}",
}


@pytest.mark.parametrize("name", MANY)
async def test_of_many_errors_a_few_are_listed(start: Start, name: str) -> None:
    async with start() as service:
        for path in (JOBS, "/api/v2/cache/invalidate", f"{JOBS}/1/progress"):
            await sent(service, path, MANY[name])  # which looks at the number of errors


async def test_unknown_fields_are_named_and_known_ones_are_looked_at(start: Start) -> None:
    async with start() as service:
        body = await sent(service, JOBS, MANY["unknown fields beside the known"])
        assert [each["field"] for each in body["errors"]] == [f"body.{n}" for n in range(20)]
        content = compact(SEVEN_THOUSAND | {"prompt": 7})
        body = await sent(service, JOBS, content)
        assert {"body.client_id", "body.prompt"} <= {each["field"] for each in body["errors"]}
        missing = await sent(service, JOBS, b'{"client_id": "acme", "more": 1}')
        assert {each["field"] for each in missing["errors"]} == {"body.prompt", "body.more"}


@pytest.mark.parametrize(
    "query",
    [
        "&".join(f"x{n}=1" for n in range(7000)),
        "&" * 60_000,
        "ids=" + ",".join(map(str, range(1, 10_000))),
        "ids=" + "9" * 60_000,
        "ids=1" * 10_000,
        "limit=" + "9" * 5000,
        "cursor=" + "x" * 60_000,
        "client_id=" + "x" * 60_000,
        "status=" + "x" * 60_000,
    ],
)
async def test_long_queries_are_answered_shortly(start: Start, query: str) -> None:
    async with start() as service:
        answer = await service.http.get(f"{JOBS}?{query}")
        assert answer.status_code in {200, 422}
        assert len(answer.content) < 16_000


def test_few_of_many_unknown_fields_are_looked_at() -> None:
    with pytest.raises(ValidationError) as raised:
        CreateJob.model_validate(SEVEN_THOUSAND)
    assert raised.value.error_count() == 22, "the two that are missing, and 20 more"


# --- readiness


class Checks:
    def __init__(self) -> None:
        self.count = 0
        self.now = 0.0
        self.error: Exception | None = None
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> None:
        self.count += 1
        await self.go_on.wait()
        if self.error is not None:
            raise self.error


async def test_a_check_is_shared_and_kept_for_a_second() -> None:
    checks = Checks()
    readiness = Readiness(checks, 1.0, lambda: checks.now)
    checks.go_on.clear()
    asking = [asyncio.create_task(readiness.check()) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # its client has hung up
    checks.now = 30.0  # however long it takes, there is one
    asking.append(asyncio.create_task(readiness.check()))
    await asyncio.sleep(0)
    checks.go_on.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None] * 50
    assert checks.count == 1
    for moment, count in ((30.5, 2), (30.9, 2), (31.4, 2), (31.6, 3), (90.0, 4)):
        checks.now = moment
        await readiness.check()
        assert checks.count == count


async def test_a_failure_is_kept_for_no_longer() -> None:
    checks = Checks()
    readiness = Readiness(checks, 1.0, lambda: checks.now)
    checks.error = SourceUnavailable("gone")
    for _ in range(5):
        with pytest.raises(SourceUnavailable):
            await readiness.check()
    assert checks.count == 1
    checks.now, checks.error = 1.0, None
    await readiness.check()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the service's checks of readiness, which pass only where a test says so."""
    now = [0.0]
    assert Readiness.__init__.__defaults__ is not None
    every, _ = Readiness.__init__.__defaults__
    monkeypatch.setattr(Readiness.__init__, "__defaults__", (every, lambda: now[0]))
    return now


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
@on_one_backend
async def test_many_who_ask_cost_one_query(clock: list[float], service: Service) -> None:
    for seconds in (1, 2):
        for _ in range(20):
            answers = await asyncio.gather(*(service.http.get("/readyz") for _ in range(10)))
            assert {answer.status_code for answer in answers} == {200}
        assert (await service.stats())["database"]["purposes"]["health"] == seconds
        clock[0] += 1.0


async def test_a_key_file_that_cannot_be_read_is_not_ready(start: Start, tmp_path: Path) -> None:
    async with keyed(start, tmp_path / "keys") as access:
        keys = access.service.services.keys
        assert keys is not None
        text = access.file.read_text()
        assert (await access.call("none", "GET", "/readyz")).status_code == 200
        for broken in ("", "rubbish\n"):
            access.file.write_text(broken)
            await keys.refresh()
            answer = await access.call("none", "GET", "/readyz")
            assert answer.status_code == 503
            assert "keys" in answer.json()["detail"]
            assert "retry-after" in answer.headers
        access.file.write_text(text)
        await keys.refresh()
        assert (await access.call("none", "GET", "/readyz")).status_code == 200


# --- unfinished jobs

BODY = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
@pytest.mark.parametrize("backend_environment", ["memory", "redis"], indirect=True)
async def test_a_client_has_so_many_unfinished_jobs(
    start: Start, database_url: str, backend_environment: dict[str, str]
) -> None:
    environment = {"DATABASE_URL": database_url, "JOBCACHE_MAX_UNFINISHED_JOBS": "3"}
    async with start(**environment, **backend_environment) as service:

        async def create(key: str | None = None, client: str = "acme") -> int:
            headers = {} if key is None else {"Idempotency-Key": key}
            body = {**BODY, "client_id": client}
            answer = await service.http.post(JOBS, json=body, headers=headers)
            if answer.status_code == 429:
                assert answer.headers["content-type"] == "application/problem+json"
                assert int(answer.headers["retry-after"]) > 0
                assert "3 unfinished" in answer.json()["detail"]
            return answer.status_code

        assert sorted(await asyncio.gather(*(create() for _ in range(12)))) == [202] * 3 + [429] * 9
        listed = (await service.http.get(JOBS, params={"client_id": "acme"})).json()["items"]
        assert len(listed) == 3, "what was refused has left nothing behind"
        assert await create(client="other") == 202
        await service.post(f"{listed[0]['id']}/cancel")
        assert await create("again") == 202
        assert await create("again") == 202, "it is the same job"
        assert await create("new") == 429
        assert await create("new") == 429, "a refusal has not used up the key"
        await service.post(f"{listed[1]['id']}/cancel")
        assert await create("new") == 202


async def test_there_may_be_no_limit(start: Start) -> None:
    async with start(JOBCACHE_MAX_UNFINISHED_JOBS="0") as service:
        for _ in range(5):
            await service.create(renderer="external")

"""Waiting for many jobs in batches: what is sent, and what ends which wait."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from jobcache.client import Forbidden, Job, NotFound, WaitTimeout
from jobcache.client.batches import MOST_IDS
from tests.jobcache.client.job_responses import body
from tests.jobcache.client.loopback import Reply, Server, Waits, reply


@dataclass
class Service:
    """Answers batches as the service does: job N ends with version N modulo 4, plus one."""

    server: Server
    rounds: dict[int, int] = field(default_factory=dict)
    batches: list[list[int]] = field(default_factory=list)
    troubles: list[Reply] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.server.on("/api/v2/jobs", self.answer)

    def answer(self, request: Request) -> Response:
        if self.troubles:
            trouble = self.troubles.pop(0)
            assert isinstance(trouble, Response)
            return trouble
        ids = [int(each) for each in request.query_params["ids"].split(",")]
        self.batches.append(ids)
        return reply(
            200,
            {
                "items": [self.job(each) for each in ids if each not in self.missing],
                "missing": [each for each in ids if each in self.missing],
            },
        )

    def job(self, job_id: int) -> Any:
        version = self.rounds[job_id] = self.rounds.get(job_id, 0) + 1
        status = "completed" if version > job_id % 4 else "rendering"
        return json.loads(body(version, status, job_id))


@pytest.fixture
def service(server: Server) -> Service:
    return Service(server)


async def test_batches_are_as_large_as_may_be_and_become_fewer(
    service: Service, waits: Waits
) -> None:
    waits.jobs(service.server.url)
    service.missing = {5, 250}
    ids = list(range(1, 251))
    seen: list[Job] = []
    completed = await waits.as_completed([*ids, 1], on_progress=seen.append)
    assert [len(batch) for batch in service.batches] == [100, 100, 50, 100, 86, 100, 24, 62]
    assert max(len(batch) for batch in service.batches) == MOST_IDS
    assert waits.pauses == [2, 2, 2]
    by_number = {each.number: each for each in completed}
    assert sorted(by_number) == list(range(251))
    for number, job_id in enumerate([*ids, 1]):
        if job_id in service.missing:
            with pytest.raises(NotFound, match=f"no job {job_id}"):
                by_number[number].result()
        else:
            assert by_number[number].result().id == job_id
            assert by_number[number].source == job_id
            assert by_number[number].result().terminal
    versions = [job.version for job in seen if job.id == 7]
    assert versions == [1, 2, 3, 4]


async def test_results_come_in_the_order_of_the_ids(service: Service, waits: Waits) -> None:
    waits.jobs(service.server.url)
    ids = [3, 4, 1, 2]
    found = await waits.call("wait_all", ids, connections=1)
    assert [job.id for job in found] == ids
    service.rounds.clear()
    assert (await waits.call("wait_any", ids, connections=1)).id == 4


async def test_a_status_may_end_the_waits(service: Service, waits: Waits) -> None:
    waits.jobs(service.server.url)
    found = await waits.call("wait_all", [2, 3], connections=1, until={"rendering"})
    assert [job.version for job in found] == [1, 1]


async def test_an_older_version_is_not_shown(service: Service, waits: Waits) -> None:
    waits.jobs(service.server.url)

    def versions(*numbers: int) -> Response:
        items = [json.loads(body(version, job_id=7)) for version in numbers]
        return reply(200, {"items": items, "missing": []})

    service.troubles = [versions(3), versions(2), versions(3), versions()]
    service.rounds[7] = 3
    seen: list[Job] = []
    await waits.call("wait_all", [7, 7], connections=1, on_progress=seen.append)
    assert [job.version for job in seen] == [3, 4]


async def test_failures_that_pass_are_waited_for(service: Service, waits: Waits) -> None:
    waits.jobs(service.server.url)
    waits.chance = 0.5
    service.troubles = [
        reply(503, retry_after="4"),
        reply(200, {"items": [{"id": 4}], "missing": []}),
        reply(200, []),
    ]
    assert len(await waits.call("wait_all", [4, 8], connections=1)) == 2
    assert waits.pauses == pytest.approx([4.4, 0.5, 1])


async def test_a_refusal_ends_the_waits_of_its_batch(service: Service, waits: Waits) -> None:
    waits.jobs(service.server.url)
    service.troubles = [reply(403, {"detail": "why"})]
    completed = await waits.as_completed([4, 8], connections=1)
    assert [type(each.error) for each in completed] == [Forbidden, Forbidden]


@pytest.mark.parametrize("fails", [False, True])
async def test_the_time_is_over(service: Service, waits: Waits, *, fails: bool) -> None:
    waits.jobs(service.server.url)
    if fails:
        service.troubles = [reply(503, retry_after="1") for _ in range(20)]
    completed = await waits.as_completed([4, 7], connections=1, timeout=5)
    over = completed[-1].error
    assert isinstance(over, WaitTimeout)
    if fails:
        assert over.seen is None
        assert "503" in str(over.__cause__)
        assert len(completed) == 2
    else:
        assert over.job.version == 3
        assert completed[0].result().id == 4
    assert sum(waits.pauses) <= 5


async def test_arguments_are_checked(service: Service, waits: Waits) -> None:
    waits.jobs(service.server.url)
    assert await waits.call("wait_all", []) == []
    for wrong in ({"connections": 0}, {"timeout": 0}, {"wait": 61}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await waits.call("wait_all", [1, 2], **wrong)
    with pytest.raises(ValueError, match="no job has the number 0"):
        await waits.call("wait_all", [1, 0])

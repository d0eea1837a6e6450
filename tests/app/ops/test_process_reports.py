"""Processes of a service find each other, and no sum goes down when one of them ends."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from app.ops import membership, process_reports
from app.ops.membership import Membership
from app.ops.process_reports import ProcessReports, Report
from jobcache.observability.metrics import Metric

METRICS = (
    Metric("reads_total", "counter", "Reads.", ("result",)),
    Metric("took_seconds", "histogram", "Durations."),
    Metric("entries", "gauge", "Entries."),
)


class Counting:
    """A process that counts, or what stands for it here."""

    def __init__(self, directory: Path, metrics: tuple[Metric, ...] = METRICS) -> None:
        self.measured: dict[str, Any] = {
            "reads_total": {"hit": 0},
            "took_seconds": {},
            "entries": 0,
        }
        self.reports = ProcessReports(directory, lambda: {"name": id(self)}, self.measure, metrics)

    def measure(self) -> dict[str, Any]:
        copied: dict[str, Any] = json.loads(json.dumps(self.measured))
        return copied

    def hit(self, times: int) -> None:
        self.measured["reads_total"]["hit"] += times
        buckets = self.measured["took_seconds"]
        buckets["7"] = buckets.get("7", 0) + times
        self.measured["entries"] = times

    async def total(self) -> tuple[int, int, int]:
        total = (await self.reports.gather()).total
        return total["reads_total"]["hit"], total["took_seconds"].get("7", 0), total["entries"]


@asynccontextmanager
async def counting(
    directory: Path, source: str = "a", metrics: tuple[Metric, ...] = METRICS
) -> AsyncIterator[Counting]:
    process = Counting(directory, metrics)
    await process.reports.start(source)
    try:
        yield process
    finally:
        await process.reports.aclose()


def member_of(process: Counting) -> Membership:
    member = process.reports._member
    assert member is not None
    return member


def kill(process: Counting) -> None:
    """Do what the operating system does to a process that is killed: close its files."""
    member = member_of(process)
    assert process.reports._server is not None
    process.reports._server.close()
    member._close()
    process.reports._member = process.reports._server = None


async def test_each_process_has_the_sum_and_each_report(tmp_path: Path) -> None:
    async with counting(tmp_path) as first, counting(tmp_path) as second:
        first.hit(3)
        second.hit(40)
        for asked, other in ((first, second), (second, first)):
            assert await asked.total() == (43, 43, 43)
            reports = await asked.reports.gather()
            assert reports.own.measured == asked.measured
            assert [each.measured for each in reports.others] == [other.measured]
            assert [each.number for each in reports.answered] == [0, 1]
            assert reports.unresponsive == []


async def test_services_with_other_databases_are_apart(tmp_path: Path) -> None:
    async with counting(tmp_path, "a") as first, counting(tmp_path, "b") as second:
        first.hit(1)
        second.hit(2)
        assert (await first.total())[0] == 1
        assert (await second.total())[0] == 2


async def test_processes_of_another_version_are_apart(tmp_path: Path) -> None:
    async with counting(tmp_path) as new, counting(tmp_path, metrics=METRICS[:2]) as old:
        new.hit(1)
        old.hit(2)
        assert (await new.total())[0] == 1
        assert (await old.total())[0] == 2


@pytest.mark.parametrize("ends", ["in order", "killed"])
async def test_the_counts_of_a_process_that_has_ended_stay(tmp_path: Path, ends: str) -> None:
    async with counting(tmp_path) as staying:
        staying.hit(1)
        async with counting(tmp_path) as first:
            first.hit(10)
            assert await staying.total() == (11, 11, 11)
            if ends == "killed":
                kill(first)
        assert await staying.total() == (11, 11, 1), "no gauges of a process that has ended"
        async with counting(tmp_path) as second:
            assert member_of(second).number == 1, "the number is taken over"
            second.hit(100)
            assert await staying.total() == (111, 111, 101)
            assert await second.total() == (111, 111, 101)
            (other,) = (await staying.reports.gather()).others
            assert other.measured == second.measured, "a process reports what it has done itself"
        assert await staying.total() == (111, 111, 1)


async def test_what_is_counted_after_the_last_question_is_reported_at_the_end(
    tmp_path: Path,
) -> None:
    async with counting(tmp_path) as staying:
        async with counting(tmp_path) as ending:
            ending.hit(5)
        assert (await staying.total())[0] == 5


async def test_the_first_process_of_a_service_begins_anew(tmp_path: Path) -> None:
    async with counting(tmp_path) as first, counting(tmp_path) as second:
        first.hit(1)
        second.hit(1)
    async with counting(tmp_path) as next_one:
        assert await next_one.total() == (0, 0, 0)


async def test_a_process_that_does_not_answer_counts_as_it_last_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_reports, "_ANSWERS_WITHIN", 0.05)
    async with counting(tmp_path) as asking:
        asking.hit(1)
        hanging = Membership(member_of(asking)._directory)  # it listens, and nobody accepts
        counts = {"reads_total": {"hit": 7}, "took_seconds": {"7": 7}, "entries": 7}
        hanging.write(json.dumps(asdict(Report(1234, {}, counts, {}, 1))).encode())
        try:
            reports = await asking.reports.gather()
            assert [each.process for each in reports.unresponsive] == [1234]
            assert reports.others == []
            assert await asking.total() == (8, 8, 1)
        finally:
            hanging.listener.close()
            hanging.leave()


async def test_processes_that_start_at_once_take_members_of_their_own(tmp_path: Path) -> None:
    processes = [Counting(tmp_path) for _ in range(8)]
    await asyncio.gather(*(each.reports.start("a") for each in processes))
    try:
        assert sorted(member_of(each).number for each in processes) == list(range(8))
        for each in processes:
            each.hit(1)
        totals = await asyncio.gather(*(each.total() for each in processes))
        assert {hits for hits, *_ in totals} == {8}
    finally:
        for each in processes:
            await each.reports.aclose()


async def test_the_path_of_the_directory_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30) / ("longer" * 20)
    async with counting(directory) as first, counting(directory) as second:
        second.hit(2)
        assert (await first.total())[0] == 2


def left_for_two_days(directory: Path) -> None:
    before = time.time() - 2 * 24 * 3600
    os.utime(directory, (before, before))


def end(member: Membership) -> None:
    member.listener.close()
    member.leave()


def content(directory: Path) -> set[Path]:
    return set(directory.iterdir())


async def test_what_services_have_left_is_removed_a_day_later(tmp_path: Path) -> None:
    others = tmp_path / "something else"
    others.mkdir()
    left_for_two_days(others)
    directories = {}
    for source in ("old", "new"):
        async with counting(tmp_path, source) as ended:
            directories[source] = member_of(ended)._directory
    async with counting(tmp_path, "living") as living:
        directories["living"] = member_of(living)._directory
        left_for_two_days(directories["old"])
        left_for_two_days(directories["living"])
        async with counting(tmp_path, "starting") as starting:
            assert content(tmp_path) == {
                others,
                directories["new"],
                directories["living"],
                member_of(starting)._directory,
            }
        async with counting(tmp_path, "living") as second:
            second.hit(1)
            assert (await living.total())[0] == 1


@pytest.mark.parametrize("moment", ["made the directory", "opened the lock", "removed the lock"])
def test_a_process_starts_while_its_directory_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    directory = tmp_path / "0123456789abcdef"
    end(Membership(directory))
    members: list[Membership] = []

    def meanwhile(cls: Any, name: str, work: Callable[[], object], *, before: bool) -> None:
        """Do something at the first call of a function."""
        original = getattr(cls, name)

        def called(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(cls, name, original)
            if before:
                work()
            result = original(*arguments, **options)
            if not before:
                work()
            return result

        monkeypatch.setattr(cls, name, called)

    def start() -> None:
        members.append(Membership(directory))

    def remove() -> None:
        membership._remove(directory)
        assert not directory.exists()

    if moment == "made the directory":
        meanwhile(Path, "mkdir", remove, before=False)
        start()
    elif moment == "opened the lock":
        meanwhile(fcntl, "flock", remove, before=True)
        start()
    else:
        meanwhile(Path, "rmdir", start, before=True)
        with pytest.raises(OSError, match="not empty"):
            membership._remove(directory)
    start()
    first, second = members
    assert (first.number, second.number) == (0, 1)
    first.write(b"report")
    assert second.others() == [0]
    assert second.read(0) == b"report"
    for each in members:
        end(each)


@pytest.mark.parametrize("trouble", ["a file", "a process that holds the lock"])
async def test_without_a_directory_a_process_reports_for_itself(
    tmp_path: Path,
    trouble: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "_PATIENCE", 0.05)
    directory, held = tmp_path / "processes", None
    if trouble == "a file":
        directory.write_text("")
    else:
        async with counting(directory) as before:
            service = member_of(before)._directory
        held = membership._try_lock(service / "lock")
        assert held is not None
    async with counting(directory) as process:
        process.hit(2)
        assert await process.total() == (2, 2, 2)
    assert "metrics are of one process only" in caplog.text
    if held is not None:
        os.close(held)

"""Progress reports: latest wins, one per interval, terminal at once, the last never lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobcache.throttle import ThreadedThrottle, Throttle

INTERVAL = 4.0


class RefusedError(Exception):
    pass


@dataclass
class Commit:
    report: int
    newest: int
    began: float
    ended: float | None = None
    error: Exception | None = None


@dataclass
class Simulator:
    """A clock that the test moves, and a commit that may be slow or fail."""

    now: float = 0.0
    newest: int = 0
    terminal: int = 0
    reported_at: dict[int, float] = field(default_factory=dict)
    takes: float = 0.0
    refusals: int = 0
    commits: list[Commit] = field(default_factory=list)
    sleepers: list[tuple[float, asyncio.Event]] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        sleeper = (self.now + seconds, over)
        self.sleepers.append(sleeper)
        try:
            await over.wait()
        finally:
            self.sleepers.remove(sleeper)

    async def commit(self, report: int) -> None:
        commit = Commit(report, self.newest, self.now)
        self.commits.append(commit)
        if self.takes:
            await self.sleep(self.takes)
        if self.refusals:
            self.refusals -= 1
            commit.error = RefusedError(report)
        commit.ended = self.now
        if commit.error is not None:
            raise commit.error

    async def run_ready(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    async def elapse(self, seconds: float) -> None:
        until = self.now + seconds
        await self.run_ready()
        while due := [time for time, _ in self.sleepers if time <= until]:
            self.now = min(due)
            for time, over in self.sleepers:
                if time <= self.now:
                    over.set()
            await self.run_ready()
        self.now = until

    async def ended(self, task: asyncio.Task[None]) -> Exception | None:
        """Let time pass until `task` has ended. Its error."""
        for _ in range(100):
            await self.run_ready()
            if task.done():
                return task.exception()  # type: ignore[return-value]
            await self.elapse(0.5)
        raise AssertionError("nothing ends it")

    def throttle(self) -> Throttle[int]:
        return Throttle(self.commit, interval=INTERVAL, clock=lambda: self.now, sleep=self.sleep)

    @property
    def committed(self) -> list[int]:
        return [commit.report for commit in self.commits if commit.error is None]


Operation = tuple[str, float]
LATE = -1

steps = st.lists(
    st.one_of(
        st.just(("report", 0.0)),
        st.tuples(st.just("elapse"), st.sampled_from([0.5, 1.5, 4.0, 9.0])),
        st.tuples(st.just("takes"), st.sampled_from([0.0, 1.0, 6.0])),
        st.tuples(st.just("refuse"), st.sampled_from([1.0, 2.0])),
    ),
    max_size=14,
)


@given(steps, st.sampled_from(["wait", "close", "finish"]), steps)
def test_whatever_happens_the_four_promises_hold(
    before: list[Operation], end: str, after: list[Operation]
) -> None:
    asyncio.run(Story().tell(before, end, after))


class Story:
    """One life of a throttle."""

    def __init__(self) -> None:
        self.simulator = Simulator()
        self.throttle = self.simulator.throttle()
        self.raised: list[BaseException | None] = []

    async def tell(self, before: list[Operation], end: str, after: list[Operation]) -> None:
        await self.play(before)
        if end == "finish":
            await self.finish(after)
        elif end == "wait":
            await self.play(after)
            await self.wait()
        paced = len(self.simulator.commits)
        closing = asyncio.create_task(self.throttle.aclose())
        self.raised.append(await self.simulator.ended(closing))
        self.check_order(paced)
        self.check_the_end(self.raised[-1])

    async def play(self, steps: list[Operation], *, late: bool = False) -> None:
        for step, value in steps:
            if step == "report":
                self.simulator.newest += not late
                self.simulator.reported_at.setdefault(self.simulator.newest, self.simulator.now)
                try:
                    self.throttle.report(LATE if late else self.simulator.newest)
                except RefusedError as error:
                    self.raised.append(error)
            elif step == "elapse":
                await self.simulator.elapse(value)
            elif step == "takes":
                self.simulator.takes = value
            else:
                self.simulator.refusals += int(value)

    async def finish(self, after: list[Operation]) -> None:
        simulator, asked = self.simulator, self.simulator.now

        async def finish() -> None:
            simulator.terminal = simulator.newest = simulator.newest + 1
            simulator.reported_at[simulator.terminal] = asked
            await self.throttle.finish(simulator.terminal)

        finishing = asyncio.create_task(finish())
        await asyncio.sleep(0)
        await self.play(after, late=True)
        self.raised.append(await simulator.ended(finishing))
        reports = [commit.report for commit in simulator.commits]
        first = reports.index(simulator.terminal)
        busy_until = simulator.commits[first - 1].ended if first else 0.0
        assert busy_until is not None
        assert simulator.commits[first].began == max(asked, busy_until), "at once, but for that one"
        assert set(reports[first:]) == {simulator.terminal}, "nothing follows it"

    async def wait(self) -> None:
        self.simulator.refusals = 0
        await self.simulator.elapse(3 * 6 + 2 * INTERVAL)
        assert self.simulator.committed[-1:] == [self.simulator.newest][: self.simulator.newest]

    def check_order(self, paced: int) -> None:
        simulator, free_from = self.simulator, 0.0
        for number, commit in enumerate(simulator.commits):
            assert commit.report == commit.newest, "latest wins"
            assert commit.ended is not None
            if number == 0:
                assert commit.began == simulator.reported_at[commit.report], "the first at once"
            elif number < paced and commit.report != simulator.terminal:
                assert commit.began >= free_from + INTERVAL
            assert commit.began >= free_from, "one at a time"
            free_from = commit.ended

    def check_the_end(self, raised: BaseException | None) -> None:
        commits = self.simulator.commits
        if raised is not None:
            assert commits[-1].error is raised
        if commits:
            assert commits[-1].report == self.simulator.newest, "never lost"
            assert commits[-1].error is None or commits[-1].error in self.raised
        else:
            assert self.simulator.newest == 0


async def test_an_error_is_raised_to_the_next_report_which_is_taken_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    simulator = Simulator(refusals=1)
    throttle = simulator.throttle()
    throttle.report(1)
    await simulator.run_ready()
    with pytest.raises(RefusedError):
        throttle.report(2)
    throttle.report(3)  # its error is raised once
    await simulator.elapse(INTERVAL)
    assert simulator.committed == [3]
    simulator.refusals = 1
    throttle.report(4)
    await simulator.elapse(2 * INTERVAL)
    assert simulator.committed == [3, 4], "tried again by itself"
    with caplog.at_level(logging.WARNING):
        throttle.report(4)
    assert len(caplog.records) == 1, "no caller came in time to get the error"
    await throttle.aclose()


async def test_a_close_tries_once_more_and_says_what_is_lost() -> None:
    simulator = Simulator(refusals=2)
    throttle = simulator.throttle()
    throttle.report(1)
    await simulator.run_ready()
    with pytest.raises(RefusedError):
        await throttle.aclose()
    assert len(simulator.commits) == 2
    await throttle.aclose()
    assert len(simulator.commits) == 2, "a second close has nothing to do"
    with pytest.raises(RuntimeError, match="closed"):
        throttle.report(2)


async def test_a_close_tries_again_at_once_what_fails_meanwhile() -> None:
    simulator = Simulator(takes=1, refusals=1)
    throttle = simulator.throttle()
    throttle.report(1)
    await simulator.run_ready()
    closing = asyncio.create_task(throttle.aclose())
    assert await simulator.ended(closing) is None
    assert [commit.began for commit in simulator.commits] == [0, 1]


async def test_every_caller_that_waits_for_a_commit_gets_its_error() -> None:
    simulator = Simulator(takes=1, refusals=1)
    throttle = simulator.throttle()
    throttle.report(1)
    flushes = [asyncio.create_task(throttle.flush()) for _ in range(2)]
    assert [type(await simulator.ended(flush)) for flush in flushes] == [RefusedError] * 2
    throttle.report(2)  # a caller has got the error
    closing = asyncio.create_task(throttle.aclose())
    assert await simulator.ended(closing) is None


async def test_a_block_that_raises_commits_its_last_report_and_goes_on_raising() -> None:
    simulator = Simulator()

    async def fail() -> None:
        async with simulator.throttle() as throttle:
            throttle.report(1)
            await simulator.run_ready()
            throttle.report(2)
            simulator.refusals = 1
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await fail()
    assert "RefusedError(2)" in caught.value.__notes__[0]
    async with simulator.throttle() as throttle:
        throttle.report(1)
        await simulator.run_ready()
        throttle.report(2)
    assert simulator.committed == [1, 1, 2]


async def test_a_block_whose_last_report_is_lost_raises_the_error() -> None:
    simulator = Simulator()

    async def lose() -> None:
        async with simulator.throttle() as throttle:
            throttle.report(1)
            await simulator.run_ready()
            throttle.report(2)
            simulator.refusals = 1

    with pytest.raises(RefusedError):
        await lose()
    assert simulator.committed == [1]


async def test_flush_does_not_wait_for_the_interval() -> None:
    simulator = Simulator()
    async with simulator.throttle() as throttle:
        throttle.report(1)
        await throttle.flush()
        throttle.report(2)
        await throttle.flush()
        assert simulator.committed == [1, 2]
        assert simulator.now == 0


async def test_a_cancelled_waiter_does_not_stop_the_commit() -> None:
    simulator = Simulator(takes=2)
    throttle = simulator.throttle()
    throttle.report(1)
    await simulator.run_ready()
    finishing = asyncio.create_task(throttle.finish(2))
    await simulator.run_ready()
    finishing.cancel()
    await simulator.elapse(10)
    assert finishing.cancelled()
    assert simulator.committed == [1, 2]
    closing = asyncio.create_task(throttle.aclose())
    closing.cancel()
    await asyncio.wait([closing])
    await throttle.aclose()


async def test_a_commit_cancelled_by_what_it_calls_is_tried_again() -> None:
    simulator, attempts = Simulator(), 0

    async def commit(report: int) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise asyncio.CancelledError

    throttle = Throttle(
        commit, interval=INTERVAL, clock=lambda: simulator.now, sleep=simulator.sleep
    )
    throttle.report(1)
    await simulator.run_ready()
    with pytest.raises(RuntimeError, match="cancelled by what it called"):
        throttle.report(1)
    await simulator.elapse(INTERVAL)
    assert attempts == 2
    await throttle.aclose()


@pytest.mark.parametrize("commits", [False, True])
async def test_the_last_report_is_committed_although_the_driver_is_cancelled(
    *, commits: bool
) -> None:
    """As at the end of `asyncio.run`, which cancels all tasks in any order."""
    simulator = Simulator(takes=2)
    throttle = simulator.throttle()
    throttle.report(1)
    await simulator.run_ready()
    if not commits:
        await simulator.elapse(2)
    throttle.report(2)
    await simulator.run_ready()
    driver = throttle._driver
    assert driver is not None
    closing = asyncio.create_task(throttle.aclose())
    driver.cancel()
    await simulator.elapse(10)
    assert closing.done()
    assert await asyncio.gather(closing, return_exceptions=True) == [None]
    assert simulator.committed[-1] == 2
    assert driver.cancelled()


def test_a_thread_that_cannot_be_started_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recorder = Recorder()
    throttle = ThreadedThrottle(recorder.commit, interval=1000)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            throttle.report(1)
        with pytest.raises(RuntimeError, match="new thread"):
            throttle.flush()
    throttle.close()
    assert recorder.committed == [1]


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_is_above_zero(interval: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ThreadedThrottle(print, interval=interval)


# --- in a thread ---


class Recorder:
    def __init__(self) -> None:
        self.committed: list[int] = []
        self.threads: set[int] = set()
        self.refusals = 0
        self.changed = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def commit(self, report: int) -> None:
        self.begun.set()
        assert self.gate.wait(60)
        with self.changed:
            self.threads.add(threading.get_ident())
            if self.refusals:
                self.refusals -= 1
                raise RefusedError(report)
            self.committed.append(report)
            self.changed.notify_all()

    def until(self, condition: Callable[[], Any]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 5), self.committed


def test_in_a_thread_the_latest_is_committed_when_the_interval_ends() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    with ThreadedThrottle(recorder.commit, interval=0.01) as throttle:
        throttle.report(1)
        assert recorder.begun.wait(60)
        for report in range(2, 10):
            throttle.report(report)  # waits for nobody
        recorder.gate.set()
        recorder.until(lambda: recorder.committed == [1, 9])
    assert len(recorder.threads) == 1
    assert threading.get_ident() not in recorder.threads


def test_in_a_thread_the_end_follows_what_is_under_way_and_nothing_follows_it() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    throttle = ThreadedThrottle(recorder.commit, interval=1000)
    throttle.report(1)
    assert recorder.begun.wait(60)
    throttle.report(2)
    finishing = threading.Thread(target=throttle.finish, args=(3,))
    finishing.start()
    finishing.join(0.01)
    assert finishing.is_alive()
    recorder.gate.set()
    finishing.join(5)
    assert recorder.committed == [1, 3]
    throttle.report(4)
    throttle.close()
    assert recorder.committed == [1, 3]


def test_in_a_thread_errors_are_raised_to_the_waiter_or_the_next_caller() -> None:
    recorder = Recorder()
    recorder.refusals = 4
    throttle = ThreadedThrottle(recorder.commit, interval=1000)
    throttle.report(1)
    with throttle._changed:
        assert throttle._changed.wait_for(lambda: throttle._policy._error is not None, 5)
    with pytest.raises(RefusedError):
        throttle.report(2)
    with pytest.raises(RefusedError):
        throttle.flush()
    with pytest.raises(RefusedError):
        throttle.finish(3)
    with pytest.raises(LookupError) as caught, throttle:
        raise LookupError
    assert "RefusedError(3)" in caught.value.__notes__[0]
    assert recorder.committed == []
    assert throttle._driver is not None
    throttle._driver.join(5)
    assert not throttle._driver.is_alive()


def test_in_a_thread_a_block_that_ends_has_committed_its_last_report() -> None:
    recorder = Recorder()
    with ThreadedThrottle(recorder.commit, interval=1000) as throttle:
        throttle.report(1)
        throttle.flush()
        throttle.report(2)
    assert recorder.committed == [1, 2]
    with ThreadedThrottle(recorder.commit, interval=1000):
        pass


def test_in_a_thread_a_block_whose_last_report_is_lost_raises_the_error() -> None:
    def refuse(report: int) -> None:
        raise RefusedError(report)

    with (
        pytest.raises(RefusedError),
        ThreadedThrottle(refuse, interval=1000) as throttle,
    ):
        throttle.report(1)

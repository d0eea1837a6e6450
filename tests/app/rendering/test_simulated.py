"""The simulated renderer keeps its schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from app.rendering.renderer import Progress, RenderTask
from app.rendering.simulated import SimulatedRenderer

if TYPE_CHECKING:
    from pathlib import Path

    from app.rendering.storyboard import Storyboard


class Timeline:
    """A clock that only sleeping and working move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def task(storyboard: Storyboard, tmp_path: Path) -> RenderTask:
    return RenderTask(1, storyboard, tmp_path / "video.mp4")


async def test_the_steps_are_spread_evenly_and_end_at_100(task: RenderTask) -> None:
    time = Timeline()
    renderer = SimulatedRenderer(8.0, 4, sleep=time.sleep, clock=time.clock)
    seen = [(time.now - 1000.0, step.percent) async for step in renderer.render(task)]
    assert seen == [(2.0, 25.0), (4.0, 50.0), (6.0, 75.0), (8.0, 100.0)]
    assert not task.output.exists()
    assert renderer.makes_video is False


async def test_time_lost_between_steps_is_made_up_for(task: RenderTask) -> None:
    time = Timeline()
    renderer = SimulatedRenderer(8.0, 4, sleep=time.sleep, clock=time.clock)
    seen = []
    async for _ in renderer.render(task):
        seen.append(time.now - 1000.0)
        time.now += 0.5
    assert seen == [2.0, 4.0, 6.0, 8.0]
    assert time.slept == [2.0, 1.5, 1.5, 1.5]


async def test_steps_that_are_late_follow_at_once(task: RenderTask) -> None:
    time = Timeline()
    renderer = SimulatedRenderer(8.0, 4, sleep=time.sleep, clock=time.clock)
    async for step in renderer.render(task):
        if step.percent == 25.0:
            time.now += 100.0
    assert time.slept == [2.0, 0.0, 0.0, 0.0]


async def test_the_scene_shown_is_one_of_the_storyboards(task: RenderTask) -> None:
    steps = [step async for step in SimulatedRenderer(0.0, 4).render(task)]
    assert steps[0] == Progress(25.0, "drawing scene 1 of 2", "step 1 of 4")
    assert steps[3] == Progress(100.0, "drawing scene 2 of 2", "step 4 of 4")


async def test_odd_numbers_of_updates_end_at_exactly_100(task: RenderTask) -> None:
    for updates in (1, 3, 7, 49, 101):
        steps = [step async for step in SimulatedRenderer(0.0, updates).render(task)]
        assert len(steps) == updates
        assert steps[-1].percent == 100.0


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_wrong_duration_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"seconds must be a finite number.*not {seconds}"):
        SimulatedRenderer(seconds, 4)


@pytest.mark.parametrize("updates", [0, -3])
def test_a_wrong_number_of_updates_is_refused(updates: int) -> None:
    with pytest.raises(ValueError, match=f"updates must be 1 or more, not {updates}"):
        SimulatedRenderer(8.0, updates)

"""Compare the open-loop driver with Locust, at a size that both can handle.

python -m loadtests.open_loop.against_locust --pollers 100 --interval 1

Both poll the same jobs of one service, first the one and then the other. They must agree on the
number of polls a second and, apart from what each client adds itself, on the times; and the service
must have counted as many polls as each has sent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.backends import NEEDS_REDIS
from benchmarks.process import Process, exit_at_sigterm
from loadtests.arguments import count, positive
from loadtests.open_loop import jobs
from loadtests.open_loop.load import Load, Plan
from loadtests.open_loop.record import summary
from loadtests.open_loop.trial import running_service

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from benchmarks.service import Service

_RATE = 0.05
_USERS = "fixed_pollers.py"
_STOP = 60.0  # seconds for Locust to start and to end
_POLLS_END_WITHIN = 10  # seconds; by default Locust cuts off the polls in progress


@dataclass(frozen=True)
class Polled:
    """What one of the two has measured.

    Attributes:
        polls: the polls that were answered.
        seconds: the time that they took.
        failures: descriptions of the others.
        times: percentiles in milliseconds.
        counted: the polls that the service has counted; None if it was not asked.
    """

    polls: int
    seconds: float
    failures: list[str]
    times: dict[str, float | None]
    counted: int | None = None

    @property
    def per_second(self) -> float:
        """The polls a second."""
        return self.polls / self.seconds if self.seconds else 0.0


def by_driver(port: int, ids: Collection[int], plan: Plan, seconds: float) -> Polled:
    """Poll with the open-loop driver."""
    with Load(port, dict.fromkeys(ids, 0), plan) as load:
        seen = load.run(seconds)
    record = seen.record
    return Polled(record.answered, seconds, list(record.errors), record.rows()["all"])


def by_locust(port: int, ids: Collection[int], plan: Plan, seconds: float) -> Polled:
    """Poll with Locust.

    Raises:
        RuntimeError: Locust left no report.
    """
    with tempfile.TemporaryDirectory(prefix="jobcache-") as place:
        report = Path(place) / "report.json"
        command = [
            *(sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name(_USERS))),
            *("--headless", "--only-summary", "--host", f"http://127.0.0.1:{port}"),
            *("--users", str(plan.pollers), "--spawn-rate", str(plan.pollers)),
            *("--run-time", f"{seconds + plan.interval:.0f}s", "--interval", str(plan.interval)),
            *("--job-ids", ",".join(map(str, ids)), "--report", str(report)),
            *("--stop-timeout", str(_POLLS_END_WITHIN)),
        ]
        kept = {name: text for name, text in os.environ.items() if not name.startswith("LOCUST_")}
        with Process(command, kept) as locust:
            with contextlib.suppress(subprocess.TimeoutExpired):
                locust.wait(seconds + plan.interval + _STOP)
            if not report.exists():
                raise RuntimeError(f"Locust left no report:\n{locust.log_tail()}")
        seen = json.loads(report.read_text("utf-8"))
    milliseconds = seen["milliseconds"]
    times = summary(each / 1000 for each in milliseconds)
    return Polled(len(milliseconds), seen["seconds"], seen["failures"], times)


def differences(driver: Polled, locust: Polled, tolerance: float, rate: float = _RATE) -> list[str]:
    """Return in what the two disagree.

    Args:
        driver: measured by the driver.
        locust: measured by Locust.
        tolerance: milliseconds by which the medians may differ.
        rate: the part by which the polls a second may differ.
    """
    found = []
    for name, polled in (("the driver", driver), ("Locust", locust)):
        if not polled.polls:
            found.append(f"{name} has measured nothing")
        found += [f"{name}: {failure}" for failure in polled.failures]
        if polled.counted is not None and polled.counted != polled.polls:
            found.append(
                f"{name} has sent {polled.polls} polls, and the service counted {polled.counted}"
            )
    if abs(driver.per_second - locust.per_second) > rate * locust.per_second:
        found.append(f"{driver.per_second:.1f} polls a second, by Locust {locust.per_second:.1f}")
    median, other = driver.times["p50"], locust.times["p50"]
    if median is not None and other is not None and abs(median - other) > tolerance:
        found.append(f"a median of {median:.1f} ms, by Locust {other:.1f} ms")
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure with both, print the figures; return 1 if they disagree, else 0."""
    options = _parser().parse_args(arguments)
    plan = Plan(
        pollers=options.pollers,
        interval=options.interval,
        jobs=options.jobs,
        update_interval=None,
        conditional=False,
    )
    with running_service(options.backend, options.database, plan.pollers) as (service, _):
        ids = list(jobs.create(service.port, plan.jobs))
        polled = {}
        for name, poll in (("driver", by_driver), ("Locust", by_locust)):
            before = _reads(service)
            seen = poll(service.port, ids, plan, options.seconds)
            counted = _reads(service) - before
            polled[name] = Polled(seen.polls, seen.seconds, seen.failures, seen.times, counted)
    sys.stdout.write("| by | polls | polls/s | counted by the service | p50 ms | p99 ms |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- |\n")
    for name, seen in polled.items():
        p50, p99 = (f"{seen.times[each]:.2f}" if seen.polls else "-" for each in ("p50", "p99"))
        cells = (name, seen.polls, f"{seen.per_second:.1f}", seen.counted, p50, p99)
        sys.stdout.write(f"| {' | '.join(map(str, cells))} |\n")
    found = differences(polled["driver"], polled["Locust"], options.tolerance)
    for difference in found:
        sys.stdout.write(f"FAILED: {difference}\n")
    return 1 if found else 0


def _reads(service: Service) -> int:
    statistics: dict[str, Any] = service.stats()["statistics"]
    return int(statistics["total_requests"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.open_loop.against_locust",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pollers", type=count, default=100, help="at the same time")
    parser.add_argument("--interval", type=positive, default=1.0, help="seconds between polls")
    parser.add_argument("--jobs", type=count, default=10, help="polled in turn")
    parser.add_argument("--seconds", type=positive, default=20.0, help="for each of the two")
    parser.add_argument("--backend", choices=sorted(NEEDS_REDIS), default="memory")
    parser.add_argument("--database", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument(
        "--tolerance",
        type=positive,
        default=5.0,
        help="milliseconds by which the medians may differ: Locust's own work counts as well",
    )
    return parser


if __name__ == "__main__":
    exit_at_sigterm()
    sys.exit(main(sys.argv[1:]))

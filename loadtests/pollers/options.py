"""The options of the Locust test, which Locust also shows as fields of its web page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobcache.client.core.rules import LONGEST_WAIT

if TYPE_CHECKING:
    from argparse import Namespace

    from locust.argument_parser import LocustArgumentParser

POLL_MODES = ("plain", "etag", "wait")
RENDERERS = ("external", "service")
NO_SHAPE = "none"
STAMPEDE = "stampede"
SHAPES = (NO_SHAPE, "ramp", "spike", STAMPEDE)

_STOP_TIMEOUT = "2"
"""Seconds that Locust waits for requests in progress when users are stopped. Without it, polls that
the service has counted would be missing in Locust's tables."""


class InvalidOption(ValueError):  # noqa: N818 - the message names the option
    """The value of an option is not valid; the message says what is."""


def add_options(parser: LocustArgumentParser) -> None:
    """Add the options to Locust's own."""
    parser.set_defaults(stop_timeout=_STOP_TIMEOUT)
    parser.add_argument(
        "--poll-interval",
        type=float,
        default=3.0,
        help="Seconds between two polls of a user, plus or minus a tenth",
    )
    parser.add_argument(
        "--poll-mode",
        choices=POLL_MODES,
        default="etag",
        help="plain: request the whole document each time; etag: send If-None-Match;"
        " wait: also send Prefer: wait",
    )
    parser.add_argument(
        "--hold",
        type=int,
        default=25,
        help="Seconds for which the service is asked to hold a poll in mode wait",
    )
    parser.add_argument(
        "--shared-jobs",
        type=int,
        default=0,
        help="Number of jobs that all users share; 0: each user polls a job of its own",
    )
    parser.add_argument(
        "--jobs-per-user",
        type=int,
        default=0,
        help="Number of jobs that a user follows to the end; 0: until the test is stopped",
    )
    parser.add_argument(
        "--renderer",
        choices=RENDERERS,
        default="external",
        help="external: the test reports the progress of jobs; service: the service renders",
    )
    parser.add_argument(
        "--job-seconds",
        type=float,
        default=60.0,
        help="How long a job takes with the external renderer",
    )
    parser.add_argument(
        "--job-updates",
        type=int,
        default=20,
        help="Progress reports of a job with the external renderer",
    )
    parser.add_argument(
        "--stale-after",
        type=float,
        default=2.0,
        help="A poll that lacks a version acknowledged so many seconds before is a failure",
    )
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        default=NO_SHAPE,
        help="ramp: users come in steps; spike: ten times the users for a while; stampede: all lose"
        " their connections and come back at once to an empty cache, as after a deploy",
    )
    parser.add_argument(
        "--shape-seconds",
        type=float,
        default=120.0,
        help="How long a shape takes, if there is no run time",
    )
    parser.add_argument(
        "--api-key",
        default="",
        is_secret=True,
        help="API key of a client or an operator; empty: none",
    )
    parser.add_argument(
        "--worker-key",
        default="",
        is_secret=True,
        help="API key of a worker, which reports progress; needed if the service has API keys",
    )
    parser.add_argument(
        "--operator-key",
        default="",
        is_secret=True,
        help="API key of an operator, which empties the cache for the shape stampede",
    )
    parser.add_argument(
        "--client-id",
        default="",
        help="Client of all jobs; empty: each user is a client. A client's API key needs its own",
    )
    parser.add_argument(
        "--report",
        default="",
        include_in_web_ui=False,
        help="File for all results, as JSON; empty: none",
    )


@dataclass(frozen=True, kw_only=True)
class PollOptions:
    """The options of one run.

    Attributes:
        interval: seconds between two polls of a user.
        mode: one of `POLL_MODES`.
        hold: seconds for which the service is asked to hold a poll in mode `wait`.
        shared_jobs: how many jobs all users share; 0 if each has its own.
        jobs_per_user: how many jobs a user follows; 0 for no limit.
        external: whether the test itself reports the progress of jobs.
        job_seconds: how long a job takes, if the test reports.
        job_updates: how many progress reports it makes.
        stale_after: seconds after which a poll must show an acknowledged version.
        shape: one of `SHAPES`.
        api_key: for users; empty if there is none.
        worker_key: for reports of progress.
        operator_key: to empty the cache.
        client_id: of all jobs; empty if each user has one of its own.
    """

    interval: float
    mode: str
    hold: int
    shared_jobs: int
    jobs_per_user: int
    external: bool
    job_seconds: float
    job_updates: int
    stale_after: float
    shape: str
    api_key: str
    worker_key: str
    operator_key: str
    client_id: str

    @classmethod
    def of(cls, parsed: Namespace) -> PollOptions:
        """Return the options that Locust has parsed, or got from its web page.

        Raises:
            InvalidOption: one of them is not valid.
        """
        _one_of("--poll-mode", parsed.poll_mode, POLL_MODES)
        _one_of("--renderer", parsed.renderer, RENDERERS)
        _above("--poll-interval", parsed.poll_interval, 0)
        _above("--job-seconds", parsed.job_seconds, 0)
        _above("--stale-after", parsed.stale_after, 0)
        _from_to("--hold", parsed.hold, 1, LONGEST_WAIT)
        _at_least("--shared-jobs", parsed.shared_jobs, 0)
        _at_least("--jobs-per-user", parsed.jobs_per_user, 0)
        _at_least("--job-updates", parsed.job_updates, 1)
        _one_of("--shape", parsed.shape, SHAPES)
        _above("--shape-seconds", parsed.shape_seconds, 0)
        if parsed.shape != NO_SHAPE and parsed.jobs_per_user:
            raise InvalidOption("--jobs-per-user must be 0 with a --shape: the shape ends the test")
        if parsed.shape == STAMPEDE and not parsed.shared_jobs:
            raise InvalidOption("--shared-jobs must be at least 1 with --shape stampede")
        return cls(
            interval=parsed.poll_interval,
            mode=parsed.poll_mode,
            hold=parsed.hold,
            shared_jobs=parsed.shared_jobs,
            jobs_per_user=parsed.jobs_per_user,
            external=parsed.renderer == "external",
            job_seconds=parsed.job_seconds,
            job_updates=parsed.job_updates,
            stale_after=parsed.stale_after,
            shape=parsed.shape,
            api_key=parsed.api_key,
            worker_key=parsed.worker_key,
            operator_key=parsed.operator_key,
            client_id=parsed.client_id,
        )

    @property
    def conditional(self) -> bool:
        """Whether polls say which version was seen."""
        return self.mode != "plain"

    @property
    def waits(self) -> bool:
        """Whether the service is asked to hold polls."""
        return self.mode == "wait"


def bearer(key: str) -> dict[str, str]:
    """Return the headers for an API key; none if there is no key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def _one_of(option: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InvalidOption(f"{option} must be one of {', '.join(valid)}, not {value!r}")


def _above(option: str, value: float, limit: float) -> None:
    if not (value > limit and math.isfinite(value)):
        raise InvalidOption(f"{option} must be above {limit:g}, not {value!r}")


def _at_least(option: str, value: int, limit: int) -> None:
    if value < limit:
        raise InvalidOption(f"{option} must be at least {limit}, not {value!r}")


def _from_to(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidOption(f"{option} must be {low} to {high}, not {value!r}")

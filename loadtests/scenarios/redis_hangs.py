"""Clients that go on polling while Redis does not answer."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="redis_hangs",
    description="Fifty clients poll twenty jobs, and Redis does not answer for a while.",
    users=50,
    shared_jobs=20,
    redis_hangs_after=40.0,
    redis_hangs_for=30.0,
)

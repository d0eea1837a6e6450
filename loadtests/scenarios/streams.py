"""Clients that receive changes as server-sent events."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="streams",
    description="A hundred clients follow ten streams; durations are from commit to client.",
    users=100,
    shared_jobs=10,
    driver="streams",
)

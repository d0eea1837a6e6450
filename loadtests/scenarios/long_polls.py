"""Many clients that wait for changes of one job instead of polling it."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="long_polls",
    description="A hundred clients let the service hold their polls of one job until a change.",
    users=100,
    shared_jobs=1,
    mode="wait",
    in_demonstration=True,
)

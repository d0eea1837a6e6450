"""Workers that report as fast as they can."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="writers",
    description="Eight workers report progress as fast as they can, while forty clients poll.",
    users=40,
    shared_jobs=8,
    interval=0.5,
    job_seconds=20.0,
    driver="writers",
)

"""Many pollers of one job."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="one_job",
    description="A hundred clients poll the same job.",
    users=100,
    shared_jobs=1,
    in_demonstration=True,
)

"""A thousand clients that all come while the cache is empty."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="stampede",
    description="A thousand clients poll a hundred jobs at once, while the cache is empty.",
    users=1000,
    shared_jobs=100,
    job_seconds=10.0,  # its clients poll twice, however long that takes
    driver="stampede",
    in_demonstration=True,
)

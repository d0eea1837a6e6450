"""Pages that show many jobs at once."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="dashboards",
    description="Thirty dashboards ask for the list of a client and for its ten jobs by id.",
    users=30,
    shared_jobs=30,
    driver="dashboards",
)

"""The third scenario of the first version, and many jobs with one poller each."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="users_100",
    description="A hundred clients poll one job each until it is done.",
    users=100,
)

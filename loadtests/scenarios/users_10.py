"""The second scenario of the first version: ten clients."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="users_10",
    description="Ten clients poll one job each until it is done.",
    users=10,
    in_demonstration=True,
)

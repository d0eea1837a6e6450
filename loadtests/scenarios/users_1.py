"""The first scenario of the first version: one client."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="users_1",
    description="One client polls its own job every three seconds until it is done.",
    users=1,
)

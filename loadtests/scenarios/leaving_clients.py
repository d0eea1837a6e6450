"""Clients that are slow, and clients that leave."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="leaving_clients",
    description="Of sixty clients a third leaves before the response, and a third reads it late.",
    users=60,
    shared_jobs=20,
    driver="leaving_clients",
)

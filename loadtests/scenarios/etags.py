"""Clients that send the ETag they have, and so get the document only if it is new."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="etags",
    description="A hundred clients poll twenty jobs with If-None-Match.",
    users=100,
    shared_jobs=20,
    mode="etag",
    updates=6,
    in_demonstration=True,
)

"""Clients that send the ETag they have, and so get the document only if it is new."""

from loadtests.scenario import Scenario

SCENARIO = Scenario(
    name="etags",
    description="A hundred clients poll twenty jobs with If-None-Match. The jobs have 6 updates,"
    " and those of other scenarios 20: then half of the polls would find a newer version.",
    users=100,
    shared_jobs=20,
    mode="etag",
    updates=6,
    in_demonstration=True,
)

"""All scenarios, one file each; a new scenario is a file and a line here."""

from loadtests.scenarios import (
    dashboards,
    etags,
    leaving_clients,
    long_polls,
    one_job,
    redis_hangs,
    stampede,
    streams,
    users_1,
    users_10,
    users_100,
    writers,
)

SCENARIOS = {
    module.SCENARIO.name: module.SCENARIO
    for module in (
        *(users_1, users_10, users_100, one_job, etags, stampede),
        *(dashboards, long_polls, streams, leaving_clients, writers, redis_hangs),
    )
}
"""Scenarios by name, in the order of the report."""

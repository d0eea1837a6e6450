"""All scenarios, one file each; a new scenario is a file and a line here."""

from loadtests.scenarios import etags, long_polls, one_job, users_1, users_10, users_100

SCENARIOS = {
    module.SCENARIO.name: module.SCENARIO
    for module in (users_1, users_10, users_100, one_job, etags, long_polls)
}
"""Scenarios by name, in the order of the report."""

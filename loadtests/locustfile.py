"""Users that create jobs and poll them, for Locust.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000

It works from any directory, with the web page or `--headless`, in one process or several.
`loadtests/README.md` explains the options, the rows of the tables and the exit status.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from locust import events

# Locust removes the first entry of the path once it has loaded this file.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from loadtests.pollers.load_test import LoadTest
from loadtests.pollers.user import JobUser

LOAD_TEST = LoadTest()
LOAD_TEST.listen(events)


class PollingUser(JobUser):
    """A client that creates a job, polls it until it ends, and creates the next."""

    load_test: ClassVar[LoadTest] = LOAD_TEST

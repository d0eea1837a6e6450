"""The reasons why a measurement is a failure."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.report.document import Measurement


def problems(run: Measurement, errors: Sequence[str]) -> list[str]:
    """Return what is wrong with a measurement, as sentences.

    Args:
        run: the measurement.
        errors: the first failures of requests, as text.
    """
    found = []
    failures = sum(requests.failures for requests in run.requests)
    if failures:
        found.append(f"{run.name}: {failures} failures, such as {'; '.join(errors)}")
    if run.polls == 0:
        found.append(f"{run.name}: no poll was answered")
    if not 0 < run.completed == run.jobs:
        found.append(f"{run.name}: {run.completed} of {run.jobs} jobs were seen to complete")
    if run.ends_seen != run.users:
        found.append(f"{run.name}: {run.ends_seen} of {run.users} clients saw their job's end")
    return found + [f"{run.name}: {difference}" for difference in differences(run)]


def differences(run: Measurement) -> list[str]:
    """Return where the counts of the clients and of the service differ, as sentences.

    The service reads its cache several times for a poll that it holds, so there is nothing to
    compare where polls were held, or where the test did not wait for responses. Responses to lists
    and batches do not say how they were answered: there the numbers of reads are compared.
    """
    if run.held or run.cut_off:
        return []
    if run.reads_without_outcome:
        reads = run.clients.reads + run.reads_without_outcome
        if reads == run.service.reads:
            return []
        return [f"reads: the clients counted {reads}, the service {run.service.reads}"]
    clients, service = asdict(run.clients), asdict(run.service)
    return [
        f"{name}: the clients counted {clients[name]}, the service {service[name]}"
        for name in clients
        if clients[name] != service[name]
    ]

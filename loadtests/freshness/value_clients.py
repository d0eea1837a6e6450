"""Clients of the values without a version: some read them, some change them.

A change is acknowledged once its invalidation has succeeded. From then on no read that begins may
return a lower number, from whichever process. Nothing else is promised: a change that nobody could
announce is seen when the entry expires.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from bisect import bisect_right
from typing import TYPE_CHECKING

from loadtests.connection import get, post
from loadtests.freshness.checker import Finding, Kind
from loadtests.freshness.connection import NoAnswer
from loadtests.freshness.value_routes import PATH, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtests.connection import Response
    from loadtests.freshness.clients import Watch
    from loadtests.freshness.connection import LastingConnection

VALUES = 8
"""The number of values."""

_OK = 200
_PAUSE_AFTER_FAILURE = 0.05  # seconds


class AcknowledgedNumbers:
    """The acknowledged numbers of all values.

    Args:
        clock: monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Each number that was the highest, and when it was acknowledged; both grow.
        self._numbers: dict[int, list[int]] = {}
        self._times: dict[int, list[float]] = {}

    def least(self, value_id: int) -> int:
        """Return the lowest number that a read which begins now may return."""
        numbers = self._numbers.get(value_id)
        return numbers[-1] if numbers else 0

    def acknowledge(self, value_id: int, number: int) -> None:
        """Note that the invalidation after a change has succeeded."""
        if number > self.least(value_id):
            self._numbers.setdefault(value_id, []).append(number)
            self._times.setdefault(value_id, []).append(self._clock())

    def judge(self, value_id: int, number: int, least: int, began: float) -> list[Finding]:
        """Return what is wrong with a number.

        Args:
            value_id: whose number.
            number: what was returned.
            least: what `least` returned before the read began.
            began: when it began.
        """
        if number >= least:
            return []
        since = self._times[value_id][bisect_right(self._numbers[value_id], number)]
        detail = f"value {value_id} is {number} where {least} was acknowledged"
        return [Finding(Kind.STALE_ACKNOWLEDGED, value_id, detail, max(0.0, began - since))]


async def read_values_for_ever(
    watch: Watch, numbers: AcknowledgedNumbers, number: int, seed: int, pause: float
) -> None:
    """Read any value from any process, in an endless loop."""
    chance = random.Random(f"{seed} reader of values {number}")  # noqa: S311 - to be repeatable
    connections = watch.connections()
    while True:
        await asyncio.sleep(pause)
        value_id, service = chance.randrange(VALUES), chance.choice(watch.services)
        scope, least, began = watch.scope, numbers.least(value_id), time.monotonic()
        answer = await _send(connections[service.number], get(f"{PATH}/{value_id}"))
        if answer is None or answer.status != _OK:
            await asyncio.sleep(_PAUSE_AFTER_FAILURE)
            continue
        watch.tallies[watch.scope.fault].value_reads += 1
        found = int(json.loads(answer.body))
        what = f"reader of values {number}, process {service.number}: {found}"
        watch.history.responded(key_of(value_id), began, what)
        findings = numbers.judge(value_id, found, least, began)
        if findings:
            watch.judge(findings, scope, service, answer, key_of)


async def change_values_for_ever(
    watch: Watch, numbers: AcknowledgedNumbers, number: int, seed: int, pause: float
) -> None:
    """Change any value through any process, in an endless loop."""
    chance = random.Random(f"{seed} writer of values {number}")  # noqa: S311 - to be repeatable
    connections = watch.connections()
    while True:
        await asyncio.sleep(chance.uniform(0, 2 * pause))
        value_id, service = chance.randrange(VALUES), watch.up(chance)
        began = time.monotonic()
        answer = await _send(connections[service.number], post(f"{PATH}/{value_id}"))
        if answer is not None:
            what = f"writer of values, process {service.number}, {answer.status}: {answer.body!r}"
            watch.history.responded(key_of(value_id), began, what)
        if answer is not None and answer.status == _OK:
            watch.tallies[watch.scope.fault].value_changes += 1
            numbers.acknowledge(value_id, int(json.loads(answer.body)))


async def _send(connection: LastingConnection, request: bytes) -> Response | None:
    """Return the response, or None if there was none: polls report that as a finding."""
    try:
        return await connection.send(request)
    except NoAnswer:
        await asyncio.sleep(_PAUSE_AFTER_FAILURE)
        return None

"""What led to a violation: the requests of all clients, the faults, and what each process did.

All times are those of the monotonic clock, which the processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from typing import TYPE_CHECKING

from loadtests.connection import get
from loadtests.freshness.connection import LastingConnection, NoAnswer
from loadtests.freshness.trace import PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtests.freshness.cluster import Service

    _Events = list[tuple[float, str]]

_MOST = 5  # violations that are explained
_RESPONSES = 500  # of a key that are kept
_FAULTS = 100  # that are kept
_BEFORE, _AFTER = 6.0, 1.0  # seconds around a violation
_OK = 200


class History:
    """The last responses about each key, and the faults of the run.

    Args:
        services: the processes.

    Attributes:
        explanations: of the first violations, each a text of several lines.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        self.explanations: list[str] = []
        self._services = services
        self._responses: defaultdict[str, deque[tuple[float, float, str]]] = defaultdict(
            lambda: deque(maxlen=_RESPONSES)
        )
        self._faults: deque[tuple[float, str]] = deque(maxlen=_FAULTS)
        self._explaining: list[asyncio.Task[None]] = []

    def fault(self, what: str) -> None:
        """Note that a fault begins, or is healed."""
        self._faults.append((time.monotonic(), what))

    def responded(self, key: str, sent_at: float, what: str) -> None:
        """Note a response about a key that has just arrived."""
        self._responses[key].append((sent_at, time.monotonic(), what))

    def explain(self, key: str, violation: str) -> None:
        """Explain a violation that was just found, in the background."""
        if len(self._explaining) < _MOST:
            self._explaining.append(asyncio.create_task(self._explain(key, violation)))

    async def finish(self) -> None:
        """Wait until all explanations are there. The processes must still run."""
        await asyncio.gather(*self._explaining)

    async def _explain(self, key: str, violation: str) -> None:
        found_at = time.monotonic()
        await asyncio.sleep(_AFTER)  # what came next often explains it
        events = [*self._faults]
        for sent_at, arrived_at, what in self._responses[key]:
            events += [(sent_at, f"client sends: {what}"), (arrived_at, f"client got: {what}")]
        for service in self._services:
            events += await _events_of(service, key)
        first, last = found_at - _BEFORE, found_at + _AFTER
        lines = [f"{at:.4f} {what}" for at, what in sorted(events) if first <= at <= last]
        heading = f"{violation}\nfound at {found_at:.4f}, key {key}"
        self.explanations.append("\n".join([heading, *lines, ""]))


async def _events_of(service: Service, key: str) -> _Events:
    connection = LastingConnection(service.port)
    try:
        answer = await connection.send(get(f"{PATH}?key={key}"))
    except NoAnswer as error:
        return [(time.monotonic(), f"process {service.number} does not tell: {error}")]
    finally:
        connection.close()
    found = json.loads(answer.body) if answer.status == _OK else []
    return [(at, f"process {service.number}: {what}") for at, what in found]

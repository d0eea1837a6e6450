"""A guarded store, once with operations that need no task."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.jobcache.resilience.rig import FutureStore, Rig, Store


@pytest.fixture(params=[Store, FutureStore])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(request.param())
    yield rig
    await rig.guard.aclose()

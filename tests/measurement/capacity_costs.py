"""Coefficients with round numbers, for examples that are computed by hand."""

from __future__ import annotations

from loadtests.capacity.coefficients import (
    Coefficients,
    DatabaseCost,
    RedisCost,
    ServiceCost,
    Sizes,
)

REDIS = RedisCost(idle=0.0, wakeup=0.0, get=10e-6, script=20e-6, report=1e-6)
SERVICE = ServiceCost(
    idle=0.0,
    wakeup=0.0,
    poll=50e-6,
    conditional=0.0,
    load=1e-3,
    refill=100e-6,
    update=2e-3,
    report=5e-6,
)
COSTS = Coefficients(
    services=dict.fromkeys(("null", "memory", "redis", "tiered"), SERVICE),
    redis=REDIS,
    database=DatabaseCost(select=100e-6, update=400e-6),
    sizes=Sizes(
        response=300.0,
        not_modified=200.0,
        get=150.0,
        script=400.0,
        report=50.0,
        process=100e6,
        connection=10e3,
        entry=500.0,
        redis=1e6,
        redis_entry=200.0,
    ),
    origin={"machine": "none", "commit": "none"},
)

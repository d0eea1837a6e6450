"""A measurement of a load test, as it could have been."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loadtests.report.document import Bucket, Measurement, Outcomes, Requests, Sample


def sample(second: float, reads: int, hits: int, statements: int) -> Sample:
    return Sample(
        second=second,
        reads=reads,
        hits=hits,
        statements=statements,
        cpu_seconds={"service": second / 4, "database": second / 8},
        machine_seconds=100 + second,
        resident_bytes={"service": 80_000_000 + int(second) * 1_000_000},
    )


def measurement(backend: str, *, hits: int, misses: int, **other: Any) -> Measurement:
    outcomes = Outcomes(hits=hits, misses=misses, bypasses=3, stale=0, coalesced=2)
    run = Measurement(
        scenario="users_10",
        backend=backend,
        users=10,
        seconds=12.5,
        requests=[
            Requests(
                name="poll: hit",
                count=1234,
                failures=0,
                p50_ms=1.23,
                p95_ms=4.56,
                p99_ms=7.89,
                max_ms=31.75,
            )
        ],
        polls_ms=[Bucket(upper_ms=1.5, count=90), Bucket(upper_ms=23.25, count=10)],
        polls=hits + misses + 3,
        clients=outcomes,
        held=0,
        service=outcomes,
        process_reads=[hits, misses + 3],
        not_modified=77,
        jobs=20,
        completed=20,
        ends_seen=10,
        first_polls=150,
        first_polls_missed=0,
        updates=200,
        update_polls=300,
        delay_ms={"p50": 1500.0, "p99": 3000.0},
        received_bytes=123_456,
        sent_bytes=65_432,
        cut_off=0,
        reads_without_outcome=0,
        cache_errors=0,
        statements={"load": misses, "write": 411},
        database={"xact_commit": 9876},
        inside_us={
            "hit": {"count": hits, "p50": 12.5},
            "miss": {"count": misses, "p50": 2500.0},
        },
        samples=[sample(0, 0, 0, 0), sample(1, 100, 90, 30), sample(3, 300, 250, 50)],
        faults=[],
    )
    return replace(run, **other)

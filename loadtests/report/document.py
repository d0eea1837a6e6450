"""The document of a load test: every figure of the report, as it was measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import TypeAdapter


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The requests of one name, as the clients saw them.

    Attributes:
        name: the row in Locust's table, such as `poll: hit`.
        count: how many were answered, failures included.
        failures: how many were answered wrongly or not at all.
        p50_ms: the median duration in milliseconds; like the others, None without a request.
        p95_ms: the 95th percentile.
        p99_ms: the 99th percentile.
        max_ms: the longest.
    """

    name: str
    count: int
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How the cache answered reads; clients and service both count them.

    Attributes:
        hits: reads answered from the cache.
        misses: reads that needed the database, because nothing fresh was stored.
        bypasses: reads that were sent to the database, because a change was being committed or the
            cache was unavailable.
        stale: reads answered by an expired entry, because the database was unavailable.
        coalesced: of all these, reads that shared the query of another one.
    """

    hits: int
    misses: int
    bypasses: int
    stale: int
    coalesced: int

    @property
    def reads(self) -> int:
        """Return the number of reads."""
        return self.hits + self.misses + self.bypasses + self.stale

    @property
    def hit_rate(self) -> float | None:
        """Return the percentage of hits; None without a read."""
        return 100 * self.hits / self.reads if self.reads else None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Counters at one moment of a run.

    Attributes:
        second: seconds since the beginning of the run.
        reads: reads that the service has answered since its start.
        hits: of these, from the cache.
        statements: statements that the service has sent to the database since its start.
        cpu_seconds: processor time since its start, by the name of the process.
        resident_bytes: resident memory, by the name of the process.
        machine_seconds: processor time of all programs of the machine since it started.
    """

    second: float
    reads: int
    hits: int
    statements: int
    cpu_seconds: dict[str, float]
    resident_bytes: dict[str, int]
    machine_seconds: float


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Requests of a histogram that took up to `upper_ms`, and longer than the bucket before."""

    upper_ms: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that was broken or mended during a run, and when."""

    second: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One scenario on one backend.

    Attributes:
        scenario: the name of the scenario.
        backend: the name of the backend.
        users: how many clients there were.
        seconds: for how long they were there.
        requests: what they sent, one row for each name.
        polls_ms: the durations of all polls, the shortest first.
        polls: how many polls the clients sent.
        clients: how they were answered, as the responses said; those that were held are not counted
            here, because the service reads the cache several times for each.
        held: how many were held until there was a change, or their time was up.
        service: how the service says that it has answered, over all of its processes.
        process_reads: reads that each of its processes has answered.
        not_modified: polls that were answered 304, from the cache or not.
        jobs: jobs that the clients polled.
        completed: of these, jobs whose end a client saw.
        ends_seen: clients that saw the end of their job.
        first_polls: polls that were the first to bring a client a newer version.
        first_polls_missed: of these, polls for which the cache did not have that version.
        updates: versions that came while a client followed a job, added up over clients.
        update_polls: the polls that the clients sent for them.
        delay_ms: percentiles of the time from the commit of a version until a client had it.
        received_bytes: what the clients received, headers included.
        sent_bytes: what they sent.
        cut_off: polls whose response was not waited for, because the time was up.
        reads_without_outcome: reads of the cache by lists and batches. Their responses do not say
            how they were answered.
        cache_errors: operations of the cache that failed or took too long.
        statements: statements that the service has sent to the database, by purpose.
        database: what the database counted in the same time; empty for SQLite.
        inside_us: for each operation inside the service, its count and percentiles in microseconds.
        samples: counters of every second.
        faults: what was broken and mended during the run.
        problems: the reasons why the run is a failure, as sentences.
    """

    scenario: str
    backend: str
    users: int
    seconds: float
    requests: list[Requests]
    polls_ms: list[Bucket]
    polls: int
    clients: Outcomes
    held: int
    service: Outcomes
    process_reads: list[int]
    not_modified: int
    jobs: int
    completed: int
    ends_seen: int
    first_polls: int
    first_polls_missed: int
    updates: int
    update_polls: int
    delay_ms: dict[str, float | None]
    received_bytes: int
    sent_bytes: int
    cut_off: int
    reads_without_outcome: int
    cache_errors: int
    statements: dict[str, int]
    database: dict[str, int]
    inside_us: dict[str, dict[str, float]]
    samples: list[Sample]
    faults: list[Fault]
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the scenario and the backend, as text."""
        return f"{self.scenario} on {self.backend}"


@dataclass(frozen=True, kw_only=True)
class Described:
    """A scenario of the report.

    Attributes:
        name: its name.
        description: what its clients do, as a sentence.
        settings: its users, times and other settings, as text by their names.
    """

    name: str
    description: str
    settings: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A load test.

    Attributes:
        command: the command line.
        surroundings: date, machine, Python and commit.
        quick: whether time was compressed: counts and ratios are true, goals are not judged.
        interrupted: whether runs are missing because the command was ended.
        planned: how many runs there should be.
        scenarios: the scenarios, in the order of the report.
        runs: the runs that have finished.
        problems: the reasons why runs that have not finished failed, as sentences.
    """

    command: str
    surroundings: dict[str, str]
    quick: bool
    interrupted: bool
    planned: int
    scenarios: list[Described]
    runs: list[Measurement]
    problems: list[str]

    @property
    def all_problems(self) -> list[str]:
        """Return the problems of all runs; one more if nothing was measured."""
        found = [*self.problems, *(problem for run in self.runs for problem in run.problems)]
        if not self.runs:
            found.append("nothing was measured")
        return found


def to_json(document: Document) -> bytes:
    """Return the document as JSON."""
    return TypeAdapter(Document).dump_json(document, indent=1)


def from_json(text: bytes) -> Document:
    """Return the document of a JSON text.

    Raises:
        ValueError: the text is no such document.
    """
    return TypeAdapter(Document).validate_json(text)

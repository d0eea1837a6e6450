"""Reads, loads and writes have spans, if they are followed at all, and know what they belong to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags

from jobcache import Document, JobCache
from jobcache.observability.opentelemetry import OpenTelemetry
from tests.spans import CLIENT, Recording, attributes, dice, is_part_of, names
from tests.subjects import FakeClock

DOCUMENT = Document(version=1, owner="acme", body=b"{}")


async def load() -> Document:
    return DOCUMENT


async def load_many(keys: Sequence[str]) -> Mapping[str, Document]:
    return dict.fromkeys(keys, DOCUMENT)


async def fail() -> Document:
    raise LookupError("no such table")


def following(recording: Recording) -> JobCache:
    return JobCache.from_url("memory://", instrumentation=recording.instrumentation)


async def test_a_read_says_how_it_was_answered_and_its_load_is_a_part_of_it() -> None:
    recording = Recording()
    async with following(recording) as cache:
        await cache.read("job:7", load)
        loaded, read = recording.taken()
        assert names([loaded, read]) == ["load", "read"]
        assert is_part_of(loaded, read)
        assert attributes(read) == {
            "key": "job:7",
            "tier": "memory",
            "result": "miss",
            "coalesced": False,
        }
        assert attributes(loaded) == {"key": "job:7", "keys": 1}
        await cache.read("job:7", load, min_version=1)
        (hit,) = recording.taken()
        assert attributes(hit)["result"] == "hit"


async def test_what_a_loader_does_is_a_part_of_its_load() -> None:
    recording = Recording()

    async def select() -> Document:
        with recording.tracer.start_as_current_span("select"):
            return DOCUMENT

    async with following(recording) as cache:
        await cache.read("job:7", select)
    selected, loaded, _ = recording.taken()
    assert names([selected, loaded]) == ["select", "load"]
    assert is_part_of(selected, loaded)


async def test_a_value_without_a_version_has_spans_too() -> None:
    recording = Recording()

    async def value() -> int:
        return 7

    async with following(recording) as cache:
        await cache.get_or_load("value", value, ttl=60)
        loaded, read = recording.taken()
        assert is_part_of(loaded, read)
        assert attributes(read)["result"] == "miss"
        await cache.get_or_load("value", value, ttl=60, bypass=True)
        loaded, read = recording.taken()
        assert (names([loaded, read]), attributes(read)["result"]) == (["load", "read"], "bypass")


async def test_the_load_of_a_batch_has_a_span() -> None:
    recording = Recording()
    async with following(recording) as cache:
        await cache.read_many(["a", "b"], load_many)
    (loaded,) = recording.taken()
    assert attributes(loaded) == {"key": "a", "keys": 2}


async def test_reads_that_share_a_load_say_so() -> None:
    recording = Recording()
    async with following(recording) as cache:
        await asyncio.gather(*(cache.read("job:7", load) for _ in range(3)))
    spans = recording.taken()
    assert names(spans).count("load") == 1
    reads = [attributes(span)["coalesced"] for span in spans if span.name == "jobcache.read"]
    assert sorted(reads) == [False, True, True]


async def test_a_write_lasts_until_it_is_published() -> None:
    recording = Recording()
    async with following(recording) as cache:
        async with cache.write("job:7") as write:
            with recording.tracer.start_as_current_span("update"):
                write.publish("job:7", DOCUMENT)
            assert names(recording.taken()) == ["update"]
        (written,) = recording.taken()
    assert (written.name, attributes(written)) == ("jobcache.write", {"result": "published"})


async def test_an_error_is_recorded() -> None:
    recording = Recording()
    async with following(recording) as cache:
        with pytest.raises(LookupError):
            await cache.read("job:7", fail)
        loaded, read = recording.taken()
        with pytest.raises(LookupError):
            async with cache.write("job:7"):
                await fail()
        (written,) = recording.taken()
    for span in (loaded, read, written):
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "LookupError: no such table"
        assert [event.name for event in span.events] == ["exception"]


# --- what is followed ---


async def test_the_rate_decides_for_a_whole_operation() -> None:
    recording = Recording(sample_rate=0.25, random=dice(0.25, 0.24))
    async with following(recording) as cache:
        await cache.read("a", load)  # neither the read nor its load
        assert recording.taken() == []
        await cache.read("b", load)
        assert names(recording.taken()) == ["load", "read"]


async def test_there_is_a_limit_for_each_second_which_parts_do_not_count_for() -> None:
    clock = FakeClock()
    recording = Recording(most_per_second=2, clock=clock)
    async with following(recording) as cache:
        for number in range(4):
            await cache.read(f"{number}", load)
        assert names(recording.taken()) == ["load", "read"] * 2
        clock.now += 1
        await cache.read("next", load)
        assert names(recording.taken()) == ["load", "read"]


async def test_a_part_of_the_users_own_span_is_followed_as_that_is() -> None:
    recording = Recording(sample_rate=0.5, random=dice())
    async with following(recording) as cache:
        with recording.tracer.start_as_current_span("request"):
            await cache.read("a", load)
        loaded, read, request = recording.taken()
        assert is_part_of(read, request)
        assert is_part_of(loaded, read)
        unsampled = SpanContext(1, 1, is_remote=True, trace_flags=TraceFlags(0))
        with trace.use_span(NonRecordingSpan(unsampled)):
            await cache.read("b", load)
        assert recording.taken() == []


def test_a_poll_is_followed_if_its_client_follows_it() -> None:
    recording = Recording(sample_rate=0.5, random=dice(0.9))
    begin = recording.instrumentation.begin
    span = begin("poll", traceparent=CLIENT.format(flags="01"))
    assert span.followed
    span.end({})
    (poll,) = recording.taken()
    assert poll.parent is not None
    assert f"{poll.parent.span_id:x}" == "b7ad6b7169203331"
    assert not begin("poll", traceparent=CLIENT.format(flags="00")).followed
    with begin("poll", traceparent=CLIENT.format(flags="00")).active():
        assert not begin("load").followed
    assert not begin("poll", traceparent="rubbish").followed, "the rate decides"
    assert recording.taken() == []


@pytest.mark.parametrize("rate", [-0.1, 1.1])
def test_the_rate_is_from_0_to_1(rate: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        OpenTelemetry(sample_rate=rate)

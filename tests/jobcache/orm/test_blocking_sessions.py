"""Sessions of threads, with the cache for threads."""

# ruff: noqa: PT012 - the place in the block that raises is tested

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from jobcache import CacheOutcome
from jobcache.orm.sqlalchemy import CoherentSession, mark_changed
from jobcache.sync import JobCache
from tests.jobcache.orm.exports import EXPORTS, Export
from tests.jobcache.orm.reading import Seen, bypass, hit, miss

Sessions = sessionmaker[CoherentSession]


def poll(cache: JobCache, engine: Engine) -> Seen:
    load = EXPORTS.loader(sessionmaker(engine))
    result = cache.read("export:1", load(1))
    expected = load(1)()
    assert result.missing if expected is None else result.body == expected.body
    return result.version, result.outcome


def test_a_session_publishes_what_it_commits(
    blocking_sessions: Sessions, blocking_cache: JobCache, blocking_engine: Engine
) -> None:
    assert poll(blocking_cache, blocking_engine) == miss(0)
    with blocking_sessions.begin() as session:
        session.add(Export(id=1))
    assert poll(blocking_cache, blocking_engine) == hit(1)
    with blocking_sessions() as session:
        export = session.get_one(Export, 1)
        export.percent = 1
        session.flush()
        session.rollback()
        export.percent = 2
        with pytest.raises(LookupError), session.begin_nested():
            export.percent = 3
            session.flush()
            raise LookupError
        assert poll(blocking_cache, blocking_engine) == hit(1)
        session.commit()
    assert poll(blocking_cache, blocking_engine) == hit(2)
    with blocking_sessions.begin() as session:
        mark_changed(session, Export, 1)
        session.delete(session.get_one(Export, 1))
    assert poll(blocking_cache, blocking_engine) == miss(0)


def test_a_thread_that_is_interrupted_before_it_publishes_leaves_the_fence(
    blocking_sessions: Sessions,
    blocking_cache: JobCache,
    blocking_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with blocking_sessions.begin() as session:
        session.add(Export(id=1))
    dialect = blocking_engine.dialect
    commit = dialect.do_commit

    def interrupted(connection: object) -> None:
        commit(connection)
        raise KeyboardInterrupt

    monkeypatch.setattr(dialect, "do_commit", interrupted)
    with pytest.raises(KeyboardInterrupt), blocking_sessions.begin() as session:
        session.get_one(Export, 1).percent = 1
    monkeypatch.undo()
    assert poll(blocking_cache, blocking_engine) == bypass(2)


def test_a_closed_cache_fails_the_commit_and_loses_nothing(
    blocking_sessions: Sessions, blocking_cache: JobCache, blocking_engine: Engine
) -> None:
    blocking_cache.close()
    with pytest.raises(Exception, match="closed"), blocking_sessions.begin() as session:
        session.add(Export(id=1))
    with sessionmaker(blocking_engine)() as session:
        assert session.get(Export, 1) is None


def test_many_threads_share_the_cache(
    blocking_sessions: Sessions, blocking_cache: JobCache, blocking_engine: Engine
) -> None:
    with blocking_sessions.begin() as session:
        session.add(Export(id=1))

    def change(_: int) -> CacheOutcome:
        with blocking_sessions.begin() as session:
            session.get_one(Export, 1, with_for_update=True).percent += 1
        return poll(blocking_cache, blocking_engine)[1]

    with ThreadPoolExecutor(1) as threads:
        assert set(threads.map(change, range(5))) == {CacheOutcome.HIT}

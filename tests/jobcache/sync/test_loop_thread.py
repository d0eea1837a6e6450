"""The event loop of a synchronous cache: when it cannot start, and when it is not needed."""

from __future__ import annotations

import errno
import os
from queue import Empty
from threading import Thread

import pytest
from gevent import get_hub

from jobcache._threads import _GreenletInbox
from jobcache.errors import CacheClosed
from jobcache.sync import _loop_thread
from jobcache.sync._loop_thread import CallingThread, LoopThread


class Closed:
    """What the loop threads of a test have closed."""

    def __init__(self) -> None:
        self.targets: list[str] = []

    async def __call__(self, target: str) -> None:
        self.targets.append(target)


async def target_of(target: str, _: CallingThread) -> str:
    return target


def test_a_loop_that_cannot_be_made_is_made_by_a_later_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    closed = Closed()
    loop_thread = LoopThread("a test", lambda: "target", closed)
    with monkeypatch.context() as full:
        full.setattr(_loop_thread, "make_event_loop", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                loop_thread.call(target_of)
    assert loop_thread.call(target_of) == "target"
    loop_thread.close()
    assert closed.targets == ["target"]


def test_what_was_closed_before_it_was_used_stays_closed() -> None:
    closed = Closed()
    loop_thread = LoopThread("a test", lambda: "target", closed)
    loop_thread.close()
    for _ in range(2):
        with pytest.raises(CacheClosed):
            loop_thread.call(target_of)
    loop_thread.close()
    assert closed.targets == []


def test_an_object_that_was_never_made_is_not_closed() -> None:
    def fail() -> str:
        raise LookupError("no settings")

    closed = Closed()
    loop_thread = LoopThread("a test", fail, closed)
    with pytest.raises(LookupError, match="no settings"):
        loop_thread.call(target_of)
    loop_thread.close()
    assert closed.targets == []


def test_a_greenlet_waits_for_a_message_only_as_long_as_it_says() -> None:
    found: list[object] = []

    def wait() -> None:
        inbox: _GreenletInbox[str] = _GreenletInbox(get_hub())
        try:
            inbox.get(timeout=0.001)
        except Empty as empty:
            found.append(empty)
        Thread(target=inbox.put, args=["a message"]).start()
        found.append(inbox.get())
        get_hub().destroy(destroy_loop=True)

    thread = Thread(target=wait)
    thread.start()
    thread.join(60)
    assert isinstance(found[0], Empty)
    assert found[1:] == ["a message"]

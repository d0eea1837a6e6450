"""Decisions about Host headers are kept, but not of any number of them."""

from __future__ import annotations

import pytest

from app.http import hosts
from app.http.hosts import AllowedHosts


def test_any_number_of_hosts_takes_a_limited_amount_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hosts, "_KEPT", 3)
    allowed = AllowedHosts(["*.example.com"])
    for number in range(10):
        assert allowed.allows(b"%d.example.com" % number)
        assert not allowed.allows(b"%d.example.org" % number)
    assert len(allowed.decisions) <= 3

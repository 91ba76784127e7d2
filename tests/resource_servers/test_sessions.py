"""Sessions by signed token: their time and their number are bounded."""

import pytest

from gym_bridge.resource_servers.sessions import SessionMissing, Sessions


def test_sessions_end_after_their_time_and_the_longest_idle_makes_room():
    now = 0.0
    sessions: Sessions[str] = Sessions(ttl_s=10, limit=2, clock=lambda: now)
    first, second = sessions.open("first"), sessions.open("second")
    assert sessions.find(first) == "first"
    third = sessions.open("third")
    with pytest.raises(SessionMissing):
        sessions.find(second)
    now = 8.0
    assert sessions.find(third) == "third"
    now = 11.0
    with pytest.raises(SessionMissing):
        sessions.find(first)
    assert sessions.find(third) == "third"
    assert len(sessions) == 1

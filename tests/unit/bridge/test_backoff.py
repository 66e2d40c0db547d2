"""How long a bridge waits before it tries again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lockgate.bridge.backoff import Backoff
from lockgate.config.model import RestartTimeout


@given(st.integers(1, 3600), st.integers(0, 3600), st.integers(1, 20))
def test_waits_lie_between_base_and_cap(base: int, more: int, count: int) -> None:
    backoff = Backoff(RestartTimeout(base, base + more))
    for _ in range(count):
        assert base <= backoff.next_seconds() <= base + more


def test_one_value_is_a_constant() -> None:
    backoff = Backoff(RestartTimeout(7, 7))
    assert [backoff.next_seconds() for _ in range(3)] == [7, 7, 7]


def test_waits_grow_up_to_the_cap() -> None:
    backoff = Backoff(RestartTimeout(1, 20), uniform=lambda low, high: high)
    assert [backoff.next_seconds() for _ in range(5)] == [3, 9, 20, 20, 20]


def test_a_stable_connection_begins_them_anew_and_a_short_one_does_not() -> None:
    backoff = Backoff(RestartTimeout(1, 20, 10), uniform=lambda low, high: high)
    backoff.next_seconds()
    backoff.connected_for(9.9)
    assert backoff.next_seconds() == 9
    backoff.connected_for(10.0)
    assert backoff.next_seconds() == 3


def test_bridges_that_lost_the_same_broker_spread_out() -> None:
    assert len({Backoff(RestartTimeout()).next_seconds() for _ in range(20)}) > 10

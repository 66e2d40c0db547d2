"""Token buckets and the hold-off for flapping, with the clock in the test's hand."""

from __future__ import annotations

import pytest

from lockgate.broker.rates import Flapping, Rate, TokenBucket

NAMES = 10_000


def test_a_bucket_lets_a_second_s_worth_pass_at_once() -> None:
    bucket = TokenBucket(3.0, 100.0)
    assert [bucket.allows(100.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.allows(100.5)  # a token and a half are back, one and the half
    assert not bucket.allows(100.5)
    assert [bucket.allows(200.0) for _ in range(4)] == [True, True, True, False]


def test_a_slow_bucket_lets_one_pass() -> None:
    bucket = TokenBucket(0.25, 100.0)
    assert [bucket.allows(100.0), bucket.allows(103.9), bucket.allows(104.0)] == [True, False, True]


def test_spending_says_how_long_to_wait() -> None:
    bucket = TokenBucket(2.0, 100.0)
    assert [bucket.spend(100.0) for _ in range(4)] == [0.0, 0.5, 1.0, 1.5]
    assert bucket.spend(101.5) == 0.5
    assert TokenBucket(0.5, 0.0).spend(0.0) == 2.0
    assert TokenBucket(2.5, 0.0).spend(0.0) == 0.0  # a token and a half are left


def test_a_bucket_is_full_when_all_it_gave_is_back() -> None:
    bucket = TokenBucket(4.0, 100.0)
    assert bucket.is_full(100.0)
    bucket.spend(100.0)
    assert not bucket.is_full(100.2)
    assert bucket.is_full(100.25)


def test_each_name_has_its_rate() -> None:
    rate = Rate(1.0)
    assert [rate.allows(name, 0.0) for name in ("a", "a", "b", "b")] == [True, False, True, False]


def test_a_rate_of_0_is_no_limit() -> None:
    rate = Rate(0.0)
    assert all(rate.allows("a", 0.0) for _ in range(100))
    assert not rate._buckets


def test_names_whose_bucket_is_full_are_forgotten_first() -> None:
    rate = Rate(1.0)
    for number in range(NAMES - 1):
        rate.allows(str(number), 0.0)
    rate.allows("busy", 10.0)
    assert len(rate._buckets) == NAMES
    assert rate.allows("new", 10.0)
    assert set(rate._buckets) == {hash("busy"), hash("new")}
    assert not rate.allows("busy", 10.5)


def test_when_all_names_are_busy_the_older_half_is_forgotten() -> None:
    rate = Rate(0.01)
    for number in range(NAMES + 1):
        rate.allows(str(number), 0.0)
    assert len(rate._buckets) == NAMES // 2 + 1
    assert rate.allows("0", 1.0)
    assert not rate.allows(str(NAMES // 2), 1.0)


def test_no_name_is_forgotten_for_one_that_is_known() -> None:
    rate, flapping = Rate(0.01), Flapping(1, 60.0, 300.0)
    for number in range(NAMES):
        rate.allows(str(number), 0.0)
        flapping.held_off(str(number), 0.0)
    assert not rate.allows("1", 0.0)
    assert flapping.held_off("1", 0.0) == 300.0
    assert flapping.held_off("2", 60.0) == 0.0  # its window is over, another begins
    assert len(rate._buckets) == len(flapping._windows) == NAMES


def test_who_comes_too_often_is_held_off_for_a_time() -> None:
    flapping = Flapping(2, 60.0, 300.0)
    assert [flapping.held_off("a", at) for at in (0.0, 30.0, 59.0, 100.0, 358.5)] == [0.0, 0.0, 300.0, 259.0, 0.5]
    assert [flapping.held_off("a", at) for at in (359.0, 360.0, 361.0)] == [0.0, 0.0, 300.0]
    assert flapping.held_off("b", 361.0) == 0.0


def test_a_window_ends_after_its_length() -> None:
    flapping = Flapping(1, 60.0, 300.0)
    assert [flapping.held_off("a", at) for at in (0.0, 60.0, 119.5)] == [0.0, 0.0, 300.0]


def test_who_is_held_off_for_less_than_the_window_counts_on_in_it() -> None:
    flapping = Flapping(1, 60.0, 10.0)
    assert [flapping.held_off("a", at) for at in (0.0, 1.0, 11.0, 15.0, 61.0)] == [0.0, 10.0, 10.0, 6.0, 0.0]


def test_flapping_that_is_not_limited_is_not_counted() -> None:
    flapping = Flapping(0, 60.0, 300.0)
    assert [flapping.held_off("a", 0.0) for _ in range(100)] == [0.0] * 100
    assert not flapping._windows


@pytest.mark.parametrize(("later", "kept"), [(1059.5, True), (1060.0, False)])
def test_windows_that_are_over_are_forgotten_first(later: float, kept: bool) -> None:
    flapping = Flapping(1, 60.0, 300.0)
    flapping.held_off("held", 800.0)
    flapping.held_off("held", 800.0)
    for number in range(NAMES - 1):
        flapping.held_off(str(number), 1000.0)
    flapping.held_off("new", later)
    assert len(flapping._windows) == (NAMES // 2 + 1 if kept else 2)
    assert flapping.held_off(str(NAMES - 2), later) == (300.0 if kept else 0.0)
    if not kept:
        assert flapping.held_off("held", later) == 1100.0 - later

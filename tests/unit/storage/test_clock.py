"""The store's time over restarts, boots, and steps of the wall clock."""

from __future__ import annotations

import pytest

from lockgate.broker.ports import NEVER
from lockgate.storage.clock import ClockRow, StoreClock
from lockgate.telemetry.clock import Moment


class Machine:
    """Clocks that the test sets."""

    def __init__(self, boot_id: str = "first", boottime: float = 500.0, wall: float = 1e9, good: bool = True) -> None:
        self.boot_id = boot_id
        self.boottime = boottime
        self.wall = wall
        self.good = good

    def now(self) -> Moment:
        return Moment(self.boot_id, int(self.boottime * 1e9), int(self.wall * 1e9), self.good)


NOTED = ClockRow(store_time=1000.0, boottime=500.0, boot_id="first", wall_time=1e9, clock_ok=True)


def test_a_new_store_begins_at_its_first_second() -> None:
    clock = StoreClock(Machine(boottime=500.0), None)
    assert clock.off_seconds == 0.0
    assert clock.to_store(500.0) == 1.0
    assert clock.from_store(11.0) == 510.0


def test_never_stays_never_and_no_time_is_taken_for_it() -> None:
    clock = StoreClock(Machine(), NOTED)
    assert clock.to_store(NEVER) == NEVER
    assert clock.from_store(NEVER) == NEVER


def test_within_a_boot_steps_of_the_wall_clock_do_not_matter() -> None:
    for wall in (1e9 - 86400, 1e9 + 86400, 0.0):
        clock = StoreClock(Machine(boottime=530.0, wall=wall), NOTED)
        assert clock.off_seconds == 0.0
        assert clock.to_store(530.0) == 1030.0
        assert clock.from_store(1040.0) == 540.0


def test_across_boots_the_time_between_two_good_clocks_has_passed() -> None:
    clock = StoreClock(Machine("second", boottime=20.0, wall=1e9 + 3600), NOTED)
    assert clock.off_seconds == 3600.0
    assert clock.to_store(20.0) == 4600.0


@pytest.mark.parametrize(
    ("noted_good", "good", "wall"), [(False, True, 1e9 + 60), (True, False, 1e9 + 60), (True, True, 1e9 - 60)]
)
def test_across_boots_without_two_good_clocks_nobody_knows_and_time_goes_on_where_it_stopped(
    noted_good: bool, good: bool, wall: float
) -> None:
    clock = StoreClock(Machine("second", 20.0, wall, good), NOTED._replace(clock_ok=noted_good))
    assert clock.off_seconds is None
    assert clock.to_store(20.0) == 1000.0


def test_no_interval_is_longer_than_mqtt_can_say() -> None:
    clock = StoreClock(Machine(boottime=500.0), NOTED)
    assert clock.from_store(1e11) == 500.0 + 0xFFFF_FFFF
    assert clock.from_store(1000.0 + 0xFFFF_FFFE) == 500.0 + 0xFFFF_FFFE


def test_the_clock_is_noted_at_first_each_minute_and_when_it_is_set() -> None:
    machine = Machine(boottime=500.0, good=False)
    clock = StoreClock(machine, None)
    assert clock.note() == ClockRow(1.0, 500.0, "first", 1e9, False)
    machine.boottime = 559.0
    assert clock.note() is None
    machine.good, machine.wall = True, 2e9
    assert clock.note() == ClockRow(60.0, 559.0, "first", 2e9, True)
    assert clock.note() is None
    machine.boottime, machine.wall = 619.0, 1e9  # set back by years: the store's time goes on
    assert clock.note() == ClockRow(120.0, 619.0, "first", 1e9, True)


def test_after_another_boot_the_clock_is_noted_at_once() -> None:
    clock = StoreClock(Machine("second", 20.0, 1e9 + 100), NOTED)
    assert clock.note() == ClockRow(1100.0, 20.0, "second", 1e9 + 100, True)


def test_an_instant_that_was_not_written_is_noted_again() -> None:
    clock = StoreClock(Machine(boottime=500.0), None)
    noted = clock.note()
    assert clock.note() is None
    clock.forget_note()
    assert clock.note() == noted
